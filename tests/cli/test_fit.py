"""The command `lightning-so fit`: what it wires in, what it leaves to LightningCLI, and what it says to bad input."""

import functools
import shutil
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import yaml
from torch.utils.data import DataLoader

from lightning_so import KFAC, SOAP, FewDirections, MatrixFree, Mixture, Muon, SecondOrder
from lightning_so.cli.__main__ import main
from lightning_so.cli.recipe import Config
from tests.support.forked import ROOT
from tests.support.recipes import Data, Module, Sharing

PARTS = """
model: {class_path: tests.support.recipes.Sharing}
data: {class_path: tests.support.recipes.Data}
trainer: {max_steps: 2, accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false}
"""
OURS = "{class_path: lightning_so.SecondOrder, init_args: {method: {class_path: lightning_so.Muon}}}"
WHOLE = "{class_path: lightning_so.MatrixFree, init_args: {method: {class_path: lightning_so.FewDirections}}}"
RULES = """{class_path: lightning_so.Mixture, init_args: {rules: {
  LayerNorm: base, Linear: {class_path: lightning_so.KFAC, init_args: {period: 7}}, "*": soap}}}"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What a call of the command has the Trainer fit, which it does not: Trainer and arguments of `fit`."""
    seen = []

    @functools.wraps(pl.Trainer.fit)
    def fit(self, *given, **named):
        seen.append((self, named))

    monkeypatch.setattr(pl.Trainer, "fit", fit)

    def ask(more, *arguments, parts=PARTS):
        (tmp_path / "my.yaml").write_text(parts + more)
        assert main(["fit", "--config", str(tmp_path / "my.yaml"), *arguments]) == 0
        return seen.pop()

    return ask


def ours(trainer):
    return [each for each in trainer.callbacks if isinstance(each, SecondOrder | MatrixFree)]


def test_the_callback_is_there_without_being_named(asked):
    trainer, named = asked("")
    (callback,) = ours(trainer)
    assert (callback.method, trainer.callbacks[0]) == (None, callback)
    assert (type(named["model"]), type(named["datamodule"])) == (Sharing, Data)
    assert trainer.max_steps == 2


def test_its_arguments_have_a_key(asked):
    route = {"base": ["*.lora_*"], "split": {"*.qkv.weight": 3}}
    trainer, _ = asked(yaml.dump({"second_order": {"method": "soap", "route": route, "max_overhead": 0.1}}))
    (callback,) = ours(trainer)
    assert callback.method == SOAP()
    assert (callback.options.route, callback.options.overhead.share) == (route, 0.1)


def test_rules_by_parameter_name(asked):
    (callback,) = ours(asked(f"second_order: {{method: {RULES}}}")[0])
    assert callback.method == Mixture({"LayerNorm": "base", "Linear": KFAC(period=7), "*": SOAP()})


def test_what_the_file_lists_stays_alone(asked):
    for listed, kind in ((OURS, Muon), (WHOLE, FewDirections)):
        parts = PARTS.replace("max_steps: 2", f"max_steps: 2, callbacks: [{listed}]")
        (callback,) = ours(asked("", parts=parts)[0])
        assert type(callback.method) is kind


def test_false_leaves_it_out(asked):
    assert ours(asked("second_order: false")[0]) == []
    assert ours(asked("", "--second_order=false")[0]) == []


def test_the_command_line_goes_before_the_file(asked, tmp_path):
    trainer, _ = asked("second_order: {method: soap, lag: 1}", "--method", "Muon", "--trainer.max_steps", "5")
    (callback,) = ours(trainer)
    assert (callback.method, callback.options.lag, trainer.max_steps) == (Muon(), 1, 5)
    # Wherever the file stands; and a method of the command line may have arguments.
    (tmp_path / "more.yaml").write_text("trainer: {max_steps: 9}")
    trainer, _ = asked("", "--method=lightning_so.KFAC", "--method.period=3", "--trainer.max_steps=5",
                       "-c", str(tmp_path / "more.yaml"))  # fmt: skip
    assert (ours(trainer)[0].method, trainer.max_steps) == (KFAC(period=3), 5)


def test_classes_may_be_named_on_the_command_line_alone(asked):
    classes = ["--model", "tests.support.recipes.Module", "--data=tests.support.recipes.Data"]
    without = PARTS.replace("{class_path: tests.support.recipes.Sharing}", "{}").replace(
        "{class_path: tests.support.recipes.Data}", "{resumable: false}"
    )
    _, named = asked("", *classes, parts=without)
    assert (type(named["model"]), named["datamodule"].loader) == (Module, DataLoader)
    # They go before what the file names.
    _, named = asked("", *classes)
    assert type(named["model"]) is Module


def test_a_configuration_that_was_printed_is_a_configuration(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(PARTS)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", str(tmp_path / "my.yaml"), "--method", "soap", "--print_config"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["second_order"]["method"] == "soap"
    (tmp_path / "printed.yaml").write_text(printed)
    # Others read it too: a resume check has the callback, from the key.
    _, _, trainer = Config(tmp_path / "printed.yaml")()
    assert [each.method for each in trainer["callbacks"]] == [SOAP()]
    (tmp_path / "printed.yaml").write_text(PARTS)
    assert Config(tmp_path / "printed.yaml")()[2]["callbacks"] == []


@pytest.mark.parametrize(
    ("more", "arguments", "words"),
    [
        ("trainr: {max_steps: 1}", [], "trainr"),
        ("", ["--trainer.max_stepz=1"], "--trainer.max_stepz=1"),
        ("", ["--model.wdth=1"], "Option 'wdth' is not accepted"),
        ("", ["--model=tests.support.recipes.Missing"], "start from the project's root, or set PYTHONPATH"),
        ("", ["--model=tests.support.recipes.Samples"], "is no LightningModule"),
        ("", ["--method=soapp"], "second_order.method='soapp': there is no such method; there are"),
        ("second_order: {lagg: 1}", [], "(lightning-so fit --second_order.help lists what there is.)"),
        (
            "second_order: {method: soap, period: 9}",
            [],
            "'period' is not accepted. Those with arguments are {class_path: ",
        ),
        ("second_order: {lag: 3}", [], "SecondOrder(lag=3)"),
        ("second_order: {method: soap}", ["--trainer.callbacks+=lightning_so.SecondOrder"], "one of them must go"),
        ("", ["--trainer.devices=-3"], "the configuration does not build: "),
        ("", [f"--model={__name__}.Broken"], "no such width (" + __file__),
        ("model: [", [], "cannot be read as YAML"),
        ("", ["--config=gone.yaml"], "gone.yaml cannot be read: it is not there."),
    ],
)
def test_bad_input_is_one_line_and_status_2(more, arguments, words, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(PARTS + more)
    assert main(["fit", "--config", str(tmp_path / "my.yaml"), *arguments]) == 2
    said = [each for each in capsys.readouterr().err.splitlines() if not each.startswith("Seed set to")]
    assert len(said) == 1, said
    assert said[0].startswith("lightning-so fit: ")
    assert words in said[0]


def test_the_key_has_a_help_of_its_own(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--second_order.help"])
    assert not end.value.code
    assert "--second_order.max_overhead" in capsys.readouterr().out


def test_a_model_is_asked_for(capsys):
    assert main(["fit", "--trainer.max_steps=3"]) == 2
    assert "give --model package.Module" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch_lightning", "lightning.pytorch"])
def test_modules_of_both_lightnings_are_trained(name, tmp_path, capsys):
    boring = f"{name}.demos.boring_classes"
    line = ["--model", f"{boring}.BoringModel", "--data", f"{boring}.BoringDataModule", "--trainer.accelerator=cpu",
            f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0",
            "--trainer.enable_progress_bar=false", "--trainer.logger=false"]  # fmt: skip
    assert main(["fit", *line, "--trainer.max_steps=3", "--method=kfac"]) == 0
    said = capsys.readouterr().out
    assert "on SGD: 3 steps, 0 skipped" in said
    # LightningCLI's own arguments of fit: it goes on.
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert main(["fit", *line, "--trainer.max_steps=5", "--method=kfac", "--ckpt_path", str(checkpoint)]) == 0
    assert "on SGD: 5 steps, 0 skipped" in capsys.readouterr().out


class Broken(Sharing):
    """Cannot be made."""

    def __init__(self):
        raise RuntimeError("no such width")


class Wrong(Sharing):
    """Has a mistake in its training."""

    def training_step(self, batch, batch_idx):
        """The mistake."""
        return batch["x"]


@pytest.mark.slow
def test_a_mistake_of_the_training_keeps_its_traceback(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(PARTS)
    assert main(["fit", "--config", str(tmp_path / "my.yaml"), "--model", f"{__name__}.Wrong",
                 f"--trainer.default_root_dir={tmp_path}"]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert 'return batch["x"]' in said


def completed(script, *words):
    """What bash makes of words that were typed."""
    typed = " ".join(words)
    line = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_lightning_so; " \
           'printf "%s\\n" "${COMPREPLY[@]}"'  # fmt: skip
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60).stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes_commands_and_options(tmp_path):
    # In a process of its own, as a user has it: all subclasses of what options take are among their values, and a
    # process of tests has imported more of them than anyone waits for.
    with (tmp_path / "script").open("w") as script:
        command = [sys.executable, "-m", "lightning_so.cli", "completion", "bash"]
        subprocess.run(command, stdout=script, check=True, cwd=ROOT, timeout=120)
    assert completed(tmp_path / "script", "lightning-so", "fi") == ["fit"]
    assert "--second_order.max_overhead" in completed(tmp_path / "script", "lightning-so", "fit", "--second_order.m")
    assert completed(tmp_path / "script", "lightning-so", "doctor", "--chec") == ["--checkpoint"]


def test_completion_needs_what_writes_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install '.[cli]' in a clone of lightning_so" in capsys.readouterr().err
