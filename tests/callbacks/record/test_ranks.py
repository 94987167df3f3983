"""Each rank writes one file of the same run; what pieces of weights say adds up to what the whole says."""

import pytest
import torch

from lightning_so import SOAP, Recorder
from lightning_so.callbacks.record import run as run_of
from lightning_so.callbacks.record import turns
from lightning_so.recording.file import NAME, read
from tests.support import trainings

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
METHOD = SOAP(start=4, period=2)


def recorded(strategy, root, **named):
    """Train with everything looked at at every step, recorded or not."""
    before = turns.ROUND, run_of.NORM, run_of.LOOK
    turns.ROUND, run_of.NORM, run_of.LOOK = 1, 1, 2
    try:
        callbacks = [] if root is None else [Recorder(root=str(root))]
        return trainings.train(strategy, METHOD, ADAMW, 8, callbacks=callbacks, dtype=torch.float64, **named)
    finally:
        turns.ROUND, run_of.NORM, run_of.LOOK = before


def files(root, ranks):
    return [read(root / "recording" / NAME.format(rank)) for rank in range(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1"])
def test_ranks_record_one_run(strategy, two, tmp_path):
    recorded("one", tmp_path / "one")
    ends = two.run(recorded, strategy, tmp_path / "many")
    plain = two.run(recorded, strategy, None)
    for watched, not_watched in zip(ends, plain, strict=True):
        assert watched.losses == not_watched.losses
        for name, weight in watched.weights.items():
            assert torch.equal(weight, not_watched.weights[name])
    (whole,), many = files(tmp_path / "one", 1), files(tmp_path / "many", 2)
    assert len({each["run"] for each in many}) == 1
    assert [(each["rank"], each["ranks"]) for each in many] == [(0, 2), (1, 2)]
    assert [each["facts"]["sharded"] for each in many] == [strategy != "ddp"] * 2
    parts = many if strategy != "ddp" else many[:1]
    for quantity in ("weight", "update", "gradient", "dot"):
        expected = torch.tensor(whole["layers"][quantity], dtype=torch.float64)
        found = sum(torch.tensor(part["layers"][quantity], dtype=torch.float64) for part in parts)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-10)
    found = sum(torch.tensor(part["last"]["gradient"]) for part in parts)
    torch.testing.assert_close(found, torch.tensor(whole["last"]["gradient"]), rtol=1e-4, atol=0)
    losses = sum(torch.tensor(each["last"]["loss"]) for each in many) / 2
    torch.testing.assert_close(losses, torch.tensor(whole["last"]["loss"]), rtol=1e-5, atol=0)
    solved = [[solve[0], solve[1], solve[3]] for solve in many[0]["solved"]]
    assert solved == [[solve[0], solve[1], solve[3]] for solve in many[1]["solved"]]
    assert {owner for _, owner, _ in solved} == {0, 1}


@pytest.mark.parametrize("stage", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_deepspeed_is_recorded_without_norms(stage, two, tmp_path):
    two.run(recorded, stage, tmp_path)
    for found in files(tmp_path, 2):
        assert found["last"]["step"] == list(range(1, 9))
        assert found["layers"] is None
        assert all(loss > 0 for loss in found["last"]["loss"])
