"""docs/errors.md quotes texts that the package has."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
HOLE = "\0"  # A name or a number that is put in.


def texts() -> list[str]:
    """Every text of the package's source, adjacent ones as one, with holes where something is put in."""
    found = []
    for path in (ROOT / "lightning_so").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else HOLE for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted(page: str) -> list[str]:
    """What the page says that an error says."""
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def missing(page: str) -> list[str]:
    """What no text of the package says."""
    known = texts()
    patterns = {said: re.compile(".*".join(map(re.escape, said.split("…"))), re.DOTALL) for said in quoted(page)}
    return [said for said, pattern in patterns.items() if not any(pattern.search(text) for text in known)]


def test_every_text_is_one_of_the_package() -> None:
    assert len(quoted(PAGE)) > 30
    assert missing(PAGE) == []


def test_a_text_that_nobody_says_is_found() -> None:
    assert missing("| `coverage is 0: … works on all` | x | y |\n") == ["coverage is 0: … works on all"]
