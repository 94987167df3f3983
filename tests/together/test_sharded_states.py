"""States of optimizers whose ranks hold pieces: given out together, loaded together, and exact after a fit."""

import copy
import warnings
from contextlib import contextmanager

import pytest
import pytorch_lightning as pl
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from lightning_so import SOAP, Muon, StateError
from tests.support import shards
from tests.support.peers import needs_deepspeed
from tests.support.trainings import Save, plain, train
from tests.together.test_fsdp2 import same
from tests.together.test_travel import FORMS, METHODS, NAME, STEPS, STOP, ZERO

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SOAP4 = (SOAP(start=4, period=4), *ADAMW)
SLOW = pytest.mark.slow


def asks(step, rank, ranks, model, optimizer):
    """Asks for the state on one rank alone, which may wait for none."""
    if step == 12 and rank == 0 and ranks > 1:
        for ask in (optimizer.state_dict, lambda: copy.deepcopy(optimizer)):
            with pytest.raises(StateError, match=r"on every rank inside `with engine.plain\(\):`"):
                ask()


def test_one_rank_alone_is_refused(two):
    same(two.run(shards.train, *SOAP4, event=asks), shards.train(*SOAP4))


class Goes:
    """Takes the state before a step, and loads it before another."""

    def __init__(self, first=8, second=11):
        self.first, self.second, self.taken = first, second, None

    @contextmanager
    def __call__(self, step, rank, ranks, model, optimizer):
        options = StateDictOptions(full_state_dict=True)
        if step == self.first:
            with optimizer._lightning_so.plain():
                found = get_optimizer_state_dict(model, optimizer, options=options) if ranks > 1 else None
                self.taken = copy.deepcopy(found or optimizer.state_dict())
        if step == self.second and ranks > 1:
            # torch looks at the state that is there, too.
            with optimizer._lightning_so.plain():
                set_optimizer_state_dict(model, optimizer, self.taken, options=options)
        elif step == self.second:
            optimizer.load_state_dict(self.taken)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the optimizer's state was changed")
            yield


def test_a_state_that_is_loaded_enters_anew_on_all_ranks(pool):
    many, alone = pool.run(shards.train, *SOAP4, event=Goes()), shards.train(*SOAP4, event=Goes())
    same(many, alone)
    for rank in (*many, alone):
        assert (rank.report.foreign, rank.report.rotated) == (1, alone.report.rotated)
    assert alone.report.rotated > 0
    assert any(not torch.equal(w, alone.weights[n]) for n, w in shards.train(*SOAP4).weights.items())


class Stop(pl.Callback):
    """Ends a fit at one step, and keeps the Trainer."""

    def on_train_batch_end(self, trainer, *_):
        self.trainer = trainer
        trainer.should_stop = trainer.global_step == STOP


def ended(form, before, after):
    """Save at a step, and when the fit has ended with it; whether anything of ours was left on the optimizer."""
    stop = Stop()
    strategy, files = (FORMS | ZERO)[form]
    method, base = METHODS["soap"]
    train(strategy, method, base, steps=STEPS, whole_files=files, callbacks=[Save(before, STOP), stop])
    optimizer = plain(stop.trainer.optimizers[0])
    stop.trainer.save_checkpoint(after)
    return "__getstate__" in optimizer.__dict__ or bool(optimizer._optimizer_state_dict_post_hooks)


def numbers(state):
    """All numbers of a state, each under its path."""
    if not isinstance(state, dict | list):
        return {} if isinstance(state, str) or state is None else {(): state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    return {(key, *path): number for key, value in pairs for path, number in numbers(value).items()}


@pytest.mark.parametrize(
    "form",
    [
        "ddp",
        "fsdp2",
        pytest.param("fsdp1", marks=SLOW),
        *[pytest.param(form, marks=[SLOW, needs_deepspeed]) for form in ("zero2", "zero3")],
    ],
)
def test_a_file_that_is_saved_after_a_fit_is_as_exact_as_one_before_its_end(two, form, tmp_path):
    paths = [str(tmp_path / name) for name in ("before.ckpt", "after.ckpt")]
    assert two.run(ended, form, *paths) == [False, False]
    before, after = (torch.load(path, weights_only=False) for path in paths)
    ours, now = (numbers(file["callbacks"][NAME]["engines"][0]) for file in (before, after))
    assert any("moments" in path for path in ours)
    torch.testing.assert_close(now, ours, rtol=0, atol=0)
    if "optimizer_states" in before:  # DeepSpeed has files of its own.
        theirs, now = (numbers(file["optimizer_states"][0]["state"]) for file in (before, after))
        torch.testing.assert_close(now, theirs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [7, 8])
def test_a_run_that_wrote_between_two_slopes_is_the_one_that_goes_on_from_it(two, tmp_path, stop):
    """Pieces of the weights before a step are not in the file: there the second slope is left out by both."""
    path = str(tmp_path / "between.ckpt")
    straight = two.run(train, "fsdp2", Muon(), ADAMW, callbacks=[Save(path, stop)])
    again = two.run(train, "fsdp2", Muon(), ADAMW, resume=path)
    kept = two.run(train, "fsdp2", Muon(), ADAMW, lengths="base")
    for one, other, base in zip(straight, again, kept, strict=True):
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
        assert any(not torch.equal(value, base.weights[name]) for name, value in one.weights.items())
