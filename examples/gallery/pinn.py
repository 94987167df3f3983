"""Physics-informed networks: AdamW against Levenberg and Marquardt's method, on two equations.

    python -m examples.gallery.pinn                              # Poisson's
    python -m examples.gallery.pinn --equation burgers           # Burgers' at the literature's viscosity, 0.01 / pi

All points are one batch. Half of the points for Burgers' equation lie where its front will be.
"""

import argparse
from pathlib import Path

import torch

from examples.gallery.compare import Contender, compare, quiet
from examples.pinn import PINN, Points
from lightning_so import LevenbergMarquardt, MatrixFree

#: Name, layers, weight of the boundary, points on it, share of points at the front, steps of either.
SETTINGS = {
    "poisson": ("poisson", 32, 3, 1.0, 128, 0.0, 100, 2000),
    "burgers": ("burgers_thin", 20, 4, 10.0, 250, 0.5, 200, 3000),
}


def contenders(equation: str, share: float) -> list[Contender]:
    """AdamW, and the method on the whole vector, from the same weights on the same points.

    Args:
        equation: A key of `SETTINGS`.
        share: Of the steps.
    """
    name, width, depth, boundary, points, front, few, many = SETTINGS[equation]

    def made(optimizer: str, rate: float) -> tuple[PINN, Points]:
        return PINN(name, width, depth, boundary, optimizer, rate), Points(points, name, front=front)

    few, many = max(1, round(few * share)), max(1, round(many * share))
    return [
        Contender("AdamW", lambda: made("adamw", 3e-3), [], many, {"check_val_every_n_epoch": max(1, many // 20)}),
        Contender(
            "Levenberg-Marquardt",
            lambda: made("sgd", 1.0),
            [MatrixFree(LevenbergMarquardt())],
            few,
            {"check_val_every_n_epoch": max(1, few // 20)},
        ),
    ]


def main() -> None:
    """Train, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equation", choices=SETTINGS, default="poisson")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--out", type=Path, help="where the picture goes; demo_out/pinn_EQUATION.png by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    out = args.out or Path(f"demo_out/pinn_{args.equation}.png")
    label = f"distance to the solution of {args.equation.title()}' equation (%)".replace("Poisson'", "Poisson's")
    compare(contenders(args.equation, args.share), out, label, measure="relative_error")


if __name__ == "__main__":
    main()
