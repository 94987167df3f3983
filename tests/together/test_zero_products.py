"""Under DeepSpeed, too, a training that is watched is the same, and what is seen is one process's curvature."""

import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_so import SOAP, ConfigError, CurvatureMonitor
from lightning_so.comm.forward.zero import engine_forward
from tests.support import trainings
from tests.support.peers import needs_deepspeed

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})


#: Some of the weights stay gathered in stage 3.
SMALL = {"stage3_param_persistence_threshold": 20}


class Options(pl.Callback):
    """Sets options of ZeRO before DeepSpeed sees them."""

    def __init__(self, options) -> None:
        self.options = options

    def setup(self, trainer, pl_module, stage) -> None:
        trainer.strategy.config["zero_optimization"].update(self.options)


class End(pl.Callback):
    """Looks at everything that could remember a look."""

    def on_train_end(self, trainer, pl_module) -> None:
        engine = trainer.strategy.deepspeed_engine
        self.found = {
            "buffers": {name: value.clone() for name, value in pl_module.named_buffers()},
            "metric": pl_module.net.metric.compute(),
            "random": torch.get_rng_state(),
            "engine": plain(engine),
            "optimizer": plain(engine.optimizer),
            "there": [(p.grad is None, p.detach().clone()) for p in pl_module.parameters()],
            "hooks": [len(p._post_accumulate_grad_hooks or ()) for p in pl_module.parameters()],
        }


def plain(owner):
    """Counters, flags and timers."""
    return {name: value for name, value in vars(owner).items() if isinstance(value, int | float)}


def remembering(net) -> None:
    """Dropout, BatchNorm and a metric."""
    net.blocks[0] = nn.Sequential(net.blocks[0], nn.Dropout(0.2))
    net.metric, net.norm_of_words = torchmetrics.MeanMetric(), nn.BatchNorm1d(net.head.out_features)

    def after(module, _, out):
        module.metric(out.detach())
        return module.norm_of_words(out.transpose(1, 2)).transpose(1, 2)

    net.register_forward_hook(after)


def watched(strategy, watching):
    """What is left of a training of accumulated micro-batches."""
    monitor, end = CurvatureMonitor(every=2, verbose=False), End()
    callbacks = [Options(SMALL), end, *([monitor] if watching else [])]
    method = SOAP(start=2, period=2)
    found = trainings.train(strategy, method, ADAMW, 4, 2, prepare=remembering, callbacks=callbacks)
    return monitor.last, {**end.found, "weights": found.weights, "report": found.report.portable()}


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_training_that_is_watched_is_the_same_bit_for_bit(two, stage):
    for plainly, looked in zip(*(two.run(watched, f"zero{stage}", on) for on in (False, True)), strict=True):
        assert plainly[0] is None
        assert looked[0] is not None
        torch.testing.assert_close(looked[1], plainly[1], rtol=0, atol=0)


def reentrant(net) -> None:
    """Checkpointed, in the way in which `autograd.grad` does not work."""
    for block in net.blocks:
        plain = block.forward
        block.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=True)


def seen(strategy, prepare=None, precision="32-true", accumulate=1, options=None):
    """The last sight of a short training."""
    monitor = CurvatureMonitor(every=4, products=20, product="difference", verbose=False)
    callbacks = [monitor, *([] if options is None else [Options(options)])]
    trainings.train(strategy, None, ADAMW, 4, accumulate, precision=precision, prepare=prepare, callbacks=callbacks)
    return monitor.last


CASES = {
    "zero0": ({}, 1e-4),
    "zero1": ({"prepare": reentrant}, 1e-4),
    "zero2": ({"accumulate": 2}, 1e-4),
    "zero3": ({}, 1e-4),
    "zero3 bf16": ({"precision": "bf16-mixed"}, 5e-2),
}


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("case", CASES)
def test_ranks_see_what_one_process_sees(two, case):
    named, tolerance = CASES[case]
    one, (first, second) = seen("one", **named), two.run(seen, case.split()[0], **named, options=SMALL)
    assert first == second
    assert abs(first.top / one.top - 1) < tolerance
    assert abs(first.bottom - one.bottom) < tolerance * one.top
    assert abs(first.distance - one.distance) < tolerance


def seen_through_copies():
    """With second copies of the shards, and in the next training, for which DeepSpeed has them too."""
    try:
        return [seen("zero3", options=options) for options in ({"zero_hpz_partition_size": 2}, {})]
    finally:
        sys.modules["deepspeed.utils.groups"]._ZERO_PARAM_INTRA_PARALLEL_GROUP = None


@pytest.mark.slow
@needs_deepspeed
def test_second_copies_of_shards_are_moved_with_them(two):
    one = seen("one")
    for rank in two.run(seen_through_copies):
        for sight in rank:
            assert abs(sight.top / one.top - 1) < 1e-4
            assert abs(sight.bottom - one.bottom) < 1e-4 * one.top


def test_rounded_copies_of_shards_are_refused():
    # DeepSpeed itself has no kernels for them on CPU, so that no engine with them can be made here.
    engine = SimpleNamespace(zero_optimization_stage=lambda: 3, zero_quantized_weights=lambda: True)
    with pytest.raises(ConfigError, match=r"zero_optimization.zero_quantized_weights is not supported"):
        engine_forward([torch.zeros(2)], None, None, engine)


def test_gradients_that_need_a_scale_are_refused():
    with pytest.raises(ConfigError, match=r"fp16 is not supported.*bf16-mixed"):
        engine_forward([torch.zeros(2, dtype=torch.float16)], None, None, None)
