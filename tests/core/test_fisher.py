"""Fisher matrices of the model's own distribution against the dense Gauss-Newton matrix."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_so import KFAC, ConfigError, TrustError, attach
from lightning_so.core.statistics.fisher import seed_of
from tests.methods.test_kfac import close, data, error, factors, gradient, linears, net, product, stats_of
from tests.support import noted


def by_hand(f, y, c):
    return (f - y).square().sum(1).mean()


def times_itself(f, y, c):
    r = f - y
    return (r * r).sum() / len(f)


def masked(f, y, c):
    return (F.cross_entropy(f, c, reduction="none") * (c + 1.0)).sum() / len(f)


def half(f, c):
    return 2 * torch.eye(f.shape[1], dtype=f.dtype).expand(len(f), -1, -1)


def softmax(f, c):
    p = f.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


def sigmoid(f, c):
    p = f.sigmoid()
    return torch.diag_embed(p * (1 - p))


WEIGHT = torch.tensor([0.5, 3.0], dtype=torch.float64)
# name -> (loss of predictions, real targets and labels; the Hessian of each sample's loss in its predictions)
LOSSES = {
    "mse_loss": (lambda f, y, c: F.mse_loss(f, y), lambda f, c: half(f, c) / f.shape[1]),
    "mse_loss(sum)/N": (lambda f, y, c: F.mse_loss(f, y, reduction="sum") / len(f), half),
    "mse_loss(sum)": (lambda f, y, c: F.mse_loss(f, y, reduction="sum"), half),
    "by hand": (by_hand, half),
    "r * r": (times_itself, half),
    "pow": (lambda f, y, c: ((f - y) ** 2).sum(1).mean(), half),
    "cross_entropy": (lambda f, y, c: F.cross_entropy(f, c), softmax),
    "log_softmax(-1)": (lambda f, y, c: F.nll_loss(f.log_softmax(-1), c), softmax),
    "half of it": (lambda f, y, c: 0.5 * F.cross_entropy(f, c), lambda f, c: softmax(f, c) / 2),
    "masked": (masked, lambda f, c: softmax(f, c) * (c + 1.0)[:, None, None]),
    "class weights": (
        lambda f, y, c: F.cross_entropy(f, c, weight=WEIGHT),
        lambda f, c: softmax(f, c) * (WEIGHT[c] / WEIGHT[c].mean())[:, None, None],
    ),
    "images": (
        lambda f, y, c: F.cross_entropy(f.view(len(f), -1, 1, 1), c.view(-1, 1, 1)),
        softmax,
    ),
    "logistic": (lambda f, y, c: F.binary_cross_entropy_with_logits(f, y.sigmoid(), reduction="sum") / len(f), sigmoid),
    "logistic, weighted": (
        lambda f, y, c: (
            F.binary_cross_entropy_with_logits(
                f, torch.ones_like(y), weight=WEIGHT, pos_weight=2 * WEIGHT, reduction="none"
            )
            .sum(1)
            .mean()
        ),
        lambda f, c: sigmoid(f, c) * (2 * WEIGHT * WEIGHT)[:, None],
    ),
    "two": (
        lambda f, y, c: F.cross_entropy(f, c) + 3 * by_hand(f, y, c),
        lambda f, c: softmax(f, c) + 3 * half(f, c),
    ),
}
CONSTANT = [name for name, (_, hessian) in LOSSES.items() if hessian is half or name == "mse_loss"]


def gauss_newton(model, layer, x, labels, hessians):
    """Mean over samples of J' H J, J the derivative of the predictions in the layer's matrix."""
    f = model(x)
    total = 0.0
    for n, H in enumerate(hessians(f.detach(), labels)):
        J = torch.stack([gradient(layer, value).flatten() for value in f[n]])
        total = total + J.mT @ H @ J
    return total / len(f)


def observed(model, loss, fisher="exact", **options):
    """An engine after one step that moved nothing, and the gradients of that step."""
    method = KFAC(fisher=fisher, period=1, **options)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), method)
    value = loss()
    engine.before_backward(value)
    assert all(p.grad is None for p in model.parameters())
    value.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    engine.optimizer.step()
    return engine, grads


def batch(count):
    return *data(count), torch.arange(count) % 2


@pytest.mark.parametrize("name", LOSSES)
def test_the_exact_fisher_of_one_sample_is_the_gauss_newton_matrix_of_every_layer_of_a_linear_net(name):
    loss, hessians = LOSSES[name]
    model, (x, y, c) = net(act=nn.Identity), batch(1)
    engine, _ = observed(model, lambda: loss(model(x), y, c))
    for key, layer in linears(model).items():
        close(product(engine, key), gauss_newton(model, layer, x, c, hessians))


@pytest.mark.parametrize("act", [nn.Identity, nn.Tanh])
@pytest.mark.parametrize("name", CONSTANT)
def test_with_a_constant_hessian_any_number_of_samples_is_exact_where_the_rest_is_linear(name, act):
    loss, hessians = LOSSES[name]
    model, (x, y, c) = net(act=act), batch(6)
    engine, _ = observed(model, lambda: loss(model(x), y, c))
    for key, layer in linears(model).items():
        found, expected = product(engine, key), gauss_newton(model, layer, x, c, hessians)
        if act is nn.Identity or key == "4.weight":
            close(found, expected)
        else:
            assert error(found, expected) > 1e-3


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in CONSTANT])
def test_the_output_factor_of_the_last_layer_is_the_mean_hessian(name):
    loss, hessians = LOSSES[name]
    model, (x, y, c) = net(), batch(6)
    engine, _ = observed(model, lambda: loss(model(x), y, c))
    _, G = factors(engine, "4.weight")
    close(G[0], hessians(model(x).detach(), c).mean(0))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradients_of_the_user_are_untouched(name):
    model, (x, y, c) = net(), batch(6)
    loss, _ = LOSSES[name]
    expected = torch.autograd.grad(loss(model(x), y, c), list(model.parameters()))
    for fisher in ("exact", "sampled"):
        _, grads = observed(model, lambda: loss(model(x), y, c), fisher)
        for found, grad in zip(grads, expected):
            assert torch.equal(found, grad)
        model.zero_grad()


@pytest.mark.parametrize("name", ["mse_loss", "cross_entropy", "class weights", "two", "logistic"])
def test_a_sampled_fisher_comes_to_the_exact_one_with_the_root_of_the_draws(name):
    loss, _ = LOSSES[name]
    model, (x, y, c) = net(), batch(6)
    exact, _ = observed(model, lambda: loss(model(x), y, c))
    expected, distances = factors(exact, "2.weight")[1], []
    for copies in (10, 1000):
        many = [t.repeat(copies, *(1 for _ in t.shape[1:])) for t in (x, y, c)]
        squares = []
        for step in range(10):
            model.zero_grad()
            engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), KFAC(fisher="sampled", rows=10**6))
            engine.report.step = step
            value = loss(model(many[0]), *many[1:])
            engine.before_backward(value)
            stats, row = stats_of(engine, "2.weight")
            G = stats.sides[1].window(row)[0] / stats.counts[row, 1]
            squares.append(error(G, expected) ** 2)
            engine.detach()
        distances.append(sum(squares) ** 0.5)
    assert 6 < distances[0] / distances[1] < 16  # 10, for a hundred times the draws


def test_draws_differ_between_steps_micro_batches_and_ranks_and_come_again():
    model, (x, _, c) = net(), batch(6)

    def output_factor(step=0, rank=0):
        model.zero_grad()
        engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), KFAC(fisher="sampled", period=1))
        engine.report.step, engine.host.team.rank = step, rank
        loss = F.cross_entropy(model(x), c)
        engine.before_backward(loss)
        stats = engine.stacks[-1].stats
        found = stats.sides[1].window(0)[0].clone()
        second = F.cross_entropy(model(x), c)
        loss.backward()
        engine.before_backward(second)
        added = stats.sides[1].window(0)[0] - found
        engine.detach()
        return found, added

    (first, then), (again, _), (later, _), (other, _) = (
        output_factor(),
        output_factor(),
        output_factor(step=1),
        output_factor(rank=1),
    )
    assert torch.equal(first, again)
    for different in (then, later, other):
        assert error(different, first) > 1e-3


WAYS = ("scaled", "sum", "checkpointed")


@pytest.mark.parametrize(
    ("fisher", "way"),
    [
        ("exact", "micro"),
        *((fisher, way) for fisher in ("exact", "sampled") for way in ("scaled", "sum", "checkpointed")),
    ],
)
def test_micro_batches_a_scale_a_sum_and_checkpoints_change_nothing(fisher, way):
    torch.manual_seed(0)
    model, (x, _, c) = net(), batch(6)
    parts = 3 if way == "micro" else 1

    def run(way):
        model.zero_grad()
        engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), KFAC(fisher=fisher, period=1))
        scale = engine.recorders[0].facts.scale = 1024.0 if way == "scaled" else 1.0
        for rows in torch.arange(6).chunk(parts):
            reduction = "sum" if way == "sum" else "mean"
            f = checkpoint(model, x[rows], use_reentrant=False) if way == "checkpointed" else model(x[rows])
            loss = F.cross_entropy(f, c[rows], reduction=reduction) * scale / parts
            engine.before_backward(loss)
            loss.backward()
        engine.optimizer.step()
        found = {key: factors(engine, key) for key in linears(model)}
        engine.detach()
        return found

    found, parts = run(way), 1
    expected = run("plain")
    for key in found:
        for F1, F2 in zip(found[key], expected[key]):
            close(F1, F2)


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_losses_of_forward_passes_that_all_came_first_are_all_observed(fisher):
    model, (x, _, c) = net(), batch(6)
    windows = []
    for first in (True, False):
        model.zero_grad()
        engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), KFAC(fisher=fisher, period=1))
        parts = torch.arange(6).chunk(2)
        outputs = [model(x[rows]) for rows in parts] if first else []
        for number, rows in enumerate(parts):
            loss = F.cross_entropy(outputs[number] if first else model(x[rows]), c[rows])
            engine.before_backward(loss)
            loss.backward()
        sides = [side for stack in engine.stacks for side in stack.stats.sides]
        windows.append([window.clone() for side in sides for window in side.window(0)])
        engine.detach()
    for together, apart in zip(*windows):
        close(together, apart)


def test_positions_that_are_ignored_are_no_terms():
    model, x = net(), data(6)[0].view(2, 3, 3)
    c = torch.tensor([0, 1, -100, 1, -100, -100])
    engine, _ = observed(model, lambda: F.cross_entropy(model(x).flatten(0, 1), c, ignore_index=-100))
    real = c >= 0
    _, G = factors(engine, "4.weight")
    close(G[0], softmax(model(x).detach().flatten(0, 1)[real], c).mean(0))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (lambda f, y, c: (f - y).abs().mean(), "Abs"),
        (lambda f, y, c: by_hand(f, y, c).sqrt(), "Sqrt"),
        (lambda f, y, c: F.cross_entropy(f, c, label_smoothing=0.1), "Softmax"),
        (lambda f, y, c: ((f - y) ** 3).mean(), "Pow"),
        (lambda f, y, c: by_hand(f, y, c).sqrt().square(), "Pow.*no prediction a sample"),
    ],
)
@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_an_unknown_loss_is_refused_by_name(loss, name, fisher):
    model, (x, y, c) = net(), batch(6)
    with pytest.raises(ConfigError, match=rf"KFAC\(fisher='{fisher}'\).*{name}.*known: .*fisher='empirical'"):
        observed(model, lambda: loss(model(x), y, c), fisher)


def test_a_loss_that_was_not_shown_is_refused():
    model, (x, y, _) = net(), batch(6)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), KFAC(fisher="sampled"))
    by_hand(model(x), y, None).backward()
    with pytest.raises(TrustError, match="before_backward"):
        engine.optimizer.step()


def test_a_reentrant_checkpoint_is_refused_by_name():
    model, (x, y, _) = net(), batch(6)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), KFAC(fisher="sampled", period=1))
    loss = by_hand(model[4](checkpoint(model[:4], x.requires_grad_(), use_reentrant=True)), y, None)
    engine.before_backward(loss)
    with pytest.raises(ConfigError, match=r"0.weight.*use_reentrant=False") as said:
        loss.backward()
    noted.refused(said, method="KFAC", option="fisher='sampled' and reentrant activation checkpointing")


def test_too_many_passes_are_refused_with_their_number():
    model = nn.Linear(3, 5000)
    with pytest.raises(ConfigError, match=r"5,000 predictions.*fisher='sampled'"):
        observed(model, lambda: model(torch.ones(2, 3)).square().mean())


def test_a_regulariser_of_the_weights_is_no_loss_function():
    model, (x, _, c) = net(), batch(6)
    plain, _ = observed(model, lambda: F.cross_entropy(model(x), c))
    model.zero_grad()
    more, _ = observed(
        model, lambda: F.cross_entropy(model(x), c) + sum(p.abs().sum() + p.square().sum() for p in model.parameters())
    )
    for key in linears(model):
        close(product(more, key), product(plain, key))


def test_no_draw_comes_again_where_a_seed_has_32_bits():
    seeds = {
        seed_of(step, micro_batch, rank, 64) + head & 0xFFFFFFFF
        for step in range(1000)
        for micro_batch in range(1, 9)
        for rank in range(64)
        for head in (0, 1)
    }
    assert len(seeds) == 1000 * 8 * 64 * 2
    first = [torch.rand(4, generator=torch.Generator().manual_seed(seed_of(step, 1, 0, 1))) for step in (3, 19, 35)]
    assert len({tuple(draw.tolist()) for draw in first}) == 3
