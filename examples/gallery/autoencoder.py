"""The deep autoencoder of Hinton and Salakhutdinov (2006) on digits: AdamW alone, behind SOAP and K-FAC.

python -m examples.gallery.autoencoder
"""

from examples.autoencoder import Autoencoder, Digits
from examples.gallery.compare import arguments, compare, methods


def main() -> None:
    """Train, draw."""
    args = arguments(__doc__, "autoencoder", steps=200, every=2)
    contenders = methods(
        lambda: (Autoencoder(lr=2e-3, total_steps=args.steps), Digits()), args.steps, check_val_every_n_epoch=args.every
    )
    compare(contenders, args.out, "squared error of a held-out image")


if __name__ == "__main__":
    main()
