"""A graph network that predicts a molecule's logP: AdamW alone, behind SOAP and K-FAC, at one learning rate.

python -m examples.gallery.molecules
"""

from examples.gallery.compare import arguments, compare, methods
from examples.molecules import Molecules, Regressor


def main() -> None:
    """Train, draw."""
    args = arguments(__doc__, "molecules", steps=400, every=2)
    contenders = methods(lambda: (Regressor(lr=3e-3), Molecules()), args.steps, check_val_every_n_epoch=args.every)
    compare(contenders, args.out, "squared error of logP, held-out")


if __name__ == "__main__":
    main()
