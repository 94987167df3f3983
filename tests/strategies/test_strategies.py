"""Under every strategy a Trainer without SecondOrder gives the weights of one process, and FSDP1 runs on CPU.

What is measured here is the harness (`tests.support.trainings`): what differs with SecondOrder is then SecondOrder's.
"""

import functools
import importlib
import os
import sys

import pytest
import torch
import torch.distributed as dist
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.plugins import FSDPPrecision
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

from lightning_so.comm.pieces import even
from lightning_so.strategies import fsdp
from lightning_so.strategies.names import LIGHTNINGS
from tests.support import noted
from tests.support.peers import DEEPSPEED
from tests.support.trainings import train, unchanged
from tests.support.transformer import Transformer, batch

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
CASES = {
    "adamw": (ADAMW, {}),
    "sgd": (SGD, {}),
    "accumulate": (SGD, {"accumulate": 2}),
    # Under FSDP1 by torch's own call, as a user does: Lightning refuses (see below).
    "clip": (SGD, {"clip": 0.3}),
    "all": (ADAMW, {"accumulate": 2, "clip": 0.3, "grouped": True}),
}
EVERYDAY = [("ddp", "adamw"), ("fsdp2", "adamw"), ("fsdp1", "adamw")]
#: Strategies under which ranks hold pieces of weights, and those under which they hold pieces of the optimizer's state.
PIECES = ("fsdp2", "hsdp", "fsdp1", "hsdp1", "fsdp1 by hand", "zero3")
STATES = (*PIECES, "zero1", "zero2")


@functools.cache
def one(case, dtype=torch.float32):
    base, more = CASES[case]
    return train("one", None, base, dtype=dtype, **more)


def many(world, strategy, case, dtype=torch.float32):
    """Train on the ranks of a pool, compare the weights to one process, and give what came of it."""
    if strategy.startswith("zero") and DEEPSPEED is None:
        pytest.skip("deepspeed is not there: make test puts it into .venv/peers")
    base, more = CASES[case]
    found, alone = world.run(train, strategy, None, base, dtype=dtype, **more), one(case, dtype)
    # Measured: 2.4e-7, which is an ulp of the largest weights.
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for rank in found:
        assert list(rank.weights) == list(alone.weights)
        for name, value in rank.weights.items():
            assert torch.equal(value, found[0].weights[name]), f"ranks differ in {name}"
            torch.testing.assert_close(value, alone.weights[name], rtol=0, atol=tolerance, msg=lambda m, n=name: n + m)
    losses = torch.tensor([rank.losses for rank in found]).mean(0)
    torch.testing.assert_close(losses, torch.tensor(alone.losses), rtol=0, atol=1e-5)
    return found


#: With everything at once, and with one thing more for each strategy.
ROWS = [
    *(pytest.param(*row) for row in EVERYDAY),
    *(pytest.param(strategy, "all", marks=pytest.mark.slow) for strategy in ("ddp", "fsdp2", "fsdp1", "fsdp1 by hand")),
    *(pytest.param(f"zero{stage}", "all", marks=pytest.mark.slow) for stage in range(4)),
    *(pytest.param(strategy, "sgd", marks=pytest.mark.slow) for strategy in ("fsdp2", "zero2")),
    pytest.param("fsdp1", "accumulate", marks=pytest.mark.slow),
    pytest.param("zero3", "clip", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("strategy", "case"), ROWS)
def test_two_ranks_equal_one_process(two, strategy, case):
    found, alone = many(two, strategy, case), one(case)
    # The strategies are what they are called: nobody holds all, and all hold everything (ZeRO pads).
    for name, value in alone.weights.items():
        held = [rank.held[name] for rank in found]
        if strategy in PIECES:
            assert value.numel() <= sum(held) <= value.numel() + 1
        else:
            assert held == [value.numel()] * 2
    for rank in found:
        assert rank.state < 0.55 * alone.state if strategy in STATES else rank.state == alone.state
    if strategy in ("fsdp2", "fsdp1"):
        assert any(0 in rank.held.values() for rank in found)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp", "hsdp1", "zero2", "zero3"])
def test_four_ranks_equal_one_process(four, strategy):
    found = many(four, strategy, "all")
    if strategy == "fsdp2":
        for name, value in one("all").weights.items():
            rows = even(len(value), value[0].numel(), 4, 0)
            assert [rank.held[name] for rank in found] == [rows.size(rank) for rank in range(4)]
    if strategy.startswith("hsdp"):
        # Two replicas, each cut in two.
        assert [rank.held for rank in found[:2]] == [rank.held for rank in found[2:]]
        assert found[0].state + found[1].state == one("all").state


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1"])
def test_float64_leaves_no_rounding(two, strategy):
    many(two, strategy, "accumulate", torch.float64)


def surroundings():
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "DS_ACCELERATOR")
    left = [name for name in names if name in os.environ]
    return torch.nn.functional.linear, dist.get_world_size(), left, list(sys.path)


@pytest.mark.slow
def test_a_training_leaves_the_rank_as_it_was(two):
    before = two.run(surroundings)
    many(two, "zero3", "adamw")
    many(two, "fsdp2", "adamw")
    assert two.run(surroundings) == before


def resumed(lightning, kind, file):
    """Train with FSDP1 to step 4, save, go on from the file to step 8; and without a stop. Gives both ends' weights."""
    pl = importlib.import_module(lightning)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = Transformer()

        def training_step(self, _, index):
            x, y = (part[dist.get_rank() :: dist.get_world_size()] for part in batch(self.trainer.global_step))
            return torch.nn.functional.cross_entropy(self.net(x).flatten(0, 1), y.flatten())

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def fit(steps, path=None):
        # Ranks that run already, as a launcher makes them known.
        os.environ["LOCAL_RANK"] = str(dist.get_rank())
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy="fsdp_so" if kind == "full" else fsdp.CLASSES[lightning](state_dict_type=kind),
            devices=dist.get_world_size(),
            max_steps=steps,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), DataLoader(range(8)), ckpt_path=path)
        return trainer

    with unchanged("fsdp1"):
        fit(4).save_checkpoint(file)
        ends = []
        for trainer in (fit(8, file), fit(8)):
            with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
                named = trainer.strategy.model.named_parameters()
                ends.append({name: param.detach().clone() for name, param in named})
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "sharded"])
@pytest.mark.parametrize("lightning", LIGHTNINGS)
def test_fsdp1_on_cpu_resumes_bit_for_bit(two, lightning, kind, tmp_path):
    for again, straight in two.run(resumed, lightning, kind, str(tmp_path / "half.ckpt")):
        assert len(again) == len(one("adamw").weights)
        assert all(torch.equal(value, straight[name]) for name, value in again.items())


def test_fsdp1_has_a_name_for_every_import_name():
    for lightning in LIGHTNINGS:
        strategy = importlib.import_module(lightning).strategies.StrategyRegistry.get("fsdp_so")
        assert type(strategy) is fsdp.CLASSES[lightning]
        assert isinstance(strategy, importlib.import_module(lightning).strategies.FSDPStrategy)


def test_lightning_clips_by_norm_under_no_fsdp1():
    """Why the harness asks torch to: if this fails, the harness and the strategy's docstring can be simpler."""
    with pytest.raises(MisconfigurationException, match="gradient_clip_algorithm='norm'") as said:
        FSDPPrecision("32-true").clip_grad_by_norm()
    noted.refused(said, strategy="FSDP1", option="clipping by Lightning itself")
