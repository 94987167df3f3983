"""The README is short, its sentences are, and its figures are those of results files."""

import re
from statistics import mean

import pytest

from benchmarks.peers import first_page
from tests.support.results import peers

README = first_page.PAGE.read_text()
COMPATIBILITY = (first_page.ROOT / "docs" / "compatibility.md").read_text()
#: Rows of the README's ticks, as the page of compatibility calls them; its columns, and those of that page.
STRATEGIES = {
    "one process": ("one process",),
    "DDP": ("DDP",),
    "FSDP2 (`ModelParallelStrategy`)": ("FSDP2",),
    "FSDP1 (`fsdp_so`)": ("FSDP1",),
    "DeepSpeed ZeRO-2 (`deepspeed_so_stage_2`)": ("DeepSpeed ZeRO-2",),
}
FEATURES = {
    "SOAP, Muon, K-FAC, EKFAC, Shampoo": tuple(f"{m} on Adam" for m in ("SOAP", "Muon", "K-FAC", "EKFAC", "Shampoo")),
    "bf16-mixed": ("bf16-mixed",),
    "accumulation, clipping": ("accumulation", "clipping"),
    "exact resume": ("resume",),
}


def tables(text):
    """Every table of a page, as rows of cells by their heads."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        yield [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def is_tested(strategy, feature):
    """Whether the page of compatibility has it tested, with some method at least."""
    found = [
        row[feature]
        for table in tables(COMPATIBILITY)
        for row in table
        if feature in row and next(iter(row.values())) == strategy
    ]
    return bool(found) and found[0].startswith("tested")


def test_the_table_is_that_of_the_results():
    assert first_page.rendered() in README
    assert first_page.PICTURE.exists()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("feature", FEATURES)
def test_ticks_are_what_was_tested(strategy, feature):
    (row,) = (row for table in tables(README) for row in table if next(iter(row.values())) == strategy)
    whole = all(is_tested(one, each) for one in STRATEGIES[strategy] for each in FEATURES[feature])
    assert row[feature] == ("✓" if whole else "")


def test_it_is_short():
    assert len(README.splitlines()) <= 100
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    prose = "\n\n".join(line for line in prose.splitlines() if not line.startswith(("|", "<!--", "!", "#")))
    prose = re.sub(r"\]\([^)]*\)|\[|`|\*", "", prose)
    for sentence in re.split(r"(?<=[.:;])\s|\n\n", prose):
        assert len(sentence.split()) <= 30, sentence


def test_steps_and_seconds_of_its_first_figure():
    found = peers("byte_lm")
    goal = found["adamw"].best.loss
    soap, adamw = found["soap"].best, found["adamw"].best
    steps, seconds = (
        mean(soap.reached(places, goal)) / mean(run["curve"][places][-1] for run in adamw.runs)
        for places in ("steps", "seconds")
    )
    assert steps == pytest.approx(1 / 3, abs=0.03), "in a third of its steps"
    assert seconds == pytest.approx(1 / 2, abs=0.05), "half of its seconds"


def test_where_adamw_wins_it_does():
    losses = {name: peers("cnn")[name].best.loss for name in ("adamw", "soap", "muon", "kfac", "ekfac", "shampoo")}
    assert min(losses.values()) < losses["adamw"] < losses["soap"], "between ours"
