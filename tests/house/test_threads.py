"""The catalogue of situations: every test of it names the public thread that it came from, or says "own"."""

import ast
import re
from pathlib import Path

import pytest

TOGETHER = Path(__file__).parents[1] / "together"
CATALOGUE = ("situations", "fsdp2_situations", "survival", "models", "subclasses", "pina")
THREAD = re.compile(r"own|[\w.-]+/[\w.-]+#\d+")


def named(function):
    """What a test's marker says."""
    for mark in function.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.thread":
            return ast.literal_eval(mark.args[0])
    return ""


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_situation_names_its_thread(name):
    tree = ast.parse((TOGETHER / f"test_{name}.py").read_text())
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert tests
    lost = [test.name for test in tests if not THREAD.fullmatch(named(test))]
    assert not lost, "say where they are from: @pytest.mark.thread('owner/repository#number'), or 'own'"


def test_the_catalogue_is_mostly_of_threads():
    text = "".join((TOGETHER / f"test_{name}.py").read_text() for name in CATALOGUE)
    threads = re.findall(r'mark\.thread\("(.+?)"\)', text)
    assert sum(thread != "own" for thread in threads) > len(threads) / 2
