"""docs/faults.md names tests that exist, and every fault that the tests have."""

import ast
from pathlib import Path

from tests.support import faults_page

TESTS = Path(__file__).parents[1]


def marked():
    """By test, the fault that its marker names."""
    found = {}
    for file in TESTS.rglob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    found[f"{file.relative_to(TESTS.parent)}::{node.name}"] = ast.literal_eval(mark.args[0])
    return found


def test_the_page_has_every_fault_and_no_other():
    page = faults_page.PAGE.read_text()
    assert page.startswith(faults_page.HEAD)
    rows = [line.strip("| ").split(" | ") for line in page[len(faults_page.HEAD) :].splitlines()]
    assert {test.strip("`"): fault for fault, _, test in rows} == marked()


def test_rows_are_of_tests_that_have_passed(tmp_path):
    note = '<properties><property name="fault" value="a"/><property name="seen" value="b"/></properties>'
    (tmp_path / "a.xml").write_text(
        f'<s><testcase classname="tests.test_x" name="test_y[1]">{note}</testcase>'
        f'<testcase classname="tests.test_x" name="test_z">{note}<failure/></testcase></s>'
    )
    assert faults_page.rows(tmp_path / "a.xml") == [("a", "b", "tests/test_x.py::test_y")]
