"""Claims of docs/gallery/: what its scripts print (`make gallery` keeps it in examples/gallery/printed/)."""

import re

from tests.support.claims import NUMBER, ROOT

PRINTED = ROOT / "examples" / "gallery" / "printed"


def printed(figure: str, said: str) -> list[float]:
    """The numbers that stand for "{}" in a printed line."""
    pattern = re.escape(said).replace(r"\{\}", f"({NUMBER})").replace(r"\ ", r"\s+")
    found = re.findall(pattern, (PRINTED / f"{figure}.txt").read_text())
    assert len(found) == 1, (figure, said, found)
    return [float(number) for number in (found if isinstance(found[0], str) else found[0])]


def arrives(figure: str, *methods: str) -> list[float]:
    """Steps to AdamW's end."""
    return [printed(figure, f"\nAdamW + {method} {{}} at the end, {{}} at best; {{}} steps")[2] for method in methods]


def ends(figure: str, contender: str) -> float:
    """The last value of a contender."""
    return printed(figure, f"\n{contender} {{}} at the end")[0]


def error(contender: str) -> list[float]:
    """The best forecast."""
    return printed("forecasting", f"\n{contender} {{}} at the end, {{}} at best")[1:]


def doubt(name: str) -> list[float]:
    """Share of patients inside, and nats."""
    said = f"{name}: {{}} of the patients inside the 90 % interval, negative log-likelihood {{}} nats"
    return printed("laplace", said)


NOISE, SURE = doubt("noise alone"), doubt("Laplace, last layer")
CLAIMS = {
    "docs/gallery/README.md": {
        "K-FAC reaches AdamW's final loss after {} of 150 steps, SOAP after {}": arrives(
            "image_classifier", "K-FAC", "SOAP"
        ),
        "K-FAC, Muon and SOAP reach AdamW's final loss after {}, {} and {} of 200 steps": arrives(
            "byte_lm", "K-FAC", "Muon", "SOAP"
        ),
        "comes to {} % of the solution in 200 steps, where AdamW at 3e-3 stays at {} %": [
            ends("pinn_burgers", "Levenberg-Marquardt"),
            ends("pinn_burgers", "AdamW"),
        ],
        "comes to {} % of the solution in 100 steps; AdamW, in as much time, to {} %": [
            ends("pinn", "Levenberg-Marquardt"),
            ends("pinn", "AdamW"),
        ],
        "SOAP and K-FAC reach AdamW's final error after {} and {} of": arrives("autoencoder", "SOAP", "K-FAC"),
        "K-FAC reaches AdamW's final error after {} of 400 steps, SOAP after {}": arrives("molecules", "K-FAC", "SOAP"),
        "AdamW's best forecasts are off by {} degrees, SOAP's by {}, and \"as today\" by {}": [
            *error("AdamW"),
            *error("AdamW + SOAP"),
            *printed("forecasting", "as today: {}"),
        ],
        "rises from {} to {} nats. {} % instead of {} % lie inside": [
            -NOISE[1],
            -SURE[1],
            100 * SURE[0],
            100 * NOISE[0],
        ],
        "leaves the saddle after {} steps, with `SaddleEscape` after {},": [
            *printed("saddle", "SGD: half of the loss after {} steps"),
            *printed("saddle", "SGD + SaddleEscape: half of the loss after {} steps"),
        ],
        "reach from {} to {} before training, and from {} to {} after 200 steps": [
            *printed("spectrum", "before training: eigenvalues of 86720 parameters from {} to {}, trace"),
            *printed("spectrum", "after 200 steps of AdamW: eigenvalues of 86720 parameters from {} to {}, trace"),
        ],
        "its losses are up to {} nats apart": printed("resume", "resumed without it: largest difference of a loss {};"),
    },
}
#: What is set, and not measured.
GIVEN = {
    "docs/gallery/README.md": ["viscosity, 0.01 / pi,", "lie inside the 90 % interval"],
}
