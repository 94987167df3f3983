"""Writes docs/faults.md from the results of tests of faults: python -m tests.support.faults_page build/faults.xml."""

import sys
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = """# Faults

This page has what goes wrong in the tests, for real, and what was seen when `make faults` ran. Each row is what a
test has measured and checked; `pytest -m fault` runs them all. "Bit for bit" compares final weights with those of a
training that nothing happened to.

| fault | what was seen | test |
|---|---|---|
"""


def rows(*results: Path) -> list[tuple[str, str, str]]:
    """(fault, what was seen, test) of every test that has passed, in the order of the faults' names."""
    found = []
    for case in (case for file in results for case in ElementTree.parse(file).iter("testcase")):
        noted = [(each.get("name"), each.get("value") or "") for each in case.iter("property")]
        said = "; ".join(value for name, value in noted if name == "seen")
        fault = next((value for name, value in noted if name == "fault"), None)
        if fault is None or not said or case.find("failure") is not None or case.find("error") is not None:
            continue
        path = (case.get("classname") or "").replace(".", "/") + ".py"
        found.append((fault, said, f"{path}::{(case.get('name') or '').split('[')[0]}"))
    return sorted(set(found))


def text(found: list[tuple[str, str, str]]) -> str:
    """The page."""
    return HEAD + "".join(f"| {fault} | {said} | `{test}` |\n" for fault, said, test in found)


if __name__ == "__main__":
    PAGE.write_text(text(rows(*map(Path, sys.argv[1:]))))
    print(f"{PAGE}: {len(PAGE.read_text().splitlines()) - len(HEAD.splitlines())} rows")
