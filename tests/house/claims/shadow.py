"""Claims of benchmarks/README.md: what shadow mode foretells, and what a change of methods does to the loss."""

from statistics import median
from typing import Any

from benchmarks.training.shadow import table
from lightning_so import Shadow
from tests.support.claims import printed
from tests.support.results import file, lines

NAMES = {"byte_lm": "byte LM", "autoencoder": "autoencoder"}


def longer(problem: str) -> list[float]:
    """Time of a step that is foretold, over AdamW's and beyond it, of all seeds and shares."""
    runs = [one["shares"].values() for one in lines("shadow") if one["problem"] == problem]
    return [told["seconds_share"] for shares in runs for told in shares]


def off(share: float) -> float:
    """Percent by which steps foretold are off those needed, at most."""
    return max(100 * abs(one["shares"][f"{share}"]["steps_share"] / one["truth"] - 1) for one in lines("shadow"))


def changes(problem: str) -> list[dict[str, Any]]:
    """What is known of each change, seed after seed."""
    return [change for one in lines("switching") if one["problem"] == problem for change in one["changes"]]


def row(problem: str, what: str) -> dict[str, list[float]]:
    """A row of a change: of the seeds with it, and of AdamW there."""
    found = [one for one in changes(problem) if one["what"] == what]
    return {
        f"| {NAMES[problem]} | {what.replace('KFAC', 'K-FAC')} | {{}}, {{}}, {{}} | {{}}, {{}}, {{}} |": [
            *(one["mean"] for one in found),
            *(one["adamw"]["mean"] for one in found),
        ]
    }


def spike(problem: str) -> float:
    """Percent by which the largest loss after a change is above AdamW's own, at most."""
    return max(100 * (one["largest"] / one["adamw"]["largest"] - 1) for one in changes(problem))


CLAIMS = {
    "benchmarks/README.md": {
        **printed(table(file("shadow"))),
        "At the default share ({}) the steps foretold are within {} %": [Shadow().share, off(Shadow().share)],
        "on the byte LM {} more a step (the median of nine; {} in one": [of(longer("byte_lm")) for of in (median, min)],
        "alone is short, {} more.": [median(longer("autoencoder"))],
        "at most {} % above AdamW's own ratio on the byte LM, {} % on the autoencoder": [*map(spike, NAMES)],
    }
}
for _problem in NAMES:
    for _what in [one["what"] for one in changes(_problem)]:
        CLAIMS["benchmarks/README.md"] |= row(_problem, _what)
