"""The spectrum of a network: the Hessian's eigenvalues of the byte language model, before and after training.

    python -m examples.gallery.spectrum

Stochastic Lanczos quadrature needs nothing but products of the Hessian with vectors. Training leaves a bulk near zero
and a few large eigenvalues, which set the step that is stable.
"""

import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from torch.utils.data import DataLoader

from examples.byte_lm import ByteLM, ByteText, Windows, corpus, next_byte_loss
from examples.curves import save
from examples.gallery.compare import QUIET, arguments
from lightning_so import Spectrum, spectrum


def look(module: ByteLM, args: object) -> Spectrum:
    """The spectrum on a fixed batch."""
    batch = next(iter(DataLoader(Windows(corpus()[0], 64, 16, seed=1), 16)))
    return spectrum(module, lambda: next_byte_loss(module, batch), steps=args.lanczos, probes=args.probes)


def main() -> None:
    """Look, train, look again, draw."""
    args = arguments(__doc__, "spectrum", steps=200, lanczos=30, probes=2)
    pl.seed_everything(0, verbose=False)
    module = ByteLM(d=64, layers=1, total_steps=args.steps)
    found = {"before training": look(module, args)}
    pl.Trainer(max_steps=args.steps, limit_val_batches=0, **QUIET).fit(module, ByteText())
    found[f"after {args.steps} steps of AdamW"] = look(module, args)

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (name, each) in zip(axes, found.items(), strict=True):
        span = each.top - each.bottom
        grid = torch.linspace(each.bottom - 0.05 * span, each.top + 0.05 * span, 500)
        axis.semilogy(grid, each.density.at(grid, 0.01 * span).clamp_min(1e-8))
        axis.set(title=name, xlabel="eigenvalue", ylim=(1e-7, 10))
        axis.grid(alpha=0.3)
        print(f"{name}: {each}")
    axes[0].set_ylabel("density")
    save(figure, args.out)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
