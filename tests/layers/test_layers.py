"""Layers as rows: shared weights, convolutions and embeddings against their definitions."""

import copy
import math
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import KFAC, SOAP, Muon, Relative, Shampoo, attach
from lightning_so.layers.registry import lookup
from tests.methods.test_kfac import (
    EXACT,
    close,
    columns,
    dense,
    error,
    factors,
    gradient,
    linears,
    matrix,
    product,
    sgd,
    step,
)
from tests.support.peers import PEERS

DOUBLE = {"dtype": torch.float64}


def randn(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def spied(model, names, run):
    """Calls (input, gradient of the summed loss in the output) of layers; the model is a copy."""
    model, seen = copy.deepcopy(model), {name: [] for name in names}
    for name in names:
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda m, args, out, name=name: seen[name].append((args[0].detach(), out)))
    total = run(model)
    flat = [out for calls in seen.values() for _, out in calls]
    grads = iter(torch.autograd.grad(total, flat))
    return {name: [(x, next(grads)) for x, _ in calls] for name, calls in seen.items()}


def with_one(a):
    return torch.cat([a, torch.ones(*a.shape[:-1], 1, dtype=a.dtype)], -1)


# ---------------------------------------------------------------- shared weights


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("setting", ["expand", "reduce"])
def test_each_sharing_is_exact_in_its_own_setting_alone(setting, sharing):
    model = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Linear(4, 2, **DOUBLE))
    x = randn(5, 6, 3)

    def outputs():
        return model(x) if setting == "expand" else model(x).mean(1)

    values = outputs().flatten()
    expected = {name: 2 * dense(layer, values) for name, layer in linears(model).items()}
    engine = sgd(model, KFAC(fisher="empirical", sharing=sharing, period=1), lr=0.0)
    columns(engine, outputs)
    engine.optimizer.step()
    for name, exact in expected.items():
        found = product(engine, name)
        assert (error(found, exact) < 1e-10) if setting == sharing else (error(found, exact) > 1e-3)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("pooled", [False, True])
def test_factors_of_a_sequence_are_those_of_the_definition(pooled, sharing):
    N, T, x = 4, 5, randn(4, 5, 3)
    model = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))

    def losses(model):
        if pooled:
            return model[2](model[:2](x).mean(1)).square().sum(1)
        return model(x).square().sum(2).flatten()

    calls = spied(model, ["0"], lambda m: losses(m).sum())["0"]
    (_, g), a = calls[0], with_one(x)
    engine = sgd(model, KFAC(fisher="empirical", sharing=sharing, period=1))
    step(engine, losses(model).mean())
    A, G = factors(engine, "0.weight")
    if sharing == "expand":
        close(A[0], torch.einsum("nti,ntj->ij", a, a) / (N * T))
        close(G[0], torch.einsum("nti,ntj->ij", g, g) / (N if pooled else N * T))
    else:
        close(A[0], torch.einsum("ni,nj->ij", a.mean(1), a.mean(1)) / N)
        # Of a sample's loss, the mean of its positions' losses where it is not pooled.
        g = g.sum(1) if pooled else g.sum(1) / T
        close(G[0], torch.einsum("ni,nj->ij", g, g) / N)


def test_pooled_outputs_reduced_have_one_loss_term_a_sample():
    x, N = randn(4, 5, 3), 4
    model = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))
    calls = spied(model, ["0", "2"], lambda m: m(x).mean(1).square().sum())
    engine = sgd(model, KFAC(fisher="empirical", period=1, sharing="reduce"))
    step(engine, model(x).mean(1).square().sum(1).mean())
    for name, [(_, g)] in calls.items():
        close(factors(engine, f"{name}.weight")[1][0], g.sum(1).mT @ g.sum(1) / N)


def test_a_lone_image_is_one_sample():
    one, many, x = nn.Conv2d(2, 3, 3, **DOUBLE), nn.Conv2d(2, 3, 3, **DOUBLE), randn(1, 2, 4, 4)
    many.load_state_dict(one.state_dict())
    engines = [sgd(one, KFAC(fisher="empirical", period=1)), sgd(many, KFAC(fisher="empirical", period=1))]
    for engine, inputs in zip(engines, (x[0], x)):
        step(engine, engine.host.model(inputs).square().sum())
    for found, expected in zip(factors(engines[0], "weight"), factors(engines[1], "weight")):
        close(found, expected)


def test_positions_without_a_gradient_are_no_samples():
    model = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))
    short, (x, mask) = copy.deepcopy(model), (randn(4, 5, 3), torch.arange(5) < torch.tensor([[5], [3], [1], [4]]))
    engine, other = sgd(model, KFAC(fisher="empirical", period=1)), sgd(short, KFAC(fisher="empirical", period=1))
    step(engine, model(x).square().sum(2)[mask].mean())
    step(other, short(x[mask]).square().sum(1).mean())
    for name in linears(model):
        for found, expected in zip(factors(engine, name), factors(other, name)):
            close(found, expected)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("setting", ["expand", "reduce"])
def test_a_convolution_is_exact_in_its_own_setting_alone(setting, sharing):
    conv, x = nn.Conv2d(2, 3, 3, padding=1, **DOUBLE), randn(4, 2, 4, 4)
    f = conv(x).permute(0, 2, 3, 1)
    values = f.flatten() if setting == "expand" else f.mean((1, 2)).flatten()
    exact = 3 * dense(conv, values)
    engine = sgd(conv, KFAC(fisher="empirical", sharing=sharing, period=1), lr=0.0)

    def outputs():
        f = conv(x).permute(0, 2, 3, 1)
        # One sample's loss is the mean over its 16 pixels of |f|^2 / 2, which has the Hessian I / 16.
        return f.sum((1, 2)) / 4 if setting == "expand" else f.mean((1, 2))

    columns(engine, outputs)
    engine.optimizer.step()
    found = product(engine, "weight")
    assert (error(found, exact) < 1e-10) if setting == sharing else (error(found, exact) > 1e-3)


# ---------------------------------------------------------------- convolutions


def padded(conv, x):
    """The padded input, by torch's documentation."""
    if conv.padding == "same":
        total = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation)]
        top, left = (t // 2 for t in total)
        sides = (left, total[1] - left, top, total[0] - top)
    elif conv.padding == "valid":
        sides = (0, 0, 0, 0)
    else:
        sides = (conv.padding[1],) * 2 + (conv.padding[0],) * 2
    return F.pad(x, sides, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)


def walk(conv, x):
    """(Q, N, T, C/Q kh kw): patches by loops over samples and positions."""
    found, x = [], padded(conv, x)
    spans = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation)]
    for channels in torch.arange(x.shape[1]).chunk(conv.groups):
        for sample in x:
            for i in range(0, x.shape[2] - spans[0] + 1, conv.stride[0]):
                for j in range(0, x.shape[3] - spans[1] + 1, conv.stride[1]):
                    window = sample[channels, i : i + spans[0], j : j + spans[1]]
                    found.append(window[:, :: conv.dilation[0], :: conv.dilation[1]].flatten())
    return torch.stack(found).view(conv.groups, len(x), -1, len(found[0]))


CONVS = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)},
    {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": (3, 2), "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate", "stride": 2},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False},
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("arguments", CONVS, ids=lambda a: "-".join(f"{k}={v}" for k, v in a.items()))
def test_factors_of_a_convolution_are_those_of_its_patches(arguments, sharing):
    conv, x = nn.Conv2d(4, 4, **arguments, **DOUBLE), randn(3, 4, 6, 5)
    model, Q = nn.Sequential(conv, nn.Tanh()), conv.groups
    a = walk(conv, x)
    if conv.bias is not None:
        a = with_one(a)
    W = matrix(conv).unflatten(0, (Q, -1))
    close(torch.einsum("qoi,qnti->nqot", W, a).flatten(1, 2), conv(x).detach().flatten(2))  # the oracle's own proof
    g = spied(model, ["0"], lambda m: m(x).square().sum())["0"][0][1]
    g = g.flatten(2).unflatten(1, (Q, -1)).permute(1, 0, 3, 2)
    engine = sgd(model, KFAC(fisher="empirical", sharing=sharing, period=1))
    step(engine, model(x).square().sum((1, 2, 3)).mean())
    if sharing == "reduce":
        a, g = a.mean(2, keepdim=True), g.sum(2, keepdim=True)
    A, G = factors(engine, "0.weight")
    close(A, torch.einsum("qnti,qntj->qij", a, a) / (a.shape[1] * a.shape[2]))
    close(G, torch.einsum("qnti,qntj->qij", g, g) / 3)


def test_pixels_without_a_gradient_are_no_padding():
    conv, x = nn.Conv2d(2, 3, 3, **DOUBLE), randn(4, 2, 5, 5)
    engine = sgd(conv, KFAC(fisher="empirical", period=1))
    step(engine, conv(x)[..., :2].square().sum((1, 2, 3)).mean())
    a = with_one(walk(conv, x)[0])
    close(factors(engine, "weight")[0][0], torch.einsum("nti,ntj->ij", a, a) / (4 * 9))


@EXACT
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_sample_and_one_pixel_give_the_dense_fisher_of_every_group_and_its_inverse(groups, exact):
    conv, x, lam = nn.Conv2d(4, 4, 3, groups=groups, **DOUBLE), randn(1, 4, 3, 3), 0.1
    before = matrix(conv)
    values = conv(x).tanh().square().sum()
    flat = gradient(conv, values)
    model = nn.Sequential(conv, nn.Tanh())
    engine = sgd(model, KFAC(fisher="empirical", damping=lam, exact=exact, clip=None, period=1))
    step(engine, model(x).square().sum((1, 2, 3)).mean())
    A, G = factors(engine, "0.weight")
    means = [M.diagonal(dim1=1, dim2=2).mean() for M in (A, G)]
    parts = flat.chunk(groups), (before - matrix(conv)).chunk(groups)
    for q, (g, U) in enumerate(zip(*parts)):
        close(torch.kron(G[q], A[q]), torch.outer(g.flatten(), g.flatten()))
        a_eye, g_eye = torch.eye(len(A[q]), **DOUBLE), torch.eye(len(G[q]), **DOUBLE)
        if exact:
            full = torch.outer(g.flatten(), g.flatten()) + lam * torch.eye(g.numel(), **DOUBLE)
            expected = torch.linalg.solve(full, g.flatten()).view_as(g)
        else:
            pi = (means[0] / means[1]).sqrt()
            expected = torch.linalg.solve(G[q] + math.sqrt(lam) / pi * g_eye, g)
            expected = torch.linalg.solve(A[q] + math.sqrt(lam) * pi * a_eye, expected, left=False)
        close(U, expected, 1e-9)


# ---------------------------------------------------------------- every dimension, plain and transposed

KERNELS = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, **DOUBLE), (3, 4, 9)),
    "conv1d-same": (nn.Conv1d(4, 6, 4, padding="same", dilation=2, padding_mode="circular", **DOUBLE), (3, 4, 9)),
    "conv1d-lone": (nn.Conv1d(4, 6, 3, **DOUBLE), (4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), dilation=(2, 1), **DOUBLE), (3, 4, 6, 5)),
    "conv2d-depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1, **DOUBLE), (3, 4, 6, 5)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=1, groups=2, **DOUBLE), (2, 2, 4, 5, 3)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, **DOUBLE), (3, 4, 5)),
    "transposed1d-longer": (nn.ConvTranspose1d(4, 6, 2, dilation=3, output_padding=2, **DOUBLE), (3, 4, 5)),
    "transposed1d-grouped": (nn.ConvTranspose1d(4, 6, 3, stride=3, groups=2, dilation=2, **DOUBLE), (3, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), **DOUBLE), (3, 4, 5, 4)),
    "transposed2d-lone": (nn.ConvTranspose2d(4, 6, 3, 2, **DOUBLE), (4, 5, 4)),
    "transposed3d": (nn.ConvTranspose3d(2, 4, 2, 2, padding=1, groups=2, bias=False, **DOUBLE), (2, 2, 3, 4, 3)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_rows_make_the_gradient_of_the_weight(name):
    layer, shape = KERNELS[name]
    x, (described,) = randn(*shape), lookup(layer)
    out = layer(x)
    g = randn(*out.shape, seed=4)
    (grad,) = torch.autograd.grad(out, layer.weight, g)
    inputs, outputs = described.inputs(layer, x), described.outputs(layer, g)
    if described.input_side:
        made = torch.einsum("qnto,qnti->qoi", outputs, inputs)
    else:
        made = torch.einsum("qnti,qnto->qio", inputs, outputs)
    close(made.flatten(0, 1), grad.flatten(1))


@pytest.mark.parametrize("name", KERNELS)
@EXACT
def test_kernels_of_every_dimension_train_under_either_base(name, exact):
    layer, shape = KERNELS[name]
    x = randn(*shape)
    for cls in (torch.optim.SGD, torch.optim.AdamW):
        model = nn.Sequential(copy.deepcopy(layer), nn.Tanh())
        engine = attach(model, cls(model.parameters(), lr=1e-2), KFAC(fisher="empirical", period=1, exact=exact, cap=8))
        before = float(model(x).square().mean())
        for _ in range(5):
            step(engine, model(x).square().mean())
        assert float(model(x).square().mean()) < before
        assert engine.report.preconditioned + engine.report.bent == 1
        assert engine.report.failures == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_one_pixel_of_a_transposed_convolution_has_the_dense_fisher_and_its_inverse(groups):
    layer, x, lam = nn.ConvTranspose2d(4, 6, 2, groups=groups, **DOUBLE), randn(1, 4, 1, 1), 0.1
    before = layer.weight.detach().flatten(1).clone()
    (grad,) = torch.autograd.grad(layer(x).tanh().square().sum(), layer.weight)
    model = nn.Sequential(layer, nn.Tanh())
    engine = sgd(model, KFAC(fisher="empirical", damping=lam, exact=True, clip=None, period=1))
    step(engine, model(x).square().sum((1, 2, 3)).mean())
    A, G = factors(engine, "0.weight")
    moved = before - layer.weight.detach().flatten(1)
    for q, (g, U) in enumerate(zip(grad.flatten(1).chunk(groups), moved.chunk(groups))):
        close(torch.kron(A[q], G[q]), torch.outer(g.flatten(), g.flatten()))
        full = torch.outer(g.flatten(), g.flatten()) + lam * torch.eye(g.numel(), **DOUBLE)
        close(U, torch.linalg.solve(full, g.flatten()).view_as(g), 1e-9)


# ---------------------------------------------------------------- a linear layer the other way round


@EXACT
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_a_hugging_face_layer_trains_as_a_linear_layer_whose_bias_is_no_column(cls, exact, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path, str(PEERS)])
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    x, mask = randn(4, 5, 3), torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    model = nn.Sequential(Conv1D(4, 3), nn.Tanh(), Conv1D(2, 4)).double()
    twin = nn.Sequential(nn.Linear(3, 4, **DOUBLE), nn.Tanh(), nn.Linear(4, 2, **DOUBLE))
    for n in (0, 2):
        twin[n].load_state_dict({"weight": model[n].weight.mT, "bias": model[n].bias})
    method, engines = KFAC(fisher="empirical", damping=0.1, exact=exact, period=1), []
    for net, route in ((model, None), (twin, {"base": ["*.bias"]})):
        engines.append(attach(net, cls(net.parameters(), lr=0.05), method, route=route))
        for _ in range(4):
            step(engines[-1], net(x).square().sum(2)[mask].mean())
    verdicts = {row.name: row.verdict for row in engines[0].plan.rows}
    for n in (0, 2):
        assert verdicts[f"{n}.bias"] == "base: bias of Conv1D is not a column of its matrix"
        close(model[n].weight.detach(), twin[n].weight.detach().mT, 1e-8)
        close(model[n].bias.detach(), twin[n].bias.detach(), 1e-8)
        for found, expected in zip(factors(engines[0], f"{n}.weight"), factors(engines[1], f"{n}.weight")):
            close(found, expected, 1e-8)


def test_a_type_is_known_by_its_name_alone():
    kind = type("Conv1D", (nn.Linear,), {"__module__": "transformers.pytorch_utils", "forward": lambda m, x: x})
    (found,) = lookup(kind(3, 4))
    assert found.input_side == 0
    assert found.bias is None
    assert lookup(type("Conv1D", (nn.Linear,), {"forward": lambda m, x: x})(3, 4)) == ()


# ---------------------------------------------------------------- what stays on the base, and why


def verdicts(model, optimizer=torch.optim.AdamW):
    """Of every parameter beside a layer that is covered."""
    model = nn.ModuleDict({"covered": nn.Linear(2, 2), **model})
    engine = attach(model, optimizer(model.parameters(), lr=1e-3), KFAC(fisher="empirical"))
    return {row.name: row.verdict for row in engine.plan.rows}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_layers_are_refused_with_what_works_on_them(kind):
    found = verdicts({"cell": kind(3, 4)}, torch.optim.SGD)  # the last Linear beside one is a head
    weights = {name: verdict for name, verdict in found.items() if name.startswith("cell.weight")}
    assert len(weights) == 2
    assert set(weights.values()) == {"base: one fused call: no rows; SOAP, Shampoo or Muon work on it"}
    model = kind(3, 4)
    for method in (SOAP(), Shampoo(), Muon()):
        engine = attach(model, torch.optim.AdamW(model.parameters()), method)
        assert len(engine.plan.blocks) == 2
        engine.detach()


def test_a_bias_that_is_no_column_is_named_with_the_reason():
    found = verdicts({"up": nn.ConvTranspose2d(2, 3, 2), "own": nn.Bilinear(2, 3, 4)})
    assert found["up.bias"] == "base: bias of ConvTranspose2d is not a column of its matrix"
    assert found["own.weight"].startswith("base: no rows for Bilinear; known: BatchNorm1d, ")


class OwnLinear(nn.Linear):
    """As timm.layers.Linear: a linear layer's name and weights, and a forward pass of its own."""

    def forward(self, input):
        return super().forward(input)


def test_a_layer_whose_forward_pass_is_its_own_is_named_with_what_to_do():
    name = f"{__name__}.OwnLinear"
    reason = (
        f"base: no rows for {name}: its forward pass is not that of Linear; register('{name}', ...) says what it is"
    )
    assert verdicts({"own": OwnLinear(2, 2)})["own.weight"] == reason


def test_a_layer_of_another_package_is_named_in_full_where_ours_has_its_name():
    linear = type("Linear", (nn.Module,), {"__module__": "other", "forward": lambda self, x: x @ self.weight})()
    linear.weight = nn.Parameter(torch.ones(2, 2))
    assert verdicts({"own": linear})["own.weight"].startswith("base: no rows for other.Linear; known: BatchNorm1d, ")


def test_a_bias_in_a_group_without_decay_is_named_with_its_weight():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [{"params": [model[0].weight, model[1].weight, model[1].bias]}, {"params": [model[0].bias]}]
    plan = attach(model, torch.optim.SGD(groups, lr=1e-3), KFAC(fisher="empirical")).plan
    found = {row.name: row.verdict for row in plan.rows}
    assert found["0.bias"] == "base: no column of 0.weight, which is in another param group"
    assert found["1.bias"] == "with 1.weight"


def test_what_is_tied_is_named_with_both_layers():
    model = {name: nn.Linear(3, 3) for name in ("one", "two", "three", "four")}
    model["two"].weight, model["four"].bias = model["one"].weight, model["three"].bias
    found = verdicts(model)
    assert found["one.weight"] == "base: tied: one and two share it"
    assert found["three.bias"] == "base: tied: three and four share it"
    assert "two.weight" not in found
    assert found["three.weight"].startswith("hidden: ")
    assert "bias" not in found["three.weight"]


# ---------------------------------------------------------------- normalisations

NORMS = {
    "layer": (lambda: nn.LayerNorm(4, **DOUBLE), (5, 4)),
    "layer-scale": (lambda: nn.LayerNorm(4, bias=False, **DOUBLE), (5, 4)),
    "rms": (lambda: nn.RMSNorm(4, **DOUBLE), (5, 4)),
    "group": (lambda: nn.GroupNorm(2, 4, **DOUBLE), (5, 4, 3)),
    "batch": (lambda: nn.BatchNorm1d(4, **DOUBLE), (5, 4)),
    "batch-images": (lambda: nn.BatchNorm2d(4, **DOUBLE), (5, 4, 3, 2)),
}


class Normed(nn.Module):
    """A normalisation with scales away from one, one of them zero, and something behind it."""

    def __init__(self, name):
        super().__init__()
        make, shape = NORMS[name]
        self.norm, self.x = make(), randn(*shape)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1.0, -0.5, 0.0, 2.0]))
        self.behind = randn(math.prod(shape[1:]), 2, seed=5)

    def forward(self):
        return (torch.tanh(self.norm(self.x)).flatten(1) @ self.behind).square().sum(1)


def unit_gradients(model):
    """(N, D, parts): the gradient of every sample's loss in the scale and the shift of every unit."""
    found = []
    for value in model():
        parts = torch.autograd.grad(value, list(model.norm.parameters()), retain_graph=True)
        found.append(torch.stack(parts, -1))
    return torch.stack(found)


@pytest.mark.parametrize("name", NORMS)
@EXACT
def test_a_normalisation_has_the_blocks_of_the_dense_fisher_of_its_units(name, exact):
    model, lam = Normed(name), 0.1
    # Of a batch's statistics every sample depends on all: a unit's gradient is taken with them held.
    G = unit_gradients(model) if "batch" not in name else held(model)
    expected = torch.einsum("nup,nuq->upq", G, G) / len(G)
    before, grad = matrix(model.norm), torch.autograd.grad(model().mean(), list(model.norm.parameters()))
    engine = sgd(model, KFAC(fisher="empirical", damping=lam, exact=exact, clip=None, period=1))
    step(engine, model().mean())
    ones, blocks = factors(engine, "norm.weight")
    close(ones, torch.ones_like(ones))
    close(blocks, expected)
    g = torch.stack(grad, -1)[..., None]
    eye = torch.eye(g.shape[1], **DOUBLE)
    if exact:
        U = torch.linalg.solve(expected + lam * eye, g)
    else:
        root = math.sqrt(lam * float(expected.diagonal(dim1=1, dim2=2).mean()))
        U = torch.linalg.solve(expected + root * eye, g) / (1 + lam / root)
    close(before - matrix(model.norm), U[..., 0], 1e-9)


def held(model):
    """The same with the batch's statistics held."""
    x_hat = F.batch_norm(model.x, None, None, training=True)
    out = model.norm(model.x).detach().requires_grad_()
    total = (torch.tanh(out).flatten(1) @ model.behind).square().sum()
    (g,) = torch.autograd.grad(total, out)
    return torch.stack([(x_hat * g).reshape(5, 4, -1).sum(2), g.reshape(5, 4, -1).sum(2)], -1)


@pytest.mark.parametrize("where", ["frozen", "in another group"])
@pytest.mark.parametrize("name", [name for name in NORMS if name not in ("layer-scale", "rms")])
def test_a_shift_that_is_not_in_the_block_is_not_in_its_factor(name, where):
    model, elsewhere = Normed(name), where == "in another group"
    G = (unit_gradients(model) if "batch" not in name else held(model))[..., :1]
    model.norm.bias.requires_grad_(elsewhere)
    groups = [{"params": [model.norm.weight]}, {"params": [model.norm.bias], "lr": 0.25}]
    optimizer = torch.optim.SGD(groups if elsewhere else groups[:1], lr=1.0)
    engine = attach(model, optimizer, KFAC(fisher="empirical", damping=0.1, clip=None, period=1, exact=True))
    grads = torch.autograd.grad(model().mean(), [p for group in optimizer.param_groups for p in group["params"]])
    scale, shift = model.norm.weight.detach().clone(), model.norm.bias.detach().clone()
    step(engine, model().mean())
    expected = G.square().mean(0)
    close(factors(engine, "norm.weight")[1].flatten(), expected.flatten())
    close(scale - model.norm.weight, grads[0] / (expected.flatten() + 0.1), 1e-9)
    # The shift is the base's, if anybody's.
    close(shift - model.norm.bias, 0.25 * grads[1] if elsewhere else torch.zeros_like(shift))


def test_positions_of_a_sequence_are_terms_of_its_normalisation():
    layer, x = nn.LayerNorm(4, **DOUBLE), randn(5, 3, 4)
    engine = sgd(nn.Sequential(layer, nn.Tanh()), KFAC(fisher="empirical", period=1))
    out = engine.host.model(x)
    y = layer(x).detach().requires_grad_()
    step(engine, out.square().sum(2).mean())
    (g,) = torch.autograd.grad(torch.tanh(y).square().sum(), y)
    pairs = torch.stack([(F.layer_norm(x, (4,)) * g).sum(1), g.sum(1)], -1)  # of a sample's sum over positions
    close(factors(engine, "0.weight")[1], torch.einsum("nup,nuq->upq", pairs, pairs) / 15, 1e-2)


def test_a_normalisation_of_several_dimensions_is_refused_by_name():
    model = nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 2))
    engine = attach(model, torch.optim.AdamW(model.parameters()), KFAC(fisher="empirical"))
    assert "it normalises several dimensions" in str(engine.plan)


# ---------------------------------------------------------------- embeddings


class Words(nn.Module):
    """Embedded words, or the same by a matrix and one-hot words; masked words reach nothing behind."""

    def __init__(self, one_hot, padding):
        super().__init__()
        self.one_hot = one_hot
        self.embed = nn.Linear(7, 4, bias=False, **DOUBLE) if one_hot else nn.Embedding(7, 4, padding, **DOUBLE)
        self.head = nn.Linear(4, 2, **DOUBLE)

    def forward(self, x, mask):
        h = self.embed(F.one_hot(x, 7).double() if self.one_hot else x)
        return self.head(torch.tanh(h * mask[..., None]).mean(1))


@EXACT
@pytest.mark.parametrize("damping", [Relative(0.1), 0.1], ids=["relative", "absolute"])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_an_embedding_is_a_linear_layer_on_one_hot_inputs(cls, padding, damping, exact):
    words, matrices = Words(False, padding), Words(True, padding)
    matrices.head.load_state_dict(words.head.state_dict())
    matrices.embed.weight.data.copy_(words.embed.weight.mT)
    x = torch.randint(0, 6, (5, 4), generator=torch.Generator().manual_seed(0))  # Word 6 never comes.
    mask = torch.ones_like(x) if padding is None else (x != padding).long()
    start = words.embed.weight.detach().clone()
    method = KFAC(fisher="empirical", damping=damping, exact=exact, clip=None, period=1)
    engines = [attach(m, cls(m.parameters(), lr=0.1), method) for m in (words, matrices)]
    for engine in engines:
        for _ in range(3):
            step(engine, engine.host.model(x, mask).square().sum(1).mean())
    (diagonal, G), (A, H) = (factors(engine, "embed.weight") for engine in engines)
    counts = torch.bincount(x[mask.bool()], minlength=7).double()
    close(diagonal[0], counts / counts.sum())
    close(A[0], diagonal[0].diag())
    close(G, H)
    close(words.embed.weight.detach(), matrices.embed.weight.detach().mT)
    moved = (words.embed.weight.detach() - start).abs().sum(1) > 0
    if cls is torch.optim.SGD:
        assert moved.tolist() == (counts > 0).tolist()
