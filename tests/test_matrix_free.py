"""Methods on the whole vector in real trainings: any number of ranks, resumed, beside others; nothing else changes."""

import pytest
import torch

from lightning_so import (
    OGR,
    AutoStep,
    FewDirections,
    MatrixFree,
    QuadraticModel,
)
from tests import trainings

SGD, ADAMW = (torch.optim.SGD, {"lr": 0.1}), (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
METHODS = {
    "few": (FewDirections(k=4, every=1, cap=2.0), ADAMW),
    "regression": (OGR(k=2, cap=2.0), SGD),
    "same batch": (OGR(k=2, cap=2.0, curvature="same-batch", every=2), ADAMW),
    "auto": (AutoStep(every=2), ADAMW),
    "model": (QuadraticModel(every=2), SGD),
}


def trained(strategy, name, beside=None, **options):
    method, base = METHODS[name]
    callback = MatrixFree(method, verbose=False)
    if beside is not None and not isinstance(method, QuadraticModel):
        base = ADAMW
    options = {"dtype": torch.float64, "steps": 12, **options}
    found = trainings.train(strategy, beside, base, callbacks=[callback], **options)
    assert callback.engine.counts.refused == callback.engine.counts.skipped == 0
    return found.weights, callback.engine.scalars(), callback.engine.counts


def same(found, expected, tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", *(pytest.param(s, marks=pytest.mark.slow) for s in ("hsdp", "fsdp1"))]
)
def test_ranks_take_the_steps_of_one_process(two, four, strategy, name):
    expected, scalars, counts = trained("one", name)
    alone = trainings.train("one", None, METHODS[name][1], 12, dtype=torch.float64).weights
    assert any((alone[key] - value).abs().max() > 1e-4 for key, value in expected.items())
    world = four if strategy == "hsdp" else two
    for found, theirs, done in world.run(trained, strategy, name):
        same(found, expected, 1e-6)
        assert done == counts
        for key, value in scalars.items():
            assert theirs[key] == pytest.approx(value, rel=1e-4, abs=1e-7)
