"""Claims of benchmarks/README.md: what the field found since, beside SOAP and Muon as they are."""

from statistics import mean
from typing import Any

from tests.house.claims.methods import longer_by
from tests.support.results import field, line, lines, lower

PAGE = "benchmarks/README.md"
PROBLEMS = ("byte_lm", "autoencoder", "cnn")
#: Columns of the two tables: problems and rates.
COLUMNS = {
    "soap": [
        ("byte_lm", 0.005),
        ("byte_lm", 0.01),
        ("autoencoder", 0.01),
        ("autoencoder", 0.02),
        ("cnn", 0.005),
        ("cnn", 0.01),
    ],
    "muon": [("byte_lm", 0.01), ("autoencoder", 0.02), ("cnn", 0.005), ("cnn", 0.01)],
}


def itself(method: str) -> dict[str, list[float]]:
    """The row of losses without anything."""
    losses = [mean(field(*column, method=method).values()) for column in COLUMNS[method]]
    return {f"| nothing: its loss | {' | '.join(['{}'] * len(losses))} | |": losses}


def tried(head: str, method: str = "soap", run: int = 0, **option: Any) -> dict[str, list[float]]:
    """A row of percents."""
    cells, values = [], []
    for problem, rate in COLUMNS[method]:
        seeds = sorted(field(problem, rate, method=method, **option))
        if not seeds:
            cells.append("-")
            continue
        each = [lower(problem, rate, seed, run=run, method=method, **option) for seed in seeds]
        cell = "**{}**" if min(each) > 0 else "{}"
        cells.append(f"{cell}, two seeds" if len(seeds) == 2 else cell)
        values.append(lower(problem, rate, run=run, method=method, **option))
    return {f"| {head} | {' | '.join(cells)} |": values}


def best(problem: str, **option: Any) -> float:
    """SOAP's mean final loss at its best rate."""
    rates = sorted({one["lr"] for one in lines("field") if one["problem"] == problem})
    return min(mean(found.values()) for rate in rates if (found := field(problem, rate, **option)))


def polished_in_time() -> float:
    """Percent by which polished SOAP ends the byte LM higher in as many seconds as SOAP takes."""
    ours = {one["seed"]: one["final_loss"] for one in lines("field") if one["steps"] == 336 and one["lr"] == 0.01}
    theirs = field("byte_lm", 0.005)
    return 100 * (mean(ours.values()) / mean(theirs[seed] for seed in ours) - 1)


CLAIMS = {
    PAGE: {
        **itself("soap"),
        **tried("polar factors of rotated updates of hidden matrices (SOAP-Muon)", polish=True),
        **tried("the same by three Newton-Schulz steps instead of five", tried="polish by 3 Newton-Schulz steps"),
        **tried("factors of whitened gradients (KL-SOAP)", run=1, whiten=True),
        **tried(
            "the same by the eigenvalues of the last solves, not of every step",
            run=1,
            whiten=True,
            tried="eigenvalues of the last solves",
        ),
        **tried("bases from step 25 on, instead of 50", start=25),
        **tried("bases from step 100 on", start=100),
        **tried("second moments of vectors over .99, instead of .95", tried="beta2 of vectors .99"),
        **itself("muon"),
        **tried(
            "rows divided by the root of an average of their squares (NorMuon)",
            "muon",
            tried="rows normalised (NorMuon)",
        ),
        **tried(
            r"Newton-Schulz from X over the root of \|XX'\| instead of \|X\|",
            "muon",
            tried="Newton-Schulz from root of |XX|",
        ),
        "byte LM at {}, polished at {}; the autoencoder at {}, polished at {}; the CNN at {}, polished at {}.": [
            best(problem, **option) for problem in PROBLEMS for option in ({}, {"polish": True})
        ],
        "polished over plain: {} (byte LM, 1,024 tokens a step), {} (autoencoder), {} (CNN)": [
            longer_by("polish", problem, run=0) for problem in PROBLEMS
        ],
        "steps, and ends it {} % higher (two seeds)": [polished_in_time()],
        "take {} times the CPU seconds on the byte LM, {} on the autoencoder, {} on the CNN": [
            longer_by("whiten", problem, run=1) for problem in PROBLEMS
        ],
        "ends the byte LM at {} (5e-3; {} at 2.5e-3), one seed; Muon at {}": [
            line("field", lr=0.005, problem="byte_lm", method="muon")["final_loss"],
            line("field", lr=0.0025)["final_loss"],
            field("byte_lm", 0.01, method="muon")[0],
        ],
    }
}
#: What is set, and not measured.
GIVEN = {PAGE: ["second moments of vectors over .99, instead of .95"]}
