"""A small CNN on handwritten digits: AdamW alone, behind SOAP and K-FAC, at one learning rate.

python -m examples.gallery.image_classifier
"""

from examples.gallery.compare import arguments, compare, methods
from examples.image_classifier import Classifier, Images


def main() -> None:
    """Train, draw."""
    args = arguments(__doc__, "image_classifier", steps=150, every=5)
    contenders = methods(lambda: (Classifier(lr=1e-2), Images()), args.steps, val_check_interval=args.every)
    compare(contenders, args.out, "validation loss (nats)")


if __name__ == "__main__":
    main()
