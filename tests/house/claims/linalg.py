"""Claims of benchmarks/README.md: bases and polar factors found anew, and many solves in one call."""

from benchmarks.steps.solves import SOLVES
from tests.house.claims.benchmarks import PAGE
from tests.support.results import line, lines

#: The columns of the table of bases.
WAYS = (
    "Householder, each",
    "Householder, one call",
    "Cholesky twice, solves",
    "Cholesky twice, inverses",
    "refresh by Householder",
    "refresh by Cholesky",
)
SIDES, COUNTS = (4, 8, 16, 64, 128), (64, 4)


def worst(part: str) -> float:
    """Of all bases."""
    return max(one[part] for one in lines("bases") if one["what"] == "basis")


def polar(way: str, part: str) -> float:
    """Of 4 wide matrices."""
    return line("bases", what="polar", cols=1024, way=way)[part]


def solved(count: int, side: int) -> list[float]:
    """A row of solves: one call, a call for each, their ratio."""
    found = [line("solves", solve=solve, side=side, count=count) for solve in SOLVES]
    return [one[part] for one in found for part in ("batched_ms", "single_ms", "speedup")]


def fewer(count: int) -> list[float]:
    """How many times fewer operations one call dispatches, at least and at most."""
    found = [one["single_operations"] / one["batched_operations"] for one in lines("solves") if one["count"] == count]
    return [min(found), max(found)]


CLAIMS = {
    PAGE: {
        **{
            f"| {side} | {{}} / {{}} | {{}} / {{}} | {{}} / {{}} |": [
                line("bases", side=side, count=8, way=way)["ms"] for way in WAYS
            ]
            for side in (64, 256, 512)
        },
        "All are orthogonal to {} and Householder's in float64 to {}.": [worst("apart"), worst("off")],
        "fp32 {} ms, bf16 {} (from float64's by {} of a cosine), fp16 {} ({})": [
            polar("fp32", "ms"),
            *(polar(way, part) for way in ("bf16", "fp16") for part in ("ms", "off")),
        ],
        **{
            f"| {count} | {side} |{' {}, {}: {}x |' * len(SOLVES)}": solved(count, side)
            for count in COUNTS
            for side in SIDES
        },
        "one call dispatches {} to {} times fewer operations, of four {} to {} times": [*fewer(64), *fewer(4)],
        "up to {} of the largest entry": [max(one["difference"] for one in lines("solves"))],
    }
}
