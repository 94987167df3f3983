"""docs/licences.md lists every dependency at run time, in the version that constraints.txt pins."""

import re
from pathlib import Path

from tests.support.licences import PAGE, closure, page

PINNED = dict(re.findall(r"^(\S+)==(\S+)$", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.MULTILINE))


def listed():
    return dict(re.findall(r"^\| ([a-z0-9-]+) \| (\d[\w.]*) \|", PAGE.read_text(), re.MULTILINE))


def test_the_page_is_what_the_metadata_say():
    assert PAGE.read_text() == page(), "run: make licences"


def test_every_dependency_is_listed_in_its_pinned_version():
    pinned = {name.lower().replace("_", "-"): version for name, version in PINNED.items()}
    assert set(closure()) == set(listed())
    assert listed() == {name: pinned.get(name) for name in listed()}
    assert {"torch", "pytorch-lightning", "jsonargparse", "matplotlib", "rich"} <= set(listed())


def test_every_licence_is_stated():
    assert "not stated" not in PAGE.read_text()
