"""Claims of benchmarks/README.md: CurvatureMonitor, SharpnessGuard and SaddleEscape."""

from math import inf, isfinite, log
from statistics import median

from tests.house.claims.benchmarks import PAGE
from tests.support.results import line, lines

RATES = {"1e-3": 0.001, "1e-2": 0.01, "3e-2": 0.03, "1e-1": 0.1, "3e-1": 0.3}
GUARDED = ("Adam", "guarded every 10", "guarded every 40")
ABLATION = "near, its ablation (along Lanczos' start; `--saddles stiff-near --sgd 1 3 --adam .1 1 --steps 400 "
ABLATION += "--curvature constant`)"
#: A row of SaddleEscape's table: where it starts, what curvatures are, and which columns it has.
SADDLES = {
    "1e-6 from the saddle": ("near", None, 4),
    "from afar": ("far", None, 3),
    "exactly on the ridge": ("ridge", None, 4),
    ABLATION: ("near", "constant", 4),
}


def monitored(problem: str, called: str) -> dict[str, list[float]]:
    """The rows of a problem: AdamW, AdamW again, and with the monitor what a look adds."""
    alone, again, ours = (
        line("monitor", problem=problem, variant=name) for name in ("adamw", "adamw again", "CurvatureMonitor")
    )
    added = "+ {} ms | + {} ms | + {} ms |"
    plain = f"| {called} | {{}} | 1 | | | | | again | {{}} | {{}} | | | |"
    return {
        f"{plain} | with `CurvatureMonitor()` | {{}} | {{}} | {added}": [
            alone["mean_ms"],
            *(one[part] for one in (again, ours) for part in ("mean_ms", "to_adamw")),
            *ours["by_part"].values(),
        ]
    }


def guarded(lr: float) -> list[float]:
    """Medians over seeds."""
    return [median(line("sharpness", variant=name, lr=lr)["losses"]) for name in GUARDED]


def escapes(start: str, curvature: str | None, base: str, products: int | None) -> list[float]:
    """Gradients to each share of the height, the median over seeds, at the best rate for each; or infinity."""
    of = {"start": start, "base": base, "products": products}
    runs = [one for one in lines("saddle_escape") if of.items() <= one.items() and one.get("curvature") == curvature]
    return [
        min(median(inf if one is None else one for one in run["evaluations"][share]) for run in runs)
        for share in ("0.5", "0.9", "0.99")
    ]


def saddles() -> dict[str, list[float]]:
    """The rows of SaddleEscape; "-" is what was not reached."""
    rows = {}
    for head, (start, curvature, columns) in SADDLES.items():
        variants = [(base, products) for base in ("SGD", "Adam") for products in (None, 16)][:columns]
        cells = [escapes(start, curvature, *variant) for variant in variants]
        shown = [" / ".join("{}" if isfinite(one) else "-" for one in cell) for cell in cells]
        shown = ["-" if cell == "- / - / -" else cell for cell in shown] + ["not measured"] * (4 - columns)
        rows[f"| {head} | {' | '.join(shown)} |"] = [one for cell in cells for one in cell if isfinite(one)]
    return rows


CLAIMS = {
    PAGE: {
        **monitored("byte_lm", "byte LM"),
        **monitored("autoencoder", "autoencoder"),
        "A guess has {}.": [log(10)],
        " ".join(f"| {said} | {{}} | {{}} | {{}} |" for said in RATES): [
            one for lr in RATES.values() for one in guarded(lr)
        ],
        **saddles(),
    }
}
#: What is set, and not measured.
GIVEN = {PAGE: ["50 / 90 / 99 % of the saddle's height"]}
