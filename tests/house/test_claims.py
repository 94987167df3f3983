"""A figure that was measured stands with what reproduces it: a command, a test, or a place in the benchmarks' page."""

import re

import pytest

from tests.support.blocks import ROOT, pages
from tests.support.claims import FIGURE, OTHERS, figures, sections

PAGES = [page for page in pages() if page.name not in OTHERS]
#: What reproduces it.
PLACES = (
    r"benchmarks(?:\.md|/README\.md)(?:#[\w-]+)?\)",
    r"-m (?:benchmarks|examples|docs)\.",
    r"make [a-z-]+",
    r"lightning-so [a-z-]+",
    r"tests/[\w/]+\.py",
    r"[\w-]+\.jsonl",
    r"arXiv \d",
)
SOURCE = re.compile("|".join(PLACES))


def unsourced(text):
    """Sections that have figures, and nothing that reproduces them."""
    return [
        (heading, found[0][0])
        for heading, part in sections(text)
        if (found := figures(part)) and not SOURCE.search(part)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_figures_stand_with_what_reproduces_them(page):
    assert unsourced(page.read_text()) == []


@pytest.mark.parametrize("said", ["It takes 1.4x as long.", "37 % less", "in 3 ms", "ends at .129", "| 2.04 | 1.9 |"])
def test_a_figure_without_a_source_is_found(said):
    assert unsourced(f"# Page\n\n{said}\n") == [("# Page", FIGURE.search(said)[0])]
    assert unsourced(f"# Page\n\n{said} (`python -m benchmarks.steps.ddp`)\n") == []
    assert unsourced(f"# Page\n\n{said}\n\n## Next\n\n`python -m benchmarks.steps.ddp`\n") != []
