"""Error bars from K-FAC: how many held-out patients lie inside an interval, of those that should.

    python -m examples.gallery.laplace

The posterior of the last layer comes from the factors that training has left behind: no further pass over the data. A
network that was trained for long is too sure by its noise alone. `examples/laplace.py` has the equations.
"""

from statistics import NormalDist

from matplotlib import pyplot as plt

from examples.gallery.compare import arguments, finish
from examples.laplace import trained


def main() -> None:
    """Train, count, draw."""
    args = arguments(__doc__, "laplace", epochs=40)
    held = trained(args.epochs)
    levels = [number / 50 for number in range(1, 50)]
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    for name, variance in {"noise alone": held.alone(), "Laplace, last layer": held.sure}.items():
        inside = [held.inside(variance, NormalDist().inv_cdf((1 + level) / 2)) for level in levels]
        axis.plot(levels, inside, label=name)
        print(
            f"{name}: {held.inside(variance):.2f} of the patients inside the 90 % interval, negative log-likelihood "
            f"{held.likelihood(variance):.3f} nats"
        )
    axis.set(xlabel="interval", ylabel="held-out patients inside", title=f"after {args.epochs} epochs")
    finish(figure, axis, args.out)


if __name__ == "__main__":
    main()
