"""Checkpoints that an earlier version has written are read, and trainings go on from them as they did then."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lightning_so import StateError
from lightning_so.core.schedule.schedule import Schedule
from lightning_so.core.statistics import fisher
from tests.support.written import FITS, LAYERS, MORE, VECTORS, fit, made, walk

FOLDER = Path(__file__).parent / "written"


def read(name):
    return torch.load(FOLDER / f"{name.replace(' ', '_')}.pt", weights_only=True)


def near(found, expected, share):
    """Not bit for bit: the files may have been written by a processor that rounds in another way."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=share, atol=share)


def go_on(loop, file):
    """The weights of a plain loop that goes on from a file's states."""
    parts = made(loop)
    for part, state in zip(parts, file["states"], strict=True):
        part.load_state_dict(state)
    walk(*parts, range(loop.at, loop.at + MORE))
    return {name: param.detach() for name, param in parts[0].named_parameters()}


def test_every_file_is_read():
    assert {path.stem.replace("_", " ") for path in FOLDER.iterdir()} == {*LAYERS, *VECTORS, *FITS}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


def test_solves_are_underway_where_they_lag():
    assert read("soap lag")["states"][2]["flights"]
    assert read("kfac adamw lag")["states"][2]["flights"]


def seed_of(step, micro_batch, rank, _):
    """The seeds of sampled draws when the files were written."""
    return (((step << 12) + micro_batch << 12) + rank) << 4


def watched(self, step):
    """The blocks that were watched then: at the steps of each of their sides, and while they were due."""
    places = zip(self.units, self.next, self.every, self.slot, strict=True)
    return [
        (unit.stack, unit.row)
        for unit, due, every, slot in places
        if due <= step or (step - slot) % max(1, every // 4) == 0
    ]


#: Steps of preconditioned gradients have another unit since: what they are measured by is not in these files.
OTHERS = [name for name, loop in LAYERS.items() if "KFAC" in str(loop.method) and loop.base[0] is torch.optim.SGD]


@pytest.mark.parametrize("name", OTHERS)
def test_steps_that_had_another_unit_are_refused_by_the_name_of_what_is_missing(name):
    parts, file = made(LAYERS[name]), read(name)
    with pytest.raises(StateError, match=r"only in this run: \['loss.folded', 'loss.means', 'loss.rate'\]"):
        parts[-1].load_state_dict(file["states"][-1])


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in OTHERS])
def test_a_plain_loop_goes_on(name, monkeypatch):
    monkeypatch.setattr(fisher, "seed_of", seed_of)
    monkeypatch.setattr(Schedule, "watched", watched)
    file = read(name)
    bends = name in ("shampoo", "kfac adamw lag", "mixture")
    with pytest.warns(UserWarning, match="base's lengths") if bends else nullcontext():
        near(go_on(LAYERS[name], file), file["expected"], 1e-9)


@pytest.mark.parametrize("name", VECTORS)
def test_a_plain_loop_with_a_method_on_the_whole_vector_goes_on(name):
    file = read(name)
    near(go_on(VECTORS[name], file), file["expected"], 1e-9)


@pytest.mark.parametrize("name", [name for name in FITS if name != "ddp kfac"])
def test_a_trainer_goes_on(two, tmp_path, name):
    file, path = read(name), str(tmp_path / "written.ckpt")
    torch.save(file["checkpoint"], path)
    near(fit(lambda: two, FITS[name], resume=path).weights, file["expected"], 1e-9)
