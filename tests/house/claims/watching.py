"""Claims of benchmarks/README.md: what watching costs, and what reports find."""

from statistics import median

from benchmarks.watching.faulty import WRONG
from tests.house.claims.benchmarks import PAGE
from tests.support.results import line, lines

MEMORY, VERDICTS = line("memory"), lines("verdicts")
#: What the page calls a fault.
FAULTS = {
    "dead ReLU layer": "a dead ReLU layer",
    "saturated tanh layer": "a saturated tanh layer",
    "rank-one layer": "a rank-one layer",
    "frozen layer": "a frozen layer",
    "exploding rate": "a rate a thousand times too large",
    "NaN batch": "a batch that is not finite",
    "mislabelled epoch": "an epoch with wrong labels",
}
FAULTY, HEALTHY = ([one for one in VERDICTS if (one["fault"] is not None) == faulty] for faulty in (True, False))


def cost(base: str) -> list[float]:
    """Percent inside the recorder, the median over seeds, the least and the most; and by pairs."""
    one = line("cost", watch="recorder", base=base)
    return [100 * of(one["inside"]) for of in (median, min, max)] + [100 * median(one["paired"])]


def beside(fault: str) -> int:
    """Trainings with this fault in which something else was found as well."""
    return sum(bool(one["others"]) for one in FAULTY if one["fault"] == fault)


def told_late() -> int:
    """Steps after the last with wrong labels at which their end is told, at most."""
    return max(int(one["named"].split()[-1]) for one in FAULTY if one["fault"] == "mislabelled epoch") - WRONG.stop


CLAIMS = {
    PAGE: {
        **{
            f"| {said} | {{}} |": [sum(one["found"] for one in FAULTY if one["fault"] == fault)]
            for fault, said in FAULTS.items()
        },
        "**none**: {} healthy trainings | {} |": [len(HEALTHY), sum(bool(one["others"]) for one in HEALTHY)],
        "Of the {} faulty ones": [len(FAULTY)],
        "beside a dead layer ({}), a loss that stood above what was before it beside a rate that is too large ({})": [
            beside("dead ReLU layer"),
            beside("exploding rate"),
        ],
        "told up to {} steps late": [told_late()],
        "| `Recorder()` | {} % ({} to {}) | {} % | {} % ({} to {}) | {} % |": [*cost("adamw"), *cost("soap")],
        "its noise is some {} %": [max(100 * abs(each) for one in lines("cost") for each in one["paired"])],
        "{} MB resident at step 2,000, {} at 10,000, {} at 20,000; the file has {} kB": [
            *(MEMORY["megabytes"][step] for step in ("2000", "10000", "20000")),
            MEMORY["file_bytes"] / 1e3,
        ],
    }
}
