"""LightningCLI builds our objects from the YAML files that the project ships, and says no to bad ones."""

from pathlib import Path

import pytest
from pytorch_lightning.cli import LightningCLI

from examples.autoencoder import Autoencoder, Digits
from examples.byte_lm import ByteLM, ByteText
from examples.pinn import PINN, Points
from lightning_so import (
    KFAC,
    SOAP,
    FewDirections,
    LevenbergMarquardt,
    MatrixFree,
    Mixture,
    Muon,
    SecondOrder,
    Synchronous,
)

CONFIGS = Path(__file__).parents[2] / "configs"


def parse(*arguments):
    cli = LightningCLI(ByteLM, ByteText, run=False, save_config_callback=None, args=list(arguments))
    return next(c for c in cli.trainer.callbacks if isinstance(c, SecondOrder)), cli


RULES = Mixture({"LayerNorm": "base", "Linear": KFAC(), "*": SOAP()})


@pytest.mark.parametrize(("name", "method"), [("soap", SOAP()), ("muon", Muon()), ("mixture", RULES)])
def test_shipped_configurations(name, method):
    callback, _ = parse("--config", str(CONFIGS / f"{name}_byte_lm.yaml"))
    assert callback.method == method


def test_methods_on_the_whole_vector_from_yaml():
    arguments = ["--config", str(CONFIGS / "few_directions_byte_lm.yaml")]
    cli = LightningCLI(ByteLM, ByteText, run=False, save_config_callback=None, args=arguments)
    assert next(c for c in cli.trainer.callbacks if isinstance(c, MatrixFree)).method == FewDirections()


@pytest.mark.slow
@pytest.mark.parametrize("equation", ["poisson", "burgers"])
def test_physics_informed_networks_from_yaml(equation, tmp_path):
    cli = LightningCLI(
        PINN, Points, run=False, save_config_callback=None,
        args=["--config", str(CONFIGS / f"levenberg_{equation}.yaml"), "--trainer.max_steps=40",
              "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false",
              f"--trainer.default_root_dir={tmp_path}"],
    )  # fmt: skip
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, MatrixFree))
    assert callback.method == LevenbergMarquardt()
    cli.trainer.fit(cli.model, cli.datamodule)
    assert float(cli.trainer.callback_metrics["relative_error"]) < 5.0
    # Every residual was differentiated by row.
    rows = cli.datamodule.boundary * 5
    assert callback.engine.scalars()["curv/by_row"] == rows


def test_the_autoencoders_configuration_holds_the_defaults():
    arguments = ["--config", str(CONFIGS / "kfac_autoencoder.yaml")]
    cli = LightningCLI(Autoencoder, Digits, run=False, save_config_callback=None, args=arguments)
    assert next(c for c in cli.trainer.callbacks if isinstance(c, SecondOrder)).method == KFAC()


def test_the_schedule_in_yaml_is_the_one_that_is_built(tmp_path):
    text = (CONFIGS / "soap_byte_lm.yaml").read_text().replace("lightning_so.Staggered", "lightning_so.Synchronous")
    (tmp_path / "c.yaml").write_text(text)
    callback, _ = parse("--config", str(tmp_path / "c.yaml"))
    assert callback.method.schedule == Synchronous()


def test_command_line_flags():
    callback, _ = parse(
        "--trainer.callbacks+=lightning_so.SecondOrder",
        "--trainer.callbacks.method=lightning_so.SOAP",
        "--trainer.callbacks.method.period=8",
    )
    assert callback.method == SOAP(period=8)


def test_a_route_with_counts_from_yaml(tmp_path):
    text = (CONFIGS / "soap_byte_lm.yaml").read_text()
    method = "        method:\n"
    assert method in text
    split = f'        route: {{split: {{"*.qkv.weight": 3}}, base: ["*.lora_*"]}}\n{method}'
    (tmp_path / "c.yaml").write_text(text.replace(method, split))
    callback, _ = parse("--config", str(tmp_path / "c.yaml"))
    assert callback.options.route == {"split": {"*.qkv.weight": 3}, "base": ["*.lora_*"]}


def test_a_bad_value_is_named(capsys):
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse("--trainer.callbacks+=lightning_so.SecondOrder", "--trainer.callbacks.method=lightning_so.SOAP",
              "--trainer.callbacks.method.beta=2.0")  # fmt: skip
    assert "beta must be a number in [0, 1)" in str(caught.value) + capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["soap", "mixture"])
def test_fit_from_yaml(tmp_path, name):
    callback, cli = parse(
        "--config", str(CONFIGS / f"{name}_byte_lm.yaml"), "--trainer.max_steps=6", "--trainer.val_check_interval=6",
        "--trainer.limit_val_batches=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
        "--trainer.enable_checkpointing=false", f"--trainer.default_root_dir={tmp_path}",
    )  # fmt: skip
    cli.trainer.fit(cli.model, cli.datamodule)
    assert callback.engines[0].report.step == 6
    assert callback.engines[0].report.bent == 12
