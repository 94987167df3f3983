"""*Polish* against the truth: the polar factor, in plain coordinates, of the update that SOAP makes without it."""

import copy

import pytest
import torch
from torch import nn

from lightning_so import SOAP, StateError, Ways, attach
from lightning_so.actions.polish import polished
from lightning_so.contract.method import Action
from lightning_so.linalg.polar import COEFFICIENTS, PolarFactor, polar_cost
from tests.core.test_bending import trained
from tests.support import ranks, shards

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SOON = {"start": 3, "period": 4}


def along(U):
    """`|u| O / |O|` in float64 by the iteration on the matrix itself."""
    a, b, c = COEFFICIENTS
    X = U.double() / U.double().norm()
    for _ in range(5):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return U.double().norm() * X / X.norm()


@pytest.mark.parametrize("shape", [(6, 40), (30, 6), (9, 9)], ids=str)
def test_it_is_the_polar_factor_in_any_coordinates_at_the_updates_own_length(shape):
    U = torch.randn(3, *shape, dtype=torch.float64) * torch.tensor([1e-4, 1.0, 30.0]).double()[:, None, None]
    left, right = (torch.linalg.qr(torch.randn(3, side, side, dtype=torch.float64)).Q for side in shape)
    found = left @ polished(U, PolarFactor()) @ right.mT
    expected = torch.stack([along(plain) for plain in left @ U @ right.mT])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.norm(dim=(1, 2)), U.norm(dim=(1, 2)))


def test_an_update_without_a_direction_stays_as_it_is():
    U = torch.randn(4, 5, 3)
    U[1], U[2, 0, 0] = 0.0, torch.inf
    found = polished(U.clone(), PolarFactor())
    assert torch.equal(found[1:3], U[1:3])
    for good in (0, 3):
        torch.testing.assert_close(found[good].double(), along(U[good]), rtol=1e-4, atol=1e-4)


def test_rows_and_columns_of_zeros_stay_zero():
    U = torch.randn(2, 6, 9)
    U[:, [1, 4]], U[:, :, [0, 8]] = 0.0, 0.0
    found = polished(U, PolarFactor())
    assert not found[:, [1, 4]].any()
    assert not found[:, :, [0, 8]].any()
    assert found.count_nonzero() == U.count_nonzero()


def test_a_rotated_step_is_the_polished_one_of_the_same_step_without():
    """Of six shapes, from the same weights and moments; edges are not polished, a block without a gradient stays."""
    ends = []
    for polish in (False, True):
        net, optimizer, engine = trained(SOAP(**SOON, polish=True), None, 24)
        assert engine.report.rotated == 8
        for stack in engine.parts.stacks:
            assert (stack.polisher is None) == stack.edge
            stack.polisher = stack.polisher if polish else None
        optimizer.param_groups[0]["weight_decay"] = 0.0
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        nn.functional.cross_entropy(net(torch.arange(9)), torch.arange(9)).backward()
        net.same.weight.grad = None
        optimizer.step()
        assert engine.report.rotated == 7
        ends.append({name: p.detach() - before[name] for name, p in net.named_parameters()})
    assert not ends[1].pop("same.weight").any()
    for name, update in ends[0].items():
        if update.ndim < 2 or name in ("tokens.weight", "head.weight"):
            assert torch.equal(ends[1][name], update), name
        elif name != "same.weight":
            expected = along(update.flatten(1)).view_as(update)
            assert (expected - update).norm() > 0.1 * update.norm()
            torch.testing.assert_close(ends[1][name], expected, rtol=0, atol=1e-10)


def test_every_step_is_that_of_a_float64_reference():
    _, _, engine = trained(SOAP(**SOON, polish=True), None, dtype=torch.float32, verify_every=1)
    assert engine.report.rotated > 0
    assert engine.report.verified == 14
    assert engine.report.deviation < 1e-3


def test_it_is_computed_in_the_ways_of_the_device():
    """In half precision where a device is faster so: then the training is another by rounding alone."""
    nets = [trained(SOAP(**SOON, polish=True), Ways(polar=way), dtype=torch.float32)[0] for way in ("fp32", "fp16")]
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-3)
    assert not torch.equal(nets[0].tall.weight, nets[1].tall.weight)


def test_a_resumed_run_is_the_one_that_was_not_stopped():
    """It keeps nothing: what is saved has the names of a run without it."""
    method = SOAP(**SOON, polish=True)
    whole, *_ = trained(method, None)
    state = copy.deepcopy([part.state_dict() for part in trained(method, None, 6)])
    again, *_ = trained(method, None, state=state, first=6)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    plain = trained(SOAP(**SOON), None, 6)[2].state_dict()
    assert state[2].keys() == plain.keys()


def test_a_file_of_before_goes_on_without_it_and_not_with_it():
    state = copy.deepcopy([part.state_dict() for part in trained(SOAP(**SOON), None, 6)])
    state[2]["method"] = state[2]["method"].replace(", polish=False", "")
    assert "polish" not in state[2]["method"]
    whole, *_ = trained(SOAP(**SOON), None)
    again, *_ = trained(SOAP(**SOON), None, state=copy.deepcopy(state), first=6)
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    with pytest.raises(StateError, match=r"this run uses SOAP.*polish=True"):
        trained(SOAP(**SOON, polish=True), None, state=state, first=6)


def test_what_it_takes_is_in_the_cost_of_a_rotated_step_of_hidden_matrices():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(13, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 13, bias=False))
    optimizer = torch.optim.AdamW(net.parameters())
    for stack in attach(net, optimizer, SOAP()).parts.stacks:
        with_it, without = (
            {action: SOAP(polish=polish).step_cost(stack, action) for action in Action} for polish in (True, False)
        )
        extra = {action: with_it[action] - without[action] for action in Action}
        assert extra.pop(Action.ROTATE) == (0 if stack.edge else polar_cost(stack.shape, 5))
        assert not any(extra.values())


@pytest.mark.slow
def test_ranks_end_where_one_process_does(two):
    method = SOAP(**SOON, polish=True)
    alone = ranks.train(method, *ADAMW, 12, dtype=torch.float64)
    many = two.run(ranks.train, method, *ADAMW, 12, dtype=torch.float64)
    for weights, *_ in many:
        for name, value in alone[0].items():
            assert torch.equal(weights[name], many[0][0][name])
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_owners_of_pieces_end_where_one_process_does(two):
    method = SOAP(**SOON, polish=True)
    alone, many = shards.train(method, *ADAMW, steps=12), two.run(shards.train, method, *ADAMW, steps=12)
    for name, value in alone.weights.items():
        assert torch.equal(many[0].weights[name], many[1].weights[name])
        torch.testing.assert_close(many[0].weights[name], value, rtol=0, atol=1e-11)
