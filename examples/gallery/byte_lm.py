"""A byte-level language model: AdamW alone, behind Muon, SOAP and K-FAC, at AdamW's own learning rate.

python -m examples.gallery.byte_lm
"""

from examples.byte_lm import ByteLM, ByteText
from examples.gallery.compare import arguments, compare, methods


def main() -> None:
    """Train, draw."""
    args = arguments(__doc__, "byte_lm", steps=200, points=20)

    contenders = methods(
        lambda: (ByteLM(total_steps=args.steps), ByteText()),
        args.steps,
        ("Muon", "SOAP", "K-FAC"),
        val_check_interval=args.steps // args.points,
        limit_val_batches=5,
    )
    compare(contenders, args.out, "validation loss (nats per byte)", log=False)


if __name__ == "__main__":
    main()
