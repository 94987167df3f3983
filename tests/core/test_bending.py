"""Polar factors of several shapes in one call: a training ends where it ends with each shape apart."""

import copy
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn

from lightning_so import EKFAC, SOAP, Mixture, Muon, Ways, attach
from lightning_so.core.device import choose
from lightning_so.core.step import bending
from lightning_so.linalg import polar
from tests.support import ranks, shards

PADDED, APART = Ways(padding="padded"), Ways(padding="apart")
ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
METHODS = {
    "muon": Muon(),
    "muon fp16": Muon(precision="fp16"),
    "soap cold": SOAP(start=100, period=4),
    "soap": SOAP(start=6, period=4),
    "ekfac": EKFAC(fisher="empirical", start=6, period=4),
    "mixture": Mixture(
        {
            "wide.*": Muon(steps=3),
            "tall.*": EKFAC(fisher="empirical", start=6, period=4),
            "Conv2d": Muon(),
            "*": SOAP(start=6),
        }
    ),
}


class Shapes(nn.Module):
    """An embedding, and hidden matrices that are tall, wide and a convolution, of six shapes."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.tokens = nn.Embedding(13, 8)
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.tall, self.wide = nn.Linear(40, 6), nn.Linear(6, 30)
        self.same, self.narrow = nn.Linear(30, 6), nn.Linear(6, 3, bias=False)
        self.back, self.head = nn.Linear(3, 6), nn.Linear(6, 13)
        self.to(dtype)

    def forward(self, x):
        x = torch.tanh(self.conv(self.tokens(x).unflatten(-1, (1, 2, 4))).flatten(1))
        x = torch.tanh(self.same(torch.tanh(self.wide(torch.tanh(self.tall(x))))))
        return self.head(torch.tanh(x + self.back(self.narrow(x))))


def trained(method, ways, steps=14, dtype=torch.float64, state=None, first=0, **options):
    torch.manual_seed(0)
    net = Shapes(dtype)
    net.wide.bias.requires_grad_(False)
    optimizer = ADAMW[0](net.parameters(), **ADAMW[1])
    engine = attach(net, optimizer, method, ways=ways, **options)
    for part, kept in zip((net, optimizer, engine), state or (), strict=False):
        part.load_state_dict(kept)
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randint(13, (2, 9), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()
    return net, optimizer, engine


def padded(function, *arguments, **named):
    """What a function does where polar factors are padded unless something else is asked for."""
    with mock.patch.object(choose, "USUAL", replace(choose.USUAL, padding="padded")):
        return function(*arguments, **named)


def same(found, expected, atol=1e-12):
    for (name, a), b in zip(expected.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def calls(run):
    """How many matrices each call of `polar` has had."""
    with mock.patch.object(polar, "polar", side_effect=polar.polar) as called:
        run()
    return [len(call.args[0]) for call in called.call_args_list]


@pytest.mark.parametrize("name", METHODS)
def test_a_training_ends_where_it_ends_apart(name):
    (apart, _, one), (net, _, engine) = (trained(METHODS[name], ways) for ways in (APART, PADDED))
    same(net, apart, atol=2e-3 if "fp16" in name else 1e-12)
    assert (engine.report.bent, engine.report.rotated) == (one.report.bent, one.report.rotated)


@pytest.mark.parametrize("name", ["muon", "soap", "ekfac"])
def test_updates_are_those_of_a_float64_reference(name):
    _, _, engine = trained(METHODS[name], PADDED, dtype=torch.float32, verify_every=1)
    assert engine.report.verified == 14
    assert engine.report.deviation < 1e-3


def test_apart_is_what_nobody_asked_for_on_a_cpu():
    (asked, *_), (net, *_) = (trained(SOAP(start=6, period=4), ways) for ways in (APART, None))
    assert all(map(torch.equal, asked.parameters(), net.parameters()))


def test_one_call_serves_what_is_computed_alike_and_no_other():
    assert calls(lambda: trained(Muon(), APART, 1)) == [1] * 6
    assert calls(lambda: trained(Muon(), PADDED, 1)) == [6]
    # Three steps are other factors than five; those of SOAP and Muon are the same.
    mixed = Mixture({"wide.*": Muon(steps=3), "tall.*": Muon(steps=3), "same.*": Muon(), "*": SOAP(start=100)})
    assert sorted(calls(lambda: trained(mixed, PADDED, 1))) == [2, 4]


def test_blocks_leave_one_by_one_for_their_bases():
    """Then what is left in a batch is fewer, and of other shapes."""
    seen = calls(lambda: trained(SOAP(start=3, period=8), PADDED, 12))
    assert seen[0] > seen[-1] >= 1


def test_an_update_without_a_direction_stays_the_bases_own():
    ends = []
    for ways in (APART, PADDED):
        torch.manual_seed(0)
        net = Shapes()
        before = net.tall.weight.detach().clone()
        optimizer = ADAMW[0](net.parameters(), **ADAMW[1])
        attach(net, optimizer, Muon(), ways=ways)
        for name, p in net.named_parameters():
            p.grad = torch.zeros_like(p) if name == "tall.weight" else torch.randn_like(p)
        optimizer.step()
        assert torch.equal(net.tall.weight, before * (1 - 3e-3 * 0.1))
        ends.append(net)
    same(*ends)


@pytest.mark.parametrize("name", ["muon", "soap", "ekfac"])
def test_a_resumed_run_is_the_one_that_was_not_stopped(name):
    method = METHODS[name]
    whole, *_ = trained(method, PADDED)
    state = copy.deepcopy([part.state_dict() for part in trained(method, PADDED, 5)])
    assert state[2]["ways"]["padding"] == "padded"
    with pytest.warns(UserWarning, match="shapes padded.*had chosen") if name == "muon" else mock.MagicMock():
        again, *_ = trained(method, None if name == "muon" else PADDED, state=state, first=5)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_a_file_of_before_goes_on_apart():
    state = copy.deepcopy([part.state_dict() for part in trained(Muon(), APART, 5)])
    del state[2]["ways"]["padding"]
    whole, *_ = trained(Muon(), APART)
    again, _, engine = trained(Muon(), None, state=state, first=5)
    assert engine.parts.chosen.ways.padding == "apart"
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_work_space_is_kept():
    _, _, engine = trained(Muon(), PADDED, 2)
    rooms = engine.parts.matrices.scratch._room
    kept = {key: room.data_ptr() for key, room in rooms.items() if key[2] == bending.SLOT}
    assert len(kept) == 1
    engine.step()
    engine.restore()
    assert {key: rooms[key].data_ptr() for key in kept} == kept


@pytest.mark.parametrize("method", ["muon", "soap"])
def test_ranks_end_where_one_process_does(two, method):
    arguments = (METHODS[method], *ADAMW)
    alone, many = (
        ranks.train(*arguments, 10, dtype=torch.float64),
        two.run(padded, ranks.train, *arguments, 10, dtype=torch.float64),
    )
    for weights, *_ in many:
        for name, value in alone[0].items():
            assert torch.equal(weights[name], many[0][0][name])
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("method", ["muon", "ekfac"])
def test_owners_of_pieces_end_where_one_process_does(two, method):
    arguments = (METHODS[method], *ADAMW)
    alone, many = shards.train(*arguments, steps=10), two.run(padded, shards.train, *arguments, steps=10)
    for name, value in alone.weights.items():
        assert torch.equal(many[0].weights[name], many[1].weights[name])
        torch.testing.assert_close(many[0].weights[name], value, rtol=0, atol=1e-11)
