"""Every relative link of the pages points to a file that exists, and its anchor to a heading that is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^()\s]+)\)")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> Iterator[str]:
    """Of every heading, what GitHub calls it: letters, digits, "-" and "_", in lower case; again with "-1", "-2"."""
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", CODE.sub("", text), re.MULTILINE):
        said = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", said.lower()).replace(" ", "-")
        again = seen[name] = seen.get(name, -1) + 1
        yield f"{name}-{again}" if again else name
    yield from re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)  # Of what is generated from a docstring.


def links(text: str) -> list[str]:
    """Where the links of a page go that are relative, in code no more than text."""
    found = LINK.findall(re.sub(r"`[^`\n]*`", "code", CODE.sub("", text)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def broken(page: Path, text: str) -> list[str]:
    """Links of a page that go nowhere.

    Args:
        page: Where the page is.
        text: What it says.

    Returns:
        They, as they are written.
    """
    found = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path
        if path and not target.exists():
            found.append(link)
        elif anchor and anchor not in anchors(target.read_text() if path else text):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_go_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_there_are_links() -> None:
    assert sum(len(links(page.read_text())) for page in PAGES) > 50


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    pages = {path.relative_to(index.parent).as_posix() for path in index.parent.rglob("*.md")} - {index.name}
    assert pages - set(links(index.read_text())) == set()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent != ROOT], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_first_paragraph_says_what_the_page_is_for(page: Path) -> None:
    title, first = [part for part in page.read_text().split("\n\n") if part.strip()][:2]
    assert title.startswith("# ")
    assert "This page " in first


@pytest.mark.parametrize(
    "link",
    ["gone.md", "explanation/plan.md#gone", "#gone", "../gone/README.md", "gone.png", "lessons.md#Why"],
)
def test_links_that_go_nowhere_are_found(link: str) -> None:
    text = f"# Here\n\nSee [`this` [one]]({link}), or ![it]({link}).\n"
    assert broken(ROOT / "docs" / "page.md", text) == [link, link]


@pytest.mark.parametrize(
    "link",
    ["lessons.md", "#heres-2-see-it", "../benchmarks/README.md#steps", "explanation/plan.md#the-plan", "../docs"],
)
def test_links_that_go_somewhere_are_let_pass(link: str) -> None:
    text = f"# Here's 2: `see` [it](lessons.md)!\n\n[x]({link}) `[code](gone.md)`\n\n```\n[y](gone.md)\n# gone\n```\n"
    assert broken(ROOT / "docs" / "page.md", text) == []


def test_headings_of_one_name_are_numbered() -> None:
    assert list(anchors("# A b\n\n## A b\n\n## A_b-c: d / e\n")) == ["a-b", "a-b-1", "a_b-c-d--e"]
