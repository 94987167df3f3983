"""Physics-informed networks of PINA (mathLab/PINA) train with our methods: every input of theirs is a LabelTensor."""

import sys

import pytest
import torch

from lightning_so import KFAC, SOAP, LevenbergMarquardt, MatrixFree, NewtonCG, SecondOrder
from tests.support.peers import PEERS

pytestmark = pytest.mark.slow
SGD, ADAM = (torch.optim.SGD, {"lr": 0.01}), (torch.optim.AdamW, {"lr": 5e-3})


@pytest.fixture
def pina(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(PEERS)])
    found = pytest.importorskip("pina", reason="pina is not there: make test puts it into .venv/peers")
    for part in ("model", "optim", "problem.zoo", "solver"):
        pytest.importorskip(f"pina.{part}")
    return found


def noting():
    """A callback that notes the loss of every step."""
    from lightning.pytorch import Callback

    class Notes(Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            self.losses.append(float(outputs["loss"]))

    return Notes()


def trained(pina, base, *callbacks, epochs=12):
    """Losses of the Poisson problem's network, on one batch of points, and its weights."""
    torch.manual_seed(0)
    problem = pina.problem.zoo.Poisson2DSquareProblem()
    problem.discretise_domain(40, "random", domains="D")
    problem.discretise_domain(16, "random", domains="boundary")
    optimizer = pina.optim.TorchOptimizer(base[0], **base[1])
    solver = pina.solver.PINN(problem, pina.model.FeedForward(2, 1, inner_size=12), optimizer=optimizer)
    notes = noting()
    pina.Trainer(
        solver,
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, notes],
        enable_progress_bar=False,
        enable_checkpointing=False,
        logger=False,
    ).train()
    assert all(bool(param.isfinite().all()) for param in solver.parameters())
    return notes.losses


@pytest.mark.thread("PINA-org/PINA#618")
@pytest.mark.parametrize(("method", "base"), [(KFAC(period=2), SGD), (SOAP(period=2, start=2), ADAM)], ids=str)
def test_methods_on_layers(pina, method, base):
    ours = SecondOrder(method, print_plan=False)
    losses = trained(pina, base, ours)
    (engine,) = ours.engines
    assert (engine.report.step, engine.report.skipped, engine.report.failures) == (12, 0, 0)
    assert engine.report.preconditioned + engine.report.rotated == len(engine.plan.blocks) >= 2
    assert losses[-1] < losses[0]


@pytest.mark.thread("PINA-org/PINA#618")
@pytest.mark.parametrize("method", [LevenbergMarquardt(), NewtonCG(iterations=20)], ids=str)
def test_methods_on_the_whole_vector(pina, method):
    ours = MatrixFree(method, verbose=False)
    losses = trained(pina, SGD, ours)
    assert ours.engine.memory.counts.steps == 12
    assert ours.engine.scalars()["curv/failed"] == 0
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < 0.5 * trained(pina, SGD)[-1]
