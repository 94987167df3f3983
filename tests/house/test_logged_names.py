"""docs/reference/logged-names.md has every name that the package logs, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "logged-names.md").read_text()
SOURCE = "\n".join(path.read_text() for path in (ROOT / "lightning_so").rglob("*.py"))


def test_every_name_in_a_source_is_on_the_page() -> None:
    names = set(re.findall(r"""["'`]((?:so|curv|health)/[a-z_0-9]+)["'`]""", SOURCE))
    assert len(names) > 40
    assert names - set(re.findall(r"`([a-z]+/\w+)`", PAGE)) == set()


def test_every_name_on_the_page_is_in_a_source() -> None:
    names = re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE)
    names = [name for cell in names for name in re.findall(r"`(?:so|curv|health)/(\w+)", cell)]
    assert len(names) > 40
    assert [name for name in names if not re.search(rf"""["'`/]{name}["'`/]""", SOURCE)] == []
