"""Where second order does not help: a week of Seattle's temperatures by a GRU; AdamW alone, behind Muon and SOAP.

    python -m examples.gallery.forecasting

"Every day is as today" is what a forecast has to beat. Four years are few, and weather is mostly noise a week ahead:
who falls faster fits the noise sooner.
"""

from examples.forecasting import HIGHEST, Forecaster, Weather, days
from examples.gallery.compare import arguments, compare, methods


def main() -> None:
    """Train, draw."""
    args = arguments(__doc__, "forecasting", steps=240, every=1)
    contenders = methods(
        lambda: (Forecaster(width=32, lr=3e-3), Weather()),
        args.steps,
        ("Muon", "SOAP"),
        check_val_every_n_epoch=args.every,
    )
    compare(contenders, args.out, "error of held-out forecasts (degrees Celsius)", measure="val_degrees", log=False)
    data = Weather()
    data.setup("fit")
    seen, ahead = data.held.tensors
    print(f"as today: {float((ahead - seen[:, -1:, HIGHEST]).square().mean().sqrt()) * days()[1]:.3f}")


if __name__ == "__main__":
    main()
