"""Figures, their files and their commands belong together: none is named that is gone, none is there without a name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
FIGURES = BENCHMARKS / "README.md"
PAGES = [FIGURES, ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = {path.name: path for path in sorted(BENCHMARKS.glob("**/results/*"))}


def named(pattern, pages):
    """What a pattern finds, and the page that has it."""
    return {
        (word, page.relative_to(ROOT).as_posix()) for page in pages for word in re.findall(pattern, page.read_text())
    }


def test_every_result_is_named_on_a_page():
    words = {Path(word).name for word, _ in named(r"[\w./-]+\.jsonl", PAGES)}
    assert [str(path.relative_to(ROOT)) for name, path in RESULTS.items() if name not in words] == []


def test_results_have_names_of_their_own():
    assert len(RESULTS) == len([*BENCHMARKS.glob("**/results/*")])


def test_every_result_that_is_named_is_there():
    gone = [
        (word, page)
        for word, page in named(r"[\w./-]+\.jsonl", PAGES)
        if not (("/" in word and ((ROOT / page).parent / word).exists()) or (ROOT / word).exists() or word in RESULTS)
    ]
    assert gone == []


def test_every_module_of_a_command_is_there():
    pages = [*PAGES, ROOT / "Makefile", *sorted(BENCHMARKS.glob("**/*.py"))]
    gone = [
        (module, page)
        for module, page in named(r"-m\s+(benchmarks[\w.]*)", pages)
        if not any((ROOT / f"{module.replace('.', '/')}{end}").exists() for end in (".py", "/__main__.py"))
    ]
    assert gone == []


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in BENCHMARKS.glob("*/__init__.py")))
def test_every_script_is_in_the_table(folder):
    scripts = [path.name for path in (BENCHMARKS / folder).glob("*.py") if path.name != "__init__.py"]
    assert [script for script in scripts if f"`{script}`" not in FIGURES.read_text().replace("shared/", "")] == []


def test_every_heading_that_is_linked_is_there():
    heads = re.findall(r"^#+ (.*)$", FIGURES.read_text(), re.M)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    linked = named(r"benchmarks/README\.md#([\w-]+)", PAGES) | named(r"\]\(#([\w-]+)\)", [FIGURES])
    assert sorted((anchor, page) for anchor, page in linked if anchor not in anchors) == []
