"""docs/errors.md quotes texts that the package has."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
HOLE, BETWEEN = "\0", "\1"  # A name or a number that is put in; what stands between two texts.


@cache
def texts() -> str:
    """Every text of the package's source, adjacent ones as one, with holes where something is put in."""
    found = []
    for path in (ROOT / "lightning_so").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return BETWEEN.join(found)


def quoted(page: str) -> list[str]:
    """What the page says that an error says."""
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def missing(page: str) -> list[str]:
    """What no text of the package says."""
    anything = f"[^{BETWEEN}]*"
    return [said for said in quoted(page) if not re.search(anything.join(map(re.escape, said.split("…"))), texts())]


def test_every_text_is_one_of_the_package() -> None:
    assert len(quoted(PAGE)) > 30
    assert missing(PAGE) == []


def test_a_text_that_nobody_says_is_found() -> None:
    assert missing("| `coverage is 0: … works on all` | x | y |\n") == ["coverage is 0: … works on all"]
