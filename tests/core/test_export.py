"""The exported curvature of layers against what it says it is, and the Laplace example against a dense posterior."""

import io
from dataclasses import asdict

import pytest
import torch
from torch import nn

from examples.laplace import LastLayer
from lightning_so import EKFAC, KFAC, SOAP, ConfigError, Mixture, SecondOrder, attach, curvature
from tests.methods.test_ekfac import DOUBLE, LAYERS, sgd, stay
from tests.methods.test_kfac import close, data, dense, linears, losses, net, stats_of, tiled
from tests.support.daily import daily


def fisher_of(found):
    """The dense matrix that the docstring promises, of a layer with one group."""
    sides = [F[0] if F.ndim == 3 else F[0].diag() for F in (found.outputs, found.inputs)]
    return torch.kron(*(sides[::-1] if found.transposed else sides))


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize("method", [KFAC, EKFAC])
def test_factors_are_means_over_samples_of_one_samples_loss(method, cap):
    model, (x, y) = net(sizes=(3, 2)), data(6)
    engine = sgd(model, method(period=1, fisher="exact", cap=cap))
    stay(engine, lambda: losses(model, x, y).mean(), 5)
    found = curvature(engine)["0.weight"]
    a = torch.cat([x, torch.ones(6, 1, **DOUBLE)], 1)
    close(found.inputs[0], tiled(a.mT @ a / 6, cap))
    close(found.outputs[0], 2 * torch.eye(2, **DOUBLE))  # the Hessian of a squared error
    assert (found.bias, found.layer, found.fisher, found.transposed) == ("0.bias", "Linear", "exact", False)


def test_of_one_sample_it_is_the_fisher_matrix_of_every_layer():
    model, (x, y) = net(), data(1)
    engine = sgd(model, KFAC(fisher="empirical", period=1))
    stay(engine, lambda: losses(model, x, y).mean(), 3)
    found = curvature(engine)
    assert list(found) == list(linears(model))
    expected = {name: dense(layer, losses(model, x, y)) for name, layer in linears(model).items()}
    for name, matrix in expected.items():
        close(fisher_of(found[name]), matrix)


@pytest.mark.parametrize("name", ["grouped", "embedding"])
def test_factors_of_groups_and_diagonals_are_copies_of_the_owners(name):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    model, x = nn.Sequential(make(), nn.Tanh()), inputs()
    y = torch.randn_like(model(x))
    engine = sgd(model, KFAC(fisher="empirical", period=1))
    stay(engine, lambda: (model(x) - y).square().flatten(1).sum(1).mean(), 3)
    found, (stats, row) = curvature(engine)["0.weight"], stats_of(engine, "0.weight")
    for F, side in zip((found.inputs, found.outputs), stats.sides, strict=True):
        close(F, side.factors[0][row] / stats.weight[row])
        assert F.data_ptr() != side.factors[0].data_ptr()


@pytest.mark.parametrize("name", daily(LAYERS, "linear"))
def test_second_moments_are_the_diagonal_in_the_bases(name):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    model, x = nn.Sequential(make(), nn.Tanh()), inputs()
    y = torch.randn_like(model(x))
    engine = sgd(model, EKFAC(fisher="empirical", period=1, sharing="reduce"))
    stay(engine, lambda: (model(x) - y).square().flatten(1).sum(1).mean(), 160)
    found = curvature(engine)["0.weight"]
    (Q_A, Q_G), s = found.bases, found.moments
    for Q in (Q_A, Q_G):
        close(Q.mT @ Q, torch.eye(Q.shape[-1], dtype=Q.dtype).expand(Q.shape))
    left, right = (Q_A, Q_G) if found.transposed else (Q_G, Q_A)
    assert s.shape == (len(left), left.shape[-1], right.shape[-1])
    # The mean over samples of |grad|^2 does not depend on the basis.
    total = 0.0
    for value in (model(x) - y).square().flatten(1).sum(1):
        grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        total += sum(float(g.square().sum()) for g in (grads if found.bias else grads[:1]))
    assert float(s.sum()) == pytest.approx(total / len(x), rel=1e-3)


def test_it_can_be_saved_and_is_a_copy():
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical", period=1))
    stay(engine, lambda: losses(model, x, y).mean(), 6)
    found, file = curvature(engine), io.BytesIO()
    torch.save({name: asdict(layer) for name, layer in found.items()}, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    before = {name: layer.inputs.clone() for name, layer in found.items()}
    stay(engine, lambda: 3 * losses(model, 2 * x, y).mean(), 6)
    for name, layer in found.items():
        assert torch.equal(layer.inputs, before[name])
        assert torch.equal(again[name]["moments"], layer.moments)


def test_bases_are_there_once_all_their_tiles_are_solved():
    model, (x, y) = net(), data(6)
    engine = sgd(model, EKFAC(fisher="empirical"))
    stay(engine, lambda: losses(model, x, y).mean(), 1)  # observed, not solved
    assert all(layer.bases is None and layer.moments is None for layer in curvature(engine).values())
    stay(engine, lambda: losses(model, x, y).mean(), 20)
    assert all(float(layer.moments.sum()) > 0 for layer in curvature(engine).values())


def test_layers_that_were_never_seen_are_not_in_it():
    model, (x, y) = net(), data(6)
    engine = sgd(model, KFAC(fisher="empirical", period=1))
    model[2].requires_grad_(False)
    stay(engine, lambda: losses(model, x, y).mean(), 3)
    assert list(curvature(engine)) == ["0.weight", "4.weight"]


def test_methods_without_layers_say_so():
    model = net()
    engine = attach(model, torch.optim.AdamW(model.parameters()), SOAP())
    with pytest.raises(ConfigError, match="SOAP observes no layers; train with KFAC"):
        curvature(engine)
    engine.detach()
    engine = attach(
        model, torch.optim.AdamW(model.parameters()), Mixture({"0.*": KFAC(fisher="empirical", period=1), "*": SOAP()})
    )
    x, y = data(6)
    stay(engine, lambda: losses(model, x, y).mean(), 2)
    assert list(curvature(engine)) == ["0.weight"]


def test_the_example_is_the_dense_posterior():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 1, **DOUBLE), torch.randn(30, 4, **DOUBLE), torch.randn(30, 1, **DOUBLE)
    engine = sgd(model, KFAC(period=1, fisher="exact"))
    stay(engine, lambda: (model(x) - y).square().mean(), 4)
    weight = torch.cat([model.weight.detach()[0], model.bias.detach()])
    posterior = LastLayer(curvature(engine)["weight"], weight, 0.3, 30)
    a = torch.cat([x, torch.ones(30, 1, **DOUBLE)], 1)
    precision = a.mT @ a / 0.3 + posterior.prior * torch.eye(5, **DOUBLE)
    close(posterior.variance(x), 0.3 + (a * torch.linalg.solve(precision, a.mT).mT).sum(1))
    # d is where the evidence, P/2 log d - d |w|^2 / 2 - log det / 2, is largest.
    evidence = [
        2.5 * torch.log(d) - d * weight.square().sum() / 2 - torch.logdet(a.mT @ a / 0.3 + d * torch.eye(5)) / 2
        for d in posterior.prior * torch.tensor([0.8, 1.0, 1.25], **DOUBLE)
    ]
    assert evidence[1] > max(evidence[0], evidence[2])


def test_it_works_after_a_fit(tmp_path):
    from tests.callbacks.test_second_order import fit, module

    callback = SecondOrder(KFAC(fisher="empirical"))
    fit(module(), [callback])
    assert set(curvature(callback.engines[0])) == {block.name for block in callback.engines[0].plan.blocks}
