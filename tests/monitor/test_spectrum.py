"""Lanczos, quadrature and Hutchinson against dense matrices; probes that do not depend on how numbers are cut.

At the end, the spectrum of a model's loss against its dense Hessian.
"""

import json
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lightning_so import ConfigError, spectrum
from lightning_so.linalg.hutchinson import diagonal, trace
from lightning_so.linalg.lanczos import density, lanczos
from lightning_so.linalg.vectors import Piece, Space
from lightning_so.monitor.extremes import extremes
from lightning_so.monitor.over_time import MOST, remember


def space(n, dtype=torch.float64):
    """One parameter of n numbers."""
    return Space((Piece("w", 0, n, n),), dtype=dtype)


def symmetric(n, seed=0):
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (A + A.mT) / 2


def test_moments_are_exact_up_to_twice_the_steps():
    A, m = symmetric(12), 4
    start = space(12).normal(0)
    values, weights, _ = lanczos(lambda v: A @ v, start, m, space(12)).ritz()
    start, power = start / start.norm(), start / start.norm()
    for j in range(1, 2 * m + 1):
        power = A @ power
        error = abs(float(start @ power - (weights * values**j).sum())) / float(A.norm()) ** j
        assert error < 1e-14 if j < 2 * m else error > 1e-6


def test_all_steps_give_functions_of_the_matrix():
    A = symmetric(9)
    start = space(9).normal(1)
    found = lanczos(lambda v: A @ v, start, 20, space(9))
    values, weights, errors = found.ritz()
    L, Q = torch.linalg.eigh(A)
    torch.testing.assert_close(values, L, rtol=0, atol=1e-12)
    assert errors.max() < 1e-9
    exact = ((Q.mT @ start).square() * L.exp()).sum() / start.square().sum()
    torch.testing.assert_close((weights * values.exp()).sum(), exact, rtol=1e-12, atol=0)
    for number in (0, -1):
        v = found.vector(number)
        torch.testing.assert_close(A @ v, L[number] * v, rtol=0, atol=1e-11)


def test_the_bound_holds_and_closes():
    A = symmetric(60)
    L = torch.linalg.eigvalsh(A)
    for m in (5, 20, 40):
        values, _, errors = lanczos(lambda v: A @ v, space(60).normal(2), m, space(60)).ritz()
        gaps = (values[:, None] - L).abs().amin(1)
        assert bool((gaps <= errors + 1e-12).all())
    assert errors[-1] < 1e-8


def test_an_invariant_subspace_ends_it():
    A = torch.diag(torch.tensor([1.0, 1.0, 4.0, 4.0, 9.0], dtype=torch.float64))
    found = lanczos(lambda v: A @ v, space(5).rademacher(0), 5, space(5))
    values, weights, _ = found.ritz()
    assert found.rest == 0
    torch.testing.assert_close(values, torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64))


def test_a_product_that_is_not_finite_is_told_and_leaves_the_steps_before():
    A, calls = symmetric(8), []

    def product(v):
        calls.append(1)
        return A @ v * (math.nan if len(calls) == 3 else 1)

    found = lanczos(product, space(8).normal(0), 6, space(8))
    assert not found.ok
    assert (len(found.diagonal), len(found.beside), len(found.basis)) == (2, 1, 2)
    assert bool(found.ritz()[0].isfinite().all())


def test_quadrature_integrates_the_spectrum():
    A = symmetric(40)
    L = torch.linalg.eigvalsh(A)
    found = density(lambda v: A @ v, space(40), steps=30, probes=32)
    for function in (torch.square, torch.exp, lambda x: (x < 0).double()):
        mean, error = found.mean(function)
        assert abs(mean - float(function(L).mean())) < 4 * error
    assert abs(found.negative() - float((L < 0).double().mean())) < 0.1
    grid = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    assert abs(float(torch.trapezoid(found.at(grid, 0.3), grid)) - 1) < 1e-6


def test_one_probe_gives_the_trace_and_the_diagonal_of_a_diagonal_matrix():
    d = torch.randn(30, dtype=torch.float64)
    found = trace(lambda v: d * v, space(30), probes=1)
    assert abs(found.mean - float(d.sum())) < 1e-12
    assert found.error == math.inf
    torch.testing.assert_close(diagonal(lambda v: d * v, space(30), probes=1), d)


@pytest.mark.slow
def test_the_variances_are_those_of_the_equations():
    A, many = symmetric(6), 8_000
    samples = trace(lambda v: A @ v, space(6), probes=many).samples
    expected = 2 * (A.square().sum() - A.diagonal().square().sum())
    assert abs(float(samples.var() / expected) - 1) < 0.08
    each = torch.stack([(z := space(6).rademacher(7, n)) * (A @ z) for n in range(3000)])
    off = A.square().sum(1) - A.diagonal().square()
    assert float((each.var(0) / off - 1).abs().max()) < 0.12


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_probes_do_not_depend_on_how_the_numbers_are_cut(kind):
    pieces = (Piece("a", 0, 7, 7), Piece("b", 0, 100, 100))
    whole = getattr(Space(pieces), kind)(3, 1)
    first = Space((Piece("a", 0, 4, 7), Piece("b", 0, 61, 100)))
    second = Space((Piece("a", 4, 3, 7), Piece("b", 61, 39, 100)))
    a1, b1 = first.split(getattr(first, kind)(3, 1))
    a2, b2 = second.split(getattr(second, kind)(3, 1))
    assert torch.equal(torch.cat([a1, a2, b1, b2]), whole)
    assert not torch.equal(getattr(Space(pieces), kind)(3, 2), whole)
    assert not torch.equal(getattr(Space(pieces), kind)(4, 1), whole)
    assert first.dimension == 107


def test_probes_are_as_random_as_they_should_be():
    n = 200_000
    for numbers in (space(n).rademacher(0), space(n).normal(0)):
        assert abs(float(numbers.mean())) < 4 / n**0.5
        assert abs(float(numbers.var()) - 1) < 0.02
        for shift in (1, 2, 64):
            assert abs(float((numbers * numbers.roll(shift)).mean())) < 4 / n**0.5
    normal = space(n).normal(0)
    for limit, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert abs(float((normal.abs() < limit).double().mean()) - share) < 0.005
    assert bool(normal.isfinite().all())


class Net(nn.Module):
    """A small network; attention that cannot be differentiated twice, where it is asked for."""

    def __init__(self, attention=False, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.last = nn.Linear(4, 5), nn.Dropout(0.2), nn.Linear(5, 3)
        self.attention = attention
        self.to(dtype)

    def forward(self, x):
        x = self.first(x).tanh()
        if self.attention:
            x = nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])[0, 0]
        return self.last(self.drop(x))


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 4, generator=generator).to(dtype), torch.randint(3, (12,), generator=generator)


def dense(model, names):
    """The Hessian of some parameters, by torch.func."""
    x, y = data()
    params = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([params[name].reshape(-1) for name in names])

    def loss(w):
        parts = w.split([params[name].numel() for name in names])
        new = {name: part.view(params[name].shape) for name, part in zip(names, parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, {**params, **new}, (x,)), y)

    return torch.func.hessian(loss)(flat)


@pytest.mark.parametrize("names", [None, ["last.weight", "last.bias"]])
def test_of_a_model_it_is_that_of_the_dense_hessian(names):
    model, (x, y) = Net().eval(), data()
    found = spectrum(model, lambda: nn.functional.cross_entropy(model(x), y), params=names, steps=60, probes=40)
    H = dense(model, names or [name for name, _ in model.named_parameters()])
    values = torch.linalg.eigvalsh(H)
    assert abs(found.top - float(values[-1])) < 1e-9
    assert abs(found.bottom - float(values[0])) < 1e-9
    assert abs(found.trace.mean - float(values.sum())) < 4 * found.trace.error
    assert found.density.dimension == len(H)
    assert "double backward" in str(found)


def test_nothing_of_the_model_changes_and_its_dropout_is_one_function():
    model, (x, y) = Net(), data()
    model(x).sum().backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    by = {
        how: spectrum(model, lambda: nn.functional.cross_entropy(model(x), y), steps=40, probes=2, product=how)
        for how in ("exact", "difference")
    }
    assert torch.equal(torch.get_rng_state(), state)
    for p, (weight, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, weight)
        assert torch.equal(p.grad, grad)
    assert abs(by["exact"].top - by["difference"].top) < 1e-6


def test_where_there_is_no_double_backward_differences_are_taken_and_it_is_said():
    model, (x, y) = Net(attention=True, dtype=torch.float32).eval(), data(torch.float32)
    loss = lambda: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    found = spectrum(model, loss, steps=10, probes=1)
    assert "central differences: derivative for aten::_scaled_dot_product" in found.product
    assert found.top > 0
    with pytest.raises(ConfigError, match=r'derivative for aten::.*product="difference".*sdpa_kernel'):
        spectrum(model, loss, product="exact")


@pytest.mark.parametrize("hides", ["all", "first", "one use of two"])
def test_of_what_a_checkpoint_hides_no_double_backward_is_taken(hides):
    model, (x, y) = Net().eval(), data()
    x.requires_grad_()

    def loss():
        if hides == "all":  # Nothing is in the graph then, and torch does not complain.
            return nn.functional.cross_entropy(checkpoint(model, x, use_reentrant=True), y)
        first = checkpoint(model.first, x, use_reentrant=True) if hides == "first" else model.first(x)
        plain = nn.functional.cross_entropy(model.last(first.tanh()), y)
        if hides == "first":
            return plain
        return (plain + nn.functional.cross_entropy(checkpoint(model, x, use_reentrant=True), y)) / 2

    with pytest.raises(ConfigError, match=r'no double backward here \(.*checkpoint.*product="difference"'):
        spectrum(model, loss, product="exact")
    found = spectrum(model, loss, steps=20, probes=1)
    assert "central differences: " in found.product
    names = [name for name, _ in model.named_parameters()]
    assert abs(found.top - float(torch.linalg.eigvalsh(dense(model, names))[-1])) < 1e-6


def test_what_is_no_loss_is_refused():
    model, (x, _) = Net(), data()
    with pytest.raises(ConfigError, match=r"shape \(12, 3\) and a graph"):
        spectrum(model, lambda: model(x))
    with pytest.raises(ConfigError, match=r"\['middle.weight'\] are no parameters of Net"):
        spectrum(model, lambda: model(x).sum(), params=["middle.weight"])
    with pytest.raises(ConfigError, match="product must be one of"):
        spectrum(model, lambda: model(x).sum(), product="magic")


def of_ranks(product):
    """Of the mean loss over ranks; one more training step of the same model goes as before."""
    model, (x, y) = Net().eval(), data()
    wrapped = DistributedDataParallel(model)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    loss = lambda: nn.functional.cross_entropy(wrapped(x[mine]), y[mine])  # noqa: E731
    found = spectrum(wrapped, loss, steps=20, probes=2, product=product)
    assert wrapped.require_forward_param_sync
    loss().backward()
    return found, model.last.weight.grad


def of_pieces():
    """What is said of sharded parameters."""
    model, (x, y) = Net().eval(), data()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    loss = lambda: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    with pytest.raises(ConfigError, match=r'no double backward here \(of sharded.*product="difference"'):
        spectrum(model, loss, product="exact")
    return spectrum(model, loss, steps=20, probes=2)


@pytest.mark.parametrize(("product", "limit"), [("auto", 1e-12), ("difference", 1e-6)])
def test_ranks_see_the_spectrum_of_one_process(two, product, limit):
    model, (x, y) = Net().eval(), data()
    loss = lambda: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    one = spectrum(model, loss, steps=20, probes=2)
    loss().backward()
    for found, grad in two.run(of_ranks, product):
        assert found.names == one.names
        assert ("double backward" in found.product) == (product == "auto")
        torch.testing.assert_close(grad, model.last.weight.grad)
        for seen, expected in ((found.top, one.top), (found.bottom, one.bottom)):
            assert abs(seen - expected) < limit
        assert abs(found.trace.mean - one.trace.mean) < 10 * limit


def test_of_sharded_parameters_differences_are_taken(two):
    model, (x, y) = Net().eval(), data()
    one = spectrum(model, lambda: nn.functional.cross_entropy(model(x), y), steps=20, probes=2)
    for found in two.run(of_pieces):
        assert "central differences: of sharded" in found.product
        assert abs(found.top - one.top) < 1e-6


def test_of_many_spectra_every_second_goes_and_those_that_stay_are_of_the_whole_run():
    A, kept = symmetric(6), []
    seen = extremes(lambda v: A @ v, space(6).normal(1), space(6), steps=4, seed=0)
    for step in range(1, 1001):
        remember(kept, seen, step=step, lr=0.1, noise_scale=None)
        assert len(kept) <= MOST
    steps = [each["step"] for each in kept]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 1000)
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept
