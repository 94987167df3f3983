"""The independent float64 SOAP of the tests beside ours, on a noisy linear regression: two curves that must be one.

python -m benchmarks.training.reference        (writes docs/reference.png, prints the largest difference of the weights)
"""

from pathlib import Path

import matplotlib
import torch

from lightning_so import SOAP, Synchronous, attach
from tests.support.reference import Reference

SIDE, STEPS, BATCH = 16, 300, 32


def main() -> None:
    """Train both on the same batches and plot the losses."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    torch.manual_seed(0)
    inputs = torch.logspace(0, -1.5, SIDE, dtype=torch.float64).diag()
    target = torch.randn(SIDE, SIDE, dtype=torch.float64)
    layer = torch.nn.Linear(SIDE, SIDE, bias=False, dtype=torch.float64)
    settings = {"lr": 3e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    reference = Reference(layer.weight.detach().clone(), **settings, wd=0.0, beta=0.95, ridge=1e-2)
    optimizer = torch.optim.AdamW(layer.parameters(), **settings, weight_decay=0.0)
    attach(layer, optimizer, SOAP(period=1, start=1, schedule=Synchronous()))
    curves: list[list[float]] = [[], []]
    difference = 0.0
    for _ in range(STEPS):
        x = torch.randn(BATCH, SIDE, dtype=torch.float64) @ inputs
        y = x @ target.T + 0.01 * torch.randn(BATCH, SIDE, dtype=torch.float64)
        optimizer.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        residual = x @ reference.W.T - y
        curves[0].append(loss.item())
        curves[1].append(residual.square().mean().item())
        optimizer.step()
        reference.step(2 * residual.T @ x / residual.numel())
        difference = max(difference, (layer.weight.detach() - reference.W).abs().max().item())
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axis.semilogy(curves[0], linewidth=4, alpha=0.4, label="AdamW + SOAP(period=1, start=1)")
    axis.semilogy(curves[1], linewidth=1, color="black", label="independent float64 SOAP")
    axis.set_xlabel("step")
    axis.set_ylabel("training loss")
    axis.legend()
    path = Path("docs/reference.png")
    figure.savefig(path, dpi=110)
    print(f"largest difference of a weight over {STEPS} steps: {difference:.1e}; {path}")


if __name__ == "__main__":
    main()
