"""A figure that was measured stands with what reproduces it: a command, a test, or a place in the benchmarks' page."""

import re

import pytest

from tests.support.blocks import ROOT, pages

#: Pages that tests or scripts write by themselves, and definitions of what is logged.
OTHERS = {"compatibility.md", "tested-with.md", "products.md", "faults.md", "licences.md", "logged-names.md"}
PAGES = [page for page in pages() if page.name not in OTHERS]
#: What is measured: a number with a unit, or a decimal with two places; no version and no name.
BEFORE = r"(?<![\w.`/-])(?<!Python )"
UNITS = ("x", "%", "times", "ms", "nats", "MiB", "seconds", "s of")
FIGURE = re.compile(rf"{BEFORE}(?:\d*\.)?\d+\s?(?:{'|'.join(UNITS)})(?!\w)|{BEFORE}\d*\.\d{{2,}}\b(?!\.\d)")
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
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`|<!--.*?-->|\$\$.*?\$\$|^(?: {4}|\t).*$", re.MULTILINE | re.DOTALL)


def sections(text):
    """(heading, text) of each section, the text with the code that it quotes and without."""
    parts = re.split(r"^(#+ .*)$", text, flags=re.MULTILINE)
    yield from zip(["", *parts[1::2]], parts[0::2], strict=True)


def unsourced(text):
    """Sections that have figures, and nothing that reproduces them."""
    return [
        (heading, found[0])
        for heading, part in sections(text)
        if (found := FIGURE.findall(CODE.sub("", part))) and not SOURCE.search(part)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_figures_stand_with_what_reproduces_them(page):
    assert unsourced(page.read_text()) == []


@pytest.mark.parametrize("said", ["It takes 1.4x as long.", "37 % less", "in 3 ms", "ends at .129", "| 2.04 | 1.9 |"])
def test_a_figure_without_a_source_is_found(said):
    assert unsourced(f"# Page\n\n{said}\n") == [("# Page", FIGURE.search(said)[0])]
    assert unsourced(f"# Page\n\n{said} (`python -m benchmarks.steps.ddp`)\n") == []
    assert unsourced(f"# Page\n\n{said}\n\n## Next\n\n`python -m benchmarks.steps.ddp`\n") != []


@pytest.mark.parametrize("said", ["Python 3.11", "torch 2.13.0", "step 50", "`lr=0.01`", "[1.2](docs/a.md)"])
def test_versions_numbers_of_steps_and_code_are_no_figures(said):
    assert unsourced(f"# Page\n\n{said}\n") == []
