"""The command `lightning-so plan`: what it foretells is what a training holds, and bad input is one line."""

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo, attach
from lightning_so.cli.__main__ import main
from lightning_so.cli.planning.forecast import Asked, forecast
from lightning_so.cli.planning.job import Made
from lightning_so.cli.planning.world import World
from lightning_so.core.options import Options
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.trust.memory import state_bytes
from tests.support.forked import ROOT
from tests.support.recipes import Module

SOAP_CONFIG = str(ROOT / "configs" / "soap_byte_lm.yaml")
CLASSES = ["--model", "examples.byte_lm.ByteLM", "--data", "examples.byte_lm.ByteText"]
CURVATURE = ("factors", "bases and roots", "saved weights", "work space")


def asked(method, world=None, tokens=None):
    options = Options(Mixture.of(method))
    return Asked(lambda: Made(Module(), None), "Module", options, world or World(), torch.device("cpu"), tokens)


def trained(method, steps=8):
    """An engine after some steps of a real training, and its module."""
    torch.manual_seed(0)
    module = Module()
    optimizer = module.configure_optimizers()
    engine = attach(module, optimizer, method)
    from tests.support.problems import batch

    for step in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(batch(step), step)
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()
    return engine, module, optimizer


@pytest.mark.parametrize(
    "method", [SOAP(start=2), KFAC(), EKFAC(), Muon(), pytest.param(Shampoo(), marks=pytest.mark.slow)], ids=str
)
def test_bytes_are_those_of_a_training(method):
    engine, module, optimizer = trained(method)
    (found,) = forecast(asked(method)).memory.values()
    assert found["weights"] == sum(p.nbytes for p in module.parameters())
    assert found["gradients"] == sum(p.grad.nbytes for p in module.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert found["optimizer's moments"] == sum(value.nbytes for value in states)
    held = state_bytes(engine.parts.units, engine.parts.matrices)
    assert sum(found[part] for part in CURVATURE) == pytest.approx(held, rel=0.02)


def run(capsys, *arguments):
    status = main(["plan", *arguments])
    return status, capsys.readouterr().out


def test_the_verdict_comes_first_and_exit_status_says_it(capsys):
    status, out = run(capsys, SOAP_CONFIG, *CLASSES, "--tokens", "1024")
    assert status == 0
    assert out.startswith("fits: ")
    assert "x the training's own" in out.splitlines()[0]
    for part in ("Memory of a rank", "Size of a checkpoint", "model.head.weight"):
        assert part in out
