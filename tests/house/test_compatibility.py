"""The matrix of what goes together is what the tests have recorded, and they record what they have trained."""

import ast
import subprocess
import sys

import pytest
import torch

from lightning_so import SOAP
from tests.support import compatibility, noted
from tests.support.compatibility import DATA, ROOT, merged, pruned, read, rendered
from tests.support.noted import Ran, Refused
from tests.support.trainings import train

ADAMW = (torch.optim.AdamW, {"lr": 3e-3})
PLAIN = Ran("SOAP", "AdamW", "FSDP2", "32-true", (), "Trainer")
MIXED = Ran("KFAC", "SGD", "DDP", "bf16-mixed", ("accumulation", "clipping"), "plain loop")
NO = Refused("", "", "DeepSpeed", "16-mixed", "", "It cannot be.")


def test_the_page_is_what_the_record_renders_to():
    assert DATA.with_suffix(".md").read_text() == rendered(read()), (
        "write it anew: python -m tests.support.compatibility"
    )


def test_every_cell_has_a_test_that_still_exists(request, found):
    """Where a file was collected whole its tests are known by their parameters, else by their functions."""
    parts = {name.split("::")[0] for name in request.config.args if "::" in name}
    whole, functions = {test.split("::")[0] for test in found} - parts, {}

    def exists(test):
        file, name = test.split("::")
        if file in whole:
            return test in found
        if file not in functions:
            tree = ast.parse((ROOT / file).read_text()) if (ROOT / file).exists() else ast.Module([])
            functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        return name.split("[")[0] in functions[file]

    lost = [note for note, tests in read().notes.items() if not any(map(exists, tests))]
    remedy = "forget them with python -m tests.support.compatibility, or find others with make matrix"
    assert not lost, f"the tests of these are no more: {remedy}"


def test_what_is_noted_is_what_was_trained(two):
    noted.taken()
    more = {"accumulate": 2, "clip": 0.3, "grouped": True, "dtype": torch.float64}
    two.run(train, "fsdp2", SOAP(), ADAMW, steps=1, **more)
    train("one", SOAP(), ADAMW, steps=1)
    train("one", None, ADAMW, steps=1)
    options = ("accumulation", "clipping", "parameter groups")
    one = PLAIN._replace(strategy="one process")
    assert list(noted.NOTES) == [PLAIN._replace(precision="64-true", options=options), one]


INNER = """
import pytest
from tests.support import noted

@pytest.mark.parametrize("number", range(2))
def test_passes(number):
    noted.add([noted.Ran("SOAP", "AdamW", "FSDP2", "32-true", (), "Trainer")])

def test_fails():
    noted.add([noted.Ran("Muon", "AdamW", "DDP", "32-true", (), "Trainer")])
    assert {works}

def test_is_skipped():
    noted.add([noted.Ran("EKFAC", "AdamW", "DDP", "32-true", (), "Trainer")])
    pytest.skip("no")

def test_is_refused():
    noted.refused("It cannot be.\\nUse something else.", strategy="DeepSpeed", precision="16-mixed")
"""


def recorded(path, works, *arguments):
    """What a session of workers writes."""
    file = path / "test_inner.py"
    file.write_text(INNER.replace("{works}", str(works)))
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.recording", "-n", "2", "-c", "/dev/null", "-q"]
    command += ["--rootdir", str(path), f"--compatibility={path / 'found.json'}", str(file), *arguments]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=works)
    return read(path / "found.json").notes


@pytest.mark.slow
def test_tests_that_fail_or_are_skipped_cover_nothing(tmp_path):
    file = "test_inner.py::test_"
    first = {PLAIN: [f"{file}passes[0]", f"{file}passes[1]"], NO: [f"{file}is_refused"]}
    assert recorded(tmp_path, False) == first
    # A part of the tests brings its part of the record up to date.
    assert recorded(tmp_path, True, "-k", "fails") == {
        **first,
        PLAIN._replace(method="Muon", strategy="DDP"): [f"{file}fails"],
    }


def test_a_record_is_merged_pruned_and_shown():
    empty = compatibility.Record({}, {})
    record = merged(empty, {"f::a[1]": [PLAIN, MIXED], "f::a[2]": [PLAIN], "f::b": [NO]}, {"torch": "2"})
    record = merged(record, {"f::a[1]": [MIXED], "f::c": [MIXED]}, {"torch": "3"})
    assert record == ({PLAIN: ["f::a[2]"], MIXED: ["f::a[1]", "f::c"], NO: ["f::b"]}, {"torch": "3"})
    assert pruned(record, {"f::a[2]", "f::c"}).notes == {PLAIN: ["f::a[2]"], MIXED: ["f::c"]}
    zero = PLAIN._replace(strategy="DeepSpeed ZeRO-2")
    page = rendered(merged(record, {"f::d": [zero]}, {"torch": "3"}))
    for line in (
        "Made with torch 3.",
        "| FSDP2 | tested | untested |",  # methods
        "| DDP | untested | tested* |",
        "| DDP | untested | untested | tested: K-FAC* | untested | untested | untested |",  # precisions
        "| DeepSpeed ZeRO-2 | tested: SOAP | untested | untested | untested | refused (1) | untested |",
        "| SGD | untested | tested* |",  # bases
        "| 1 | any method in 16-mixed under DeepSpeed | It cannot be. |",
    ):
        assert line in page, line
    # Of several functions rather than of one.
    assert compatibility.few(["f::a[1]", "f::a[2]", "f::b", "f::c"]) == ["f::a[1]", "f::b"]
    assert compatibility.few(["f::a[1]", "f::a[2]"]) == ["f::a[1]", "f::a[2]"]
