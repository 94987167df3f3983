"""Claims of benchmarks/README.md: what watching costs."""

from statistics import median

from tests.house.claims.benchmarks import PAGE
from tests.support.results import line, lines

MEMORY = line("memory")


def cost(base: str) -> list[float]:
    """Percent inside the recorder, the median over seeds, the least and the most; and by pairs."""
    one = line("cost", watch="recorder", base=base)
    return [100 * of(one["inside"]) for of in (median, min, max)] + [100 * median(one["paired"])]


CLAIMS = {
    PAGE: {
        "| `Recorder()` | {} % ({} to {}) | {} % | {} % ({} to {}) | {} % |": [*cost("adamw"), *cost("soap")],
        "its noise is some {} %": [max(100 * abs(each) for one in lines("cost") for each in one["paired"])],
        "{} MB resident at step 2,000, {} at 10,000, {} at 20,000; the file has {} kB": [
            *(MEMORY["megabytes"][step] for step in ("2000", "10000", "20000")),
            MEMORY["file_bytes"] / 1e3,
        ],
    }
}
