"""The command `lightning-so`: exit status, what it prints, and what it says to wrong configurations."""

import functools
import os
import subprocess
import sys

import pytest

from lightning_so import resume_check
from lightning_so.callbacks.resume.launch import this_process
from lightning_so.cli.__main__ import main
from lightning_so.cli.commands.launch import _submitit
from lightning_so.cli.parser import found
from lightning_so.errors import MissingError
from tests.support.forked import ROOT, module

SOAP = ROOT / "configs" / "soap_byte_lm.yaml"
CLASSES = ["--model", "examples.byte_lm.ByteLM", "--data", "examples.byte_lm.ByteText"]
CONFIG = """
seed_everything: 0
trainer:
  accelerator: cpu
  max_epochs: 9
  logger: true
  callbacks:
    - class_path: lightning_so.SecondOrder
      init_args:
        method: {class_path: lightning_so.SOAP, init_args: {start: 10, period: 4}}
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
    - class_path: pytorch_lightning.callbacks.LearningRateMonitor
model: {class_path: tests.support.recipes.Sharing}
data: {class_path: tests.support.recipes.Data}
ckpt_path: null
"""


@pytest.fixture
def run(tmp_path):
    return lambda *arguments: module(tmp_path, "lightning_so.cli", "resume-check", *arguments)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path / "config.yaml"


@pytest.mark.slow
def test_the_shipped_configuration_resumes_bit_for_bit(run):
    small = ["--model.d=32", "--model.layers=1", "--trainer.callbacks.method.start=10"]
    # The epoch ends where the run stops: its loader is a plain one.
    limits = ["--trainer.limit_train_batches=12", "--trainer.limit_val_batches=0"]
    done = run("--config", SOAP, *CLASSES, "--steps", 20, "--stop", 12, "--", *small, *limits)
    assert done.returncode == 0, done.stderr
    assert "EQUAL, bit for bit (20 steps, against 12, a checkpoint and 8)" in done.stdout
    assert "9 blocks rotated" in done.stdout


def test_a_plain_loader_and_a_callback_that_is_gone_are_found_out(config, capsys, monkeypatch):
    here = functools.partial(resume_check, launch=this_process)
    monkeypatch.setattr("lightning_so.callbacks.resume.check.resume_check", here)
    more = ["--resume-with=--trainer.callbacks=null", "--", "--data.init_args.resumable=false"]
    assert main(["resume-check", "--config", str(config), "--steps=12", "--stop=6", *more]) == 1
    said = capsys.readouterr().out
    assert "the batches differ: at step 7 the resumed run saw the batch of step 1" in said
    assert "state differs: the resumed run has no SecondOrder" in said


@pytest.mark.slow
def test_two_ranks_go_on_in_one(run, config):
    first, then = ["--devices=2", "--strategy=ddp"], ["--resume-devices=1", "--resume-strategy=auto"]
    sampler = ["--", "--trainer.use_distributed_sampler=false"]
    done = run("--config", config, "--steps=20", "--stop=12", *first, *then, "--tolerance=1e-5", *sampler)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "without a stop: 2 rank(s), DDPStrategy; resumed: 1 rank(s), SingleDeviceStrategy" in done.stdout
    assert "EQUAL" in done.stdout


@pytest.mark.slow
def test_a_value_that_a_method_refuses_is_named(run, config):
    config.write_text(CONFIG.replace("period: 4", "beta: 2.0"))
    done = run("--config", config, "--steps=4", "--stop=2")
    assert done.returncode == 2
    assert "resume-check: the run without a stop failed: " in done.stderr
    assert "SOAP(beta=2.0): beta must be a number in [0, 1)" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model: {class_path: tests.support.recipes.Sharing}", "", "Give its name (--model package.module.Class"),
        ("data: {class_path: tests.support.recipes.Data}", "data: {resumable: true}", "(--data package.module.Class)"),
        ("recipes.Sharing", "recipes.Missing", "start from the project's root, or set PYTHONPATH"),
        ("recipes.Sharing", "recipes.Samples", "is no LightningModule"),
        ("max_epochs", "max_epoch", "max_epoch"),
        ("seed_everything: 0", "seed_everything: [", "cannot be read as YAML"),
    ],
    ids=["model", "data", "import", "class", "key", "yaml"],
)
def test_a_wrong_configuration_is_status_2_and_says_the_next_move(old, new, words, config, capsys):
    config.write_text(CONFIG.replace(old, new))
    assert main(["resume-check", "--config", str(config), "--steps=4", "--stop=2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lightning-so resume-check: ")
    assert words in said


def test_wrong_arguments_are_status_2(config, capsys):
    for arguments in ([], ["resume-chek"], ["resume-check", "--config", str(config), "--steps=4"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert main(["resume-check", "--config", str(config), "--steps=4", "--stop=4"]) == 2
    assert "stop must lie between 0 and steps" in capsys.readouterr().err


def test_every_command_explains_itself(capsys):
    assert "resume-check" in found()
    for name in found():
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        said = capsys.readouterr().out
        assert "Exit status" in said.replace("\n", " ")
        assert f"lightning-so {name} " in said.partition("Examples:")[2]


def test_what_is_unexpected_is_not_a_verdict(config, monkeypatch, capsys):
    monkeypatch.setattr("lightning_so.callbacks.resume.check.resume_check", lambda *_, **__: 1 / 0)
    assert main(["resume-check", "--config", str(config), "--steps=4", "--stop=2"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_what_is_missing_is_had_from_a_clone(monkeypatch, capsys):
    """The package's name on a registry is nobody's until it is published."""
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["doctor"]) == 2
    assert "pip install '.[cli]' in a clone of lightning_so" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingError, match=r"launch needs submitit: pip install '\.\[slurm\]' in a clone"):
        _submitit()
    sources = [path.read_text() for room in ("lightning_so", "docs", "examples") for path in (ROOT / room).rglob("*.*")
               if path.suffix in (".py", ".md") and path.name != "licences.md"]  # fmt: skip
    assert not [text for text in sources if "install 'lightning-so[" in text or "install lightning-so" in text]


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error():
    said = (
        "from lightning_so.cli.__main__ import _run; raise SystemExit(_run('x', lambda: print('a' * 10**6) or 0, {}))"
    )
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-c", said], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (2, "")
