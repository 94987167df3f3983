"""KL-SOAP: factors of gradients that are whitened by the other side, against the formula; steps, files and ranks."""

import copy

import pytest
import torch
from torch import nn

from lightning_so import SOAP, ConfigError, StateError, attach
from lightning_so.contract.method import Action
from lightning_so.linalg.tiles import FLOOR
from tests.support import ranks, trainings

METHOD = SOAP(start=4, period=3, whiten=True)
ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})


def over_root(G, F, Q):
    """G Q over the roots of eigenvalues of F, relative to their mean; dense, in float64."""
    values = torch.diag(Q.T @ F @ Q)
    relative = values / values.mean() + FLOOR if values.any() else torch.ones_like(values)
    return G @ Q @ torch.diag(relative.rsqrt())


def attached(method, shape=(6, 4), dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Linear(shape[1], shape[0], bias=False).to(dtype)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    return net, optimizer, attach(net, optimizer, method)


def gradients(count, shape=(6, 4)):
    """On a falling spectrum."""
    generator = torch.Generator().manual_seed(3)
    fall = 10.0 ** -torch.arange(shape[1], dtype=torch.float64)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * fall for _ in range(count)]


def test_factors_are_those_of_the_formula():
    net, optimizer, engine = attached(METHOD)
    (stack,) = engine.parts.stacks
    rows, cols = stack.stats.sides
    L, R = torch.zeros(6, 6, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    whitened = 0
    for G in gradients(20):
        kept = [(side.factors[0][0].clone(), side.bases[0][0].clone()) for side in (rows, cols)]
        net.weight.grad = G.clone()
        optimizer.step()
        X, Y = over_root(G, *kept[1]), over_root(G.T, *kept[0])
        L, R = METHOD.beta * L + (1 - METHOD.beta) * X @ X.T, METHOD.beta * R + (1 - METHOD.beta) * Y @ Y.T
        torch.testing.assert_close(rows.factors[0][0], L, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(cols.factors[0][0], R, rtol=1e-10, atol=1e-12)
        whitened += bool(kept[1][0].any())
    assert whitened > 5
    assert engine.report.rotated == 1


def test_without_a_basis_on_one_side_its_diagonal_whitens():
    method = SOAP(start=0, period=2, cap=2, whiten=True)
    net, optimizer, engine = attached(method, (20, 3))  # 20 is longer than 8 tiles of 2
    rows, cols = engine.parts.stacks[0].stats.sides
    assert not rows.cuts
    for G in gradients(8, (20, 3)):
        net.weight.grad = G.clone()
        diagonal, old = rows.factors[0][0].clone(), torch.block_diag(*(F[0] for F in cols.factors))
        optimizer.step()
        seen = over_root(G.T, diagonal.diag(), torch.eye(20, dtype=torch.float64))
        new = 0.95 * old + 0.05 * torch.block_diag(*((seen @ seen.T)[cut, cut] for cut in cols.cuts))
        torch.testing.assert_close(torch.block_diag(*(F[0] for F in cols.factors)), new, rtol=1e-9, atol=1e-12)


def test_a_zero_gradient_stays_finite():
    net, optimizer, _ = attached(METHOD)
    for _ in range(12):
        net.weight.grad = torch.zeros_like(net.weight)
        optimizer.step()
    assert net.weight.isfinite().all()


def test_it_goes_on_from_a_file_bit_for_bit_and_not_without():
    grads = gradients(24)
    net, optimizer, engine = attached(METHOD)
    for at, G in enumerate(grads):
        if at == 13:
            kept = copy.deepcopy((net.state_dict(), optimizer.state_dict(), engine.state_dict()))
        net.weight.grad = G.clone()
        optimizer.step()
    again, optimizer, engine = attached(METHOD)
    for part, state in zip((again, optimizer, engine), copy.deepcopy(kept), strict=True):
        part.load_state_dict(state)
    for G in grads[13:]:
        again.weight.grad = G.clone()
        optimizer.step()
    assert torch.equal(net.weight, again.weight)
    plain, optimizer, engine = attached(SOAP(start=4, period=3))
    plain.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    with pytest.raises(StateError, match=r"whiten=True"):
        engine.load_state_dict(kept[2])


def test_what_it_takes_is_in_the_cost():
    _, _, engine = attached(METHOD)
    (stack,) = engine.parts.stacks
    for action in Action:
        extra = METHOD.step_cost(stack, action) - SOAP(start=4, period=3).step_cost(stack, action)
        assert extra == 6 * 4 * (6 + 4) + 6**3 + 4**3  # a rotation, and the eigenvalues of both


def test_the_argument_is_checked():
    with pytest.raises(ConfigError, match=r"SOAP\(whiten="):
        SOAP(whiten=1e-3)


@pytest.mark.slow
def test_ranks_end_where_one_process_does(two):
    alone = ranks.train(METHOD, *ADAMW, 16, dtype=torch.float64, shard=False)
    many = two.run(ranks.train, METHOD, *ADAMW, 16, dtype=torch.float64)
    for weights, *_ in many:
        for name, value in alone[0].items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-10)
    one = trainings.train("one", METHOD, ADAMW, 10, dtype=torch.float64)
    for sharded in two.run(trainings.train, "fsdp2", METHOD, ADAMW, 10, dtype=torch.float64):
        for name, value in one.weights.items():
            torch.testing.assert_close(sharded.weights[name], value, rtol=0, atol=1e-10)
