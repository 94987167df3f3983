"""What a regression of gradients on positions reports when steps follow their own noise: METHODS C.3.

    python -m benchmarks.curvature.bias

Linear model with noise, w <- w - eta g, g = lambda w + xi: every step is moved by the noise of the gradient before it,
and the slope of gradients over positions becomes lambda + s^2 / (eta E g^2), which is about 1 / eta where only noise is
left. OGR(curvature="same-batch") and FewDirections take a difference of gradients of one batch: its noise cancels.
SGD does the training, and no step of a method is taken, so that all see the same. Writes docs/bias.png.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import matplotlib
import torch
from torch import Tensor, nn

from lightning_so import OGR, FewDirections, attach
from lightning_so.contract.vector_method import Owned, Step, VectorMethod, VectorState


@dataclass(frozen=True)
class Watched:
    """A method that learns, and whose steps are not taken."""

    method: VectorMethod

    owns: ClassVar[Owned] = "nothing"

    def refuse(self, space: Any, groups: Any) -> str | None:
        """As the method."""
        return self.method.refuse(space, groups)

    def init(self, space: Any) -> VectorState:
        """As the method."""
        return self.method.init(space)

    def probes(self, number: int) -> bool:
        """As the method."""
        return self.method.probes(number)

    def update(self, state: VectorState, step: Step) -> None:
        """Learn alone."""
        self.method.update(state, step)

    def scalars(self, state: VectorState) -> dict[str, float]:
        """As the method."""
        return self.method.scalars(state)


class Noisy(nn.Module):
    """1/2 lambda |w|^2 + <w, xi>: its gradient is lambda w + xi, xi of the batch."""

    def __init__(self, size: int, curvature: float) -> None:
        """At 1."""
        super().__init__()
        self.w, self.curvature = nn.Parameter(torch.ones(size, dtype=torch.float64)), curvature

    def forward(self, noise: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.curvature / 2 * self.w.square().sum() + self.w @ noise


def reported(method: VectorMethod, size: int, eta: float, steps: int, curvature: float = 1.0, seed: int = 0) -> float:
    """The median of the top curvature that a method reports while SGD trains, after the first fifth of the steps."""
    torch.manual_seed(seed)
    model = Noisy(size, curvature)
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    engine = attach(model, optimizer, Watched(method))
    seen = []
    for number in range(steps):
        noise = torch.randn(size, dtype=torch.float64)

        def closure(noise: Tensor = noise) -> Tensor:
            optimizer.zero_grad()
            loss = model(noise)
            loss.backward()
            return loss

        optimizer.step(closure)
        if number >= steps // 5:
            seen.append(engine.scalars()["curv/lambda_max"])
    return median(seen)


def secant(eta: float, steps: int, curvature: float = 1.0, seed: int = 0) -> tuple[float, float]:
    """The regression of differences of gradients on those of positions, and what the theory says of it, in 1-D."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(steps, generator=generator, dtype=torch.float64).tolist()
    w, gradients = 1.0, []
    for xi in noise:
        gradients.append(curvature * w + xi)
        w -= eta * gradients[-1]
    g = torch.tensor(gradients[steps // 5 :], dtype=torch.float64)
    moved, changed = -eta * g[:-1], g.diff()
    slope = (moved @ changed) / moved.square().sum()
    return float(slope), float(curvature + 1 / (eta * g.square().mean()))


METHODS = {
    "OGR(k=1)": OGR(k=1, beta=0.1),
    "OGR(k=4)": OGR(k=4, beta=0.1),
    'OGR(k=1, curvature="same-batch")': OGR(k=1, beta=0.1, curvature="same-batch", every=2),
    "FewDirections(k=1)": FewDirections(k=1, every=2),
}


def draw(lines: list[dict[str, Any]], curvature: float = 1.0) -> None:
    """Reported curvature against the learning rate."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for axis, size in zip(axes, (1, 20), strict=True):
        mine = [line for line in lines if line["size"] == size]
        etas = [line["eta"] for line in mine]
        if size == 1:
            theory = [line["theory"] for line in mine]
            axis.plot(etas, theory, color="gray", label="lambda + s^2 / (eta E g^2)")
            axis.plot(etas, [line["secant"] for line in mine], "o", color="black", label="secant regression")
        for name, style in zip(METHODS, ("C0s-", "C1^-", "C2v-", "C3x-")):
            if name in mine[0]:
                axis.plot(etas, [line[name] for line in mine], style, label=name)
        axis.axhline(curvature, color="black", linewidth=0.5, linestyle="--")
        axis.set(title=f"curvature {curvature:g} along each of {size}", xlabel="learning rate", xscale="log")
        axis.set_yscale("symlog", linthresh=1)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("curvature reported")
    figure.savefig("docs/bias.png", dpi=90)


def main() -> None:
    """Measure, print, write JSON lines and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--etas", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    add("--steps", type=int, default=500)
    add("--out", type=Path, default=Path("benchmarks/curvature/results/bias.jsonl"), help="overwritten")
    args = parser.parse_args()

    torch.set_num_threads(1)
    lines = []
    for size in (1, 20):
        for eta in args.etas:
            line: dict[str, Any] = {"size": size, "eta": eta, "steps": args.steps}
            if size == 1:
                line["secant"], line["theory"] = secant(eta, 100_000)
            fits = {name: method for name, method in METHODS.items() if method.k <= size}
            line |= {name: reported(method, size, eta, args.steps) for name, method in fits.items()}
            lines.append(line)
            print(json.dumps(line), flush=True)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw(lines)


if __name__ == "__main__":
    main()
