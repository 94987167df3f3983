"""What an import brings: no more than is asked for, and all that is expected of it."""

import os
import subprocess
import sys

import pytest

import lightning_so
from lightning_so.cli.parser import found, whole
from tests.support.forked import ROOT

HEAVY = "print(sorted({'torch', 'pytorch_lightning', 'lightning'} & {*sys.modules}))"
HELP = """
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from lightning_so.cli.__main__ import main
for arguments in ASKED:
    with suppress(SystemExit), redirect_stdout(StringIO()) as out, redirect_stderr(out):
        main(arguments)
    assert "lightning-so" in out.getvalue(), (arguments, out.getvalue())
"""
REGISTERED = """
import pytorch_lightning.strategies as one, lightning.pytorch.strategies as other
for theirs in (one, other):
    assert {"ddp_so", "fsdp_so", "deepspeed_so_stage_1"} <= {*theirs.StrategyRegistry.available_strategies()}
print([each for each in sys.meta_path if type(each).__name__ == "Awaited"])
"""


def said(*lines: str) -> str:
    """What a Python of its own prints."""
    command = [sys.executable, "-c", "\n".join(["import sys", *lines])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_alone_imports_no_torch():
    assert said("import lightning_so as so; dir(so), so.strategies, so.__version__, so.__all__", HEAVY) == "[]"


def test_help_imports_no_torch():
    asked = [["--help"], ["no-such"], *([name, "--help"] for name, function in found().items() if not whole(function))]
    assert ["plan", "--help"] in asked
    assert said(f"ASKED = {asked}", HELP, HEAVY) == "[]"


def test_every_name_is_there():
    assert {"SOAP", "attach", "__version__"} <= {*lightning_so.__all__} <= {*dir(lightning_so)}
    everything = {}
    exec("from lightning_so import *", everything)
    assert {*lightning_so.__all__} <= {*everything}
    assert everything["SOAP"] is lightning_so.SOAP
    with pytest.raises(AttributeError, match="module 'lightning_so' has no attribute 'SOUP'"):
        lightning_so.SOUP  # noqa: B018


@pytest.mark.slow
def test_a_plain_loop_needs_no_lightning():
    assert said("from lightning_so import SOAP, KFAC, Mixture, attach", HEAVY) == "['torch']"


@pytest.mark.slow
@pytest.mark.parametrize("door", [" import attach", ".callbacks.second_order import SecondOrder"])
def test_methods_have_names_whatever_was_imported(door):
    names = "from lightning_so.contract.known import KNOWN; print(*sorted(KNOWN))"
    assert said(f"from lightning_so{door}", names) == "ekfac kfac muon shampoo soap"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", "import pytorch_lightning, lightning.pytorch"], ids=["ours", "Lightning"])
def test_strategies_have_names_whoever_is_imported_first(first):
    assert said(first, "import lightning_so", REGISTERED) == "[]"
