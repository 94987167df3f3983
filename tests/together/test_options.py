"""What people put around a training changes nothing under several ranks: compiling, checkpointing, half precision."""

import functools
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from lightning_so import KFAC, SOAP, ConfigError, SecondOrder
from tests.support import noted
from tests.support.peers import needs_deepspeed
from tests.support.trainings import train

METHODS = {
    "soap": (SOAP(start=4, period=4), (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})),
    "kfac": (KFAC(fisher="empirical", period=4), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})),
}
SLOW, STEPS = pytest.mark.slow, 8


def compiled(net):
    """Every block is a graph of its own, as FSDP2's documentation has it."""
    # Code that was compiled in this process without hooks is taken again where there are some.
    torch.compiler.reset()
    for block in net.blocks:
        block.compile(backend="eager")


def checkpointed(net):
    """Every block is computed again in the backward pass."""
    for block in net.blocks:
        block.forward = functools.partial(noted.checkpoint, block.forward, use_reentrant=False)


@functools.cache
def one(method, **arguments):
    return train("one", *METHODS[method], steps=STEPS, **arguments)


def same(found, alone, tolerance):
    for name, value in alone.weights.items():
        for rank in found:
            assert torch.equal(rank.weights[name], found[0].weights[name]), f"ranks differ in {name}"
        close = functools.partial(torch.testing.assert_close, rtol=0, atol=tolerance, msg=lambda m, n=name: n + m)
        close(found[0].weights[name].float(), value.float())
    assert sum(rank.report.solved_here for rank in found) == alone.report.solves > 0
    for count in ("rotated", "bent", "preconditioned", "skipped", "withheld", "failures"):
        assert {getattr(rank.report, count) for rank in found} == {getattr(alone.report, count)}
    assert alone.report.rotated + alone.report.preconditioned > 0


PREPARED = [
    pytest.param("fsdp2", "soap", checkpointed),
    *(pytest.param(*row, checkpointed, marks=SLOW) for row in (("ddp", "kfac"), ("fsdp2", "kfac"), ("fsdp1", "kfac"))),
    *(pytest.param(*row, compiled, marks=SLOW) for row in (("ddp", "kfac"), ("fsdp2", "soap"), ("fsdp2", "kfac"))),
]


@pytest.mark.parametrize(("strategy", "method", "prepare"), PREPARED)
def test_compiled_and_checkpointed_blocks_are_the_blocks(two, strategy, method, prepare):
    same(two.run(train, strategy, *METHODS[method], steps=STEPS, prepare=prepare), one(method), 1e-5)


@SLOW
def test_compiled_blocks_have_rows_in_one_process():
    same([train("one", *METHODS["kfac"], steps=STEPS, prepare=compiled)], one("kfac"), 1e-5)


PRECISIONS = [
    pytest.param("ddp", "soap", "bf16-mixed"),
    pytest.param("ddp", "kfac", "bf16-true", marks=SLOW),
    pytest.param("ddp", "soap", "16-mixed", marks=SLOW),
    pytest.param("fsdp2", "kfac", "bf16-mixed", marks=SLOW),
    pytest.param("fsdp2", "soap", "bf16-true", marks=SLOW),
    pytest.param("fsdp1", "soap", "bf16-mixed", marks=SLOW),
    pytest.param("fsdp1", "kfac", "bf16-true", marks=SLOW),
    pytest.param("fsdp1", "kfac", "16-mixed", marks=SLOW),
    pytest.param("zero1", "soap", "bf16-mixed", marks=(SLOW, needs_deepspeed)),
    pytest.param("zero2", "kfac", "bf16-true", marks=(SLOW, needs_deepspeed)),
    pytest.param("zero3", "soap", "bf16-mixed", marks=(SLOW, needs_deepspeed)),
]


@pytest.mark.parametrize(("strategy", "method", "precision"), PRECISIONS)
def test_half_precision_trains_as_one_process_does_up_to_rounding(two, strategy, method, precision):
    found = two.run(train, strategy, *METHODS[method], steps=STEPS, precision=precision)
    same(found, one(method, precision=precision), 0.05)


@SLOW
@pytest.mark.parametrize(
    ("strategy", "method"), [("hsdp", "soap"), ("hsdp", "kfac"), ("hsdp1", "soap"), ("hsdp1", "kfac")]
)
def test_two_replicas_of_two_pieces_are_one_process_with_all_at_once(four, strategy, method):
    more = {"accumulate": 2, "clip": 0.3, "grouped": True}
    same(four.run(train, strategy, *METHODS[method], steps=STEPS, **more), one(method, **more), 1e-5)


@SLOW
@pytest.mark.parametrize(("strategy", "method"), [("ddp", "kfac"), ("fsdp2", "soap"), ("fsdp1", "kfac")])
def test_two_ranks_are_one_process_with_all_at_once(two, strategy, method):
    more = {"accumulate": 2, "clip": 0.3, "grouped": True}
    same(two.run(train, strategy, *METHODS[method], steps=STEPS, **more), one(method, **more), 1e-5)


def refusal(strategy, precision):
    """What a rank is told."""
    try:
        train(strategy, *METHODS["soap"], steps=STEPS, precision=precision)
    except ValueError as error:
        return str(error)
    return "no error"


@SLOW
@pytest.mark.parametrize(
    ("strategy", "precision", "covers", "words"),
    [
        # Lightning's own, which the documentation names.
        ("fsdp2", "16-mixed", "FSDP2", "does not support"),
        pytest.param("zero2", "16-mixed", "DeepSpeed", "the Trainer has 16-mixed, where", marks=needs_deepspeed),
        pytest.param("zero2", "16-true", "DeepSpeed", "the Trainer has 16-true, where", marks=needs_deepspeed),
    ],
)
def test_a_loss_scale_that_cannot_be_taken_out_is_refused(two, strategy, precision, covers, words):
    told, again = two.run(refusal, strategy, precision)
    assert words in told == again
    noted.refused(told, strategy=covers, precision=precision)


def test_a_strategy_that_is_not_known_is_refused_by_name():
    trainer = SimpleNamespace(strategy=SingleDeviceStrategy("cpu"), world_size=2, callbacks=[])
    with pytest.raises(ConfigError, match=r"2 process\(es\) with SingleDeviceStrategy\. Use strategy='ddp'") as said:
        SecondOrder(SOAP()).setup(trainer, torch.nn.Linear(2, 2), "fit")
    noted.refused(said, strategy="another strategy of several processes")
