"""Every block of Python of README and of the site runs, and prints what the page shows; commands and modules exist."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from tests.support import blocks

pytest.importorskip("jsonargparse")
PAGES = [page for page in blocks.pages() if any(fence.kind.startswith("python") for fence in blocks.fences(page))]


def name(page: Path) -> str:
    return page.relative_to(blocks.ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in blocks.ELSEWHERE], ids=name)
@pytest.mark.filterwarnings("default:::lightning_so")
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, printed = blocks.given(), ""
    capsys.readouterr()
    with blocks.ShortTrainer():
        for fence in blocks.fences(page):
            if fence.kind.startswith("python"):
                blocks.run(fence, page, names)
                printed = capsys.readouterr().out
            elif fence.kind.startswith("text title="):
                missing = blocks.unprinted(fence.text, printed)
                assert missing is None, f"not printed:\n{missing}\nbut:\n{printed}"


def test_pages_that_are_tested_elsewhere_are_there():
    assert {name(page) for page in PAGES} >= set(blocks.ELSEWHERE)
    assert all((blocks.ROOT / test).exists() for test in blocks.ELSEWHERE.values())


def lines(page: Path) -> list[str]:
    """The lines of a page's shell blocks."""
    kinds = ("", "sh", "bash", "shell", "console")
    return [line for fence in blocks.fences(page) if fence.kind in kinds for line in fence.text.splitlines()]


def wrong(line: str) -> list[str]:
    """What a command line names that is not there: commands, their options, modules, files of the repository."""
    from lightning_so.cli.parser import found, whole

    gone = []
    for match in re.finditer(r"(?<![\w.-])lightning-so ([a-z-]+)((?: (?!-- )\S+)*)", line):
        if match[1] not in found():
            gone.append(match[0])
            continue
        if whole(found()[match[1]]):
            continue  # It hands on what it does not know.
        known = set(inspect.signature(found()[match[1]]).parameters)
        options = re.findall(r"--([a-z_-]+)", match[2])
        gone += [f"{match[1]} --{option}" for option in options if option.replace("-", "_") not in known]
    for module in re.findall(r"-m ((?:lightning_so|examples|benchmarks|tests|docs)[\w.]*)", line):
        if importlib.util.find_spec(module) is None:
            gone.append(module)
    gone += [
        path for path in re.findall(r"\b((?:configs|docker)/[\w./-]+\w)", line) if not (blocks.ROOT / path).exists()
    ]
    return gone


@pytest.mark.parametrize("page", [page for page in blocks.pages() if lines(page)], ids=name)
def test_what_shell_blocks_name_is_there(page):
    assert [gone for line in lines(page) for gone in wrong(line)] == []


@pytest.mark.parametrize(
    "line",
    ["lightning-so dance", "lightning-so report RUN --againts b", "python -m examples.gone", "x configs/gone.yaml"],
)
def test_what_is_not_there_is_found(line):
    assert wrong(line)


def test_what_is_not_printed_is_found():
    printed = "one 1\ntwo 2.5 s\nthree\n"
    assert blocks.unprinted("one 1\nthree\n", printed) is None
    assert blocks.unprinted("two ... s\n", printed) is None
    assert blocks.unprinted("three\none 1\n", printed) == "one 1"
    assert blocks.unprinted("one 2\n", printed) == "one 2"
