"""*Bend*: the base's length, against the gradient, for every base with a first moment."""

import copy

import pytest
import torch

from lightning_so import ConfigError, Muon, attach
from lightning_so.linalg.polar import polar
from tests.support import noted
from tests.support.problems import BASES, SGDS, Net, batch, name, train

BENDABLE = [
    c for c in BASES if c[0] is not torch.optim.Adagrad and (c[0] is not torch.optim.RMSprop or c[1].get("momentum"))
]


@pytest.mark.parametrize("case", BENDABLE + SGDS, ids=name)
def test_first_step_descends_at_the_base_length(case):
    cls, arguments = case
    ours, plain = Net(), Net()
    plain.load_state_dict(ours.state_dict())
    changes = []
    for model in (ours, plain):
        quiet = {**copy.deepcopy(arguments), "weight_decay": 0.0}
        optimizer = cls(model.parameters(), **quiet)
        if model is ours:
            engine = attach(model, optimizer, Muon())
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        train(model, optimizer, range(1))
        changes.append({k: p.detach() - before[k] for k, p in model.named_parameters()})
    assert engine.report.bent == 3
    sign = -1 if arguments.get("maximize") else 1
    for key, p in plain.named_parameters():
        bent, base = changes[0][key], changes[1][key]
        assert sign * float((bent * p.grad).sum()) < 0, key
        # The update is read off a parameter here, so it has lost digits that the engine never loses.
        torch.testing.assert_close(bent.norm(), base.norm(), rtol=2e-4, atol=1e-9)
        assert torch.equal(bent, base) == (p.ndim < 2)


def test_length_is_the_base_length_to_1e_6():
    torch.manual_seed(3)
    W = torch.nn.Linear(9, 5, bias=False)
    torch.nn.init.zeros_(W.weight)  # no digits are lost in p - p0
    twin = copy.deepcopy(W)
    optimizer, base = (torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.0) for m in (W, twin))
    attach(W, optimizer, Muon())
    W.weight.grad = torch.randn(5, 9)
    twin.weight.grad = W.weight.grad.clone()
    optimizer.step()
    base.step()
    torch.testing.assert_close(W.weight.norm(), twin.weight.norm(), rtol=1e-6, atol=0)


def test_decay_is_applied_once_to_the_saved_weight():
    lr, wd = 1e-2, 0.5
    for decoupled in (True, False):
        W = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
        p0 = W.weight.detach().clone()
        optimizer = torch.optim.Adam(W.parameters(), lr=lr, weight_decay=wd, decoupled_weight_decay=decoupled)
        attach(W, optimizer, Muon())
        g = torch.randn(4, 4, dtype=torch.float64)
        W.weight.grad = g.clone()
        optimizer.step()
        seen = g if decoupled else g + wd * p0
        direction = polar(0.9 * 0.1 * seen[None] + 0.1 * seen[None])[0]
        length = (lr * seen / (seen.abs() + 1e-8)).norm()
        expected = p0 * (1 - lr * wd if decoupled else 1) - length * direction / direction.norm()
        torch.testing.assert_close(W.weight.detach(), expected, rtol=0, atol=1e-9)


def test_a_zero_gradient_keeps_the_base_update():
    W = torch.nn.Linear(4, 3, bias=False)
    before = W.weight.detach().clone()
    optimizer = torch.optim.AdamW(W.parameters(), lr=0.1, weight_decay=0.0)
    attach(W, optimizer, Muon())
    W.weight.grad = torch.zeros(3, 4)
    optimizer.step()
    assert torch.equal(W.weight, before)


@pytest.mark.parametrize(
    ("cls", "arguments", "remedy"),
    [
        (torch.optim.SGD, {"lr": 0.1}, "momentum > 0"),
        (torch.optim.RMSprop, {}, "momentum > 0"),
        (torch.optim.Adagrad, {}, "AdamW"),
    ],
)
def test_no_first_moment_is_refused(cls, arguments, remedy):
    net = Net()
    with pytest.raises(ConfigError, match=f"first moment.*{remedy}") as said:
        attach(net, cls(net.parameters(), **arguments), Muon())
    noted.refused(said, method="Muon", base=cls.__name__ + " without momentum" * ("momentum" in remedy))


def test_two_groups_with_their_own_betas_and_decay():
    net, twin = Net(), Net()
    twin.load_state_dict(net.state_dict())

    def groups(m):
        return [
            {"params": [m.conv.weight, m.tall.weight], "betas": (0.5, 0.9), "weight_decay": 0.3},
            {"params": [m.wide.weight, m.wide.bias], "betas": (0.9, 0.99), "lr": 1e-2},
        ]

    for model in (net, twin):
        optimizer = torch.optim.AdamW(groups(model))
        attach(model, optimizer, Muon())
        for step in range(5):
            x, y = batch(step)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            if model is twin:  # the same groups, one matrix at a time
                for block in optimizer._lightning_so.plan.blocks:
                    assert block.group == (1 if block.name == "wide.weight" else 0)
            optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
