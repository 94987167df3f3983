"""Claims of benchmarks/README.md: plans against trainings."""

from benchmarks.steps.planned import ALLOWED
from tests.house.claims.benchmarks import NAMES, PAGE
from tests.support.results import lines

LINES = lines("planned")


def rows() -> dict[str, list[float]]:
    """The table: measured / planned, and how far a step is off; bold is what is off by more than is asked."""
    table = {}
    for one in LINES:
        seen, said, off = (one[side] for side in ("measured", "planned", "off"))
        last = "**{} %**" if abs(off["largest"]) > ALLOWED["largest"] else "{} %"
        head = f"| `{one['problem']}` | {NAMES[one['method']]} | {one['ranks']} |"
        table[f"{head} {{}} / {{}} | {{}} / {{}} | {{}} / {{}} | {{}} % | {{}} / {{}} | {last} |"] = [
            *(side["memory"] / 1e6 for side in (seen, said)),
            *(side["sent"] / 1e3 for side in (seen, said)),
            *(side["step"] for side in (seen, said)),
            100 * off["step"],
            *(side["largest"] for side in (seen, said)),
            100 * off["largest"],
        ]
    return table


def off(part: str, *ranks: int) -> list[float]:
    """The least and the most percent by which a part is off."""
    found = [100 * one["off"][part] for one in LINES if one["ranks"] in ranks]
    return [min(found), max(found)]


CLAIMS = {
    PAGE: rows()
    | {
        "asked are {} % of memory and bytes, {} % of a step": [100 * ALLOWED[part] for part in ("sent", "largest")],
        "off by {} to {} % in one process and {} to {} % on two ranks": [*off("step", 1), *off("step", 2)],
        "The largest step is planned too small ({} to {} %;": off("largest", 1, 2),
        "{} GB a second here, against {} of an all-reduce": [
            LINES[0]["network"][part] / 1e9 for part in ("windows", "bandwidth")
        ],
    }
}
