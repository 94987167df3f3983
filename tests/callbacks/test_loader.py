"""`ResumableLoader`: a training goes on with the batch that comes next, and the epochs after are whole.

Asked for in Lightning-AI/pytorch-lightning#19764 and ecmwf/anemoi-training#200; epochs that are cut or dropped after a
resumption: meta-pytorch/data#1437, KempnerInstitute/KempnerForge#57.
"""

import os
import signal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import IterableDataset, TensorDataset

from lightning_so import ConfigError, Restartable, ResumableLoader, StateError, Stopped
from tests.support.trainings import Standing, unchanged

#: Of 8 batches an epoch, with three samples left over.
DATA, BATCH, EPOCHS = TensorDataset(torch.arange(67)), 8, 3


class Noting(pl.LightningModule):
    """Notes which samples come, on which rank and in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, batch[0].tolist()))
        return self.net(batch[0].float()[:, None]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-5)


class Signalled(pl.Callback):
    """A signal comes at the end of a step."""

    def __init__(self, step) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


def fit(folder, stop=None, workers=0, several=False, **named):
    """Samples of every batch from the start or the last checkpoint on, up to a signal or the end."""
    saved, module = Restartable(folder, requeue=False), Noting()
    if several:
        named |= {"strategy": DDPStrategy(), "plugins": [Standing()], "devices": dist.get_world_size()}
    with unchanged("ddp"):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            callbacks=[Signalled(stop), saved],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **named,
        )
        loader = ResumableLoader(DATA, BATCH, num_workers=workers, persistent_workers=workers > 0)
        try:
            trainer.fit(module, loader, ckpt_path=saved.newest(), weights_only=True)
        except Stopped:
            pass
    return module.seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a training that is not stopped sees."""
    return fit(tmp_path_factory.mktemp("whole"))


def test_every_epoch_has_an_order_of_its_own_and_every_sample_once(whole):
    assert [epoch for epoch, _ in whole] == [0] * 8 + [1] * 8 + [2] * 8
    for epoch in range(EPOCHS):
        found = [sample for number, batch in whole for sample in batch if number == epoch]
        assert len(set(found)) == 64
    orders = {tuple(batch) for _, batch in whole}
    assert len(orders) == 24


# It is saved a step later: within the first epoch, at its end and after it, within the second, at its end, at the last.
@pytest.mark.parametrize("stop", [1, 6, 7, 8, 12, 15, 23])
def test_after_a_stop_the_next_batch_comes_and_later_epochs_are_whole(whole, tmp_path, stop):
    before = fit(tmp_path, stop)
    assert len(before) == stop + 1
    after = fit(tmp_path)
    assert [batch for _, batch in before + after] == [batch for _, batch in whole]


def test_two_stops_and_accumulated_gradients(whole, tmp_path):
    parts = [fit(tmp_path, stop, accumulate_grad_batches=2) for stop in (2, 6, None)]
    assert [len(part) for part in parts[:2]] == [6, 8]
    assert [batch for part in parts for _, batch in part] == [batch for _, batch in whole]


@pytest.mark.slow
def test_what_workers_have_fetched_ahead_comes_again(whole, tmp_path):
    before, after = fit(tmp_path, 5, workers=2), fit(tmp_path, workers=1)
    assert [batch for _, batch in before + after] == [batch for _, batch in whole]


def test_two_ranks_have_the_batches_of_one_and_one_goes_on_from_two(two, whole, tmp_path):
    parts = two.run(fit, tmp_path, 13, several=True)
    count = len(parts[0])
    assert count == 14
    # As Lightning's own: the rank of the first sample has the third, too.
    global_batches = [[each for pair in zip(*batches, strict=True) for each in pair]
                      for batches in zip(*([batch for _, batch in part] for part in parts), strict=True)]  # fmt: skip
    assert global_batches == [batch for _, batch in whole[:count]]
    assert [batch for _, batch in fit(tmp_path)] == [batch for _, batch in whole[count:]]


def test_two_ranks_go_on_bit_for_bit(two, tmp_path):
    straight = two.run(fit, tmp_path / "straight", several=True)
    first, second = (two.run(fit, tmp_path / "stopped", stop, several=True) for stop in (6, None))
    assert [one + other for one, other in zip(first, second, strict=True)] == straight


def test_torchs_generator_is_left_alone():
    loader = ResumableLoader(DATA, BATCH)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_epochs_give_other_orders():
    """Numbers that are cut to 32 bits, or added up, would give the same."""
    firsts = set()
    for seed in (0, 1, 1 << 32, 1 << 62):
        loader = ResumableLoader(DATA, BATCH, seed=seed)
        for epoch in range(4):
            loader.sampler.set_epoch(epoch)
            firsts.add(tuple(next(iter(loader))[0].tolist()))
    assert len(firsts) == 16


def test_a_state_is_a_place_until_it_is_used_and_of_its_epoch_alone():
    used = ResumableLoader(DATA, BATCH)
    for _ in zip(range(3), used, strict=False):
        pass
    state = used.state_dict()
    again = ResumableLoader(DATA, BATCH)
    again.load_state_dict(state)
    assert again.state_dict() == state
    again.sampler.set_epoch(1)
    assert len(list(again)) == 8


def test_ranks_that_share_the_data_are_told():
    """As of a tensor-parallel mesh, where several processes see the same samples."""
    parts = [ResumableLoader(range(8), 4, shuffle=False, ranks=(rank, 2)) for rank in range(2)]
    assert [[batch.tolist() for batch in part] for part in parts] == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


@pytest.mark.parametrize("other", [{"seed": 1}, {"shuffle": False}, {"global_batch": 4}, {"dataset": range(66)}])
def test_a_place_in_another_order_is_refused(other):
    (name,) = other
    state = ResumableLoader(DATA, BATCH).state_dict()
    with pytest.raises(StateError, match=f"{'samples' if name == 'dataset' else name}=.*begin a new training"):
        ResumableLoader(**{"dataset": DATA, "global_batch": BATCH, **other}).load_state_dict(state)


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(StateError, match="samples=None for 67"):
        ResumableLoader(DATA, BATCH).load_state_dict({"samples_": 3})


class Endless(IterableDataset):
    """Without numbers."""

    def __iter__(self):
        yield from ()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"global_batch": 0}, r"global_batch=0"),
        ({"global_batch": 68}, r"67 samples, less than one batch"),
        ({"seed": -1}, r"seed=-1"),
        ({"batch_size": 4}, r"batch_size=.*deals the batches itself"),
        ({"sampler": None}, r"sampler="),
        ({"dataset": Endless()}, r"dataset=Endless"),
    ],
)
def test_wrong_arguments_are_refused(named, said):
    with pytest.raises(ConfigError, match=said):
        ResumableLoader(**{"dataset": DATA, "global_batch": BATCH, **named})


def test_a_batch_that_cannot_be_dealt_evenly_is_refused():
    with pytest.raises(ConfigError, match=r"global_batch=8.*3 ranks evenly; give a multiple of 3"):
        next(iter(ResumableLoader(DATA, BATCH, ranks=(0, 3))))


def test_data_of_arrays():
    loader = ResumableLoader(list(np.arange(8)), 4, shuffle=False)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
