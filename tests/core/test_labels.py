"""fisher="auto": labels drawn where the loss is known, those at hand elsewhere, and the plan says which."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_so import EKFAC, KFAC, ConfigError, attach, curvature


def known(f, c):
    return F.cross_entropy(f, c)


def squares(f, c):
    return F.mse_loss(f, F.one_hot(c, 3).float())


def unknown(f, c):
    return (f.logsumexp(1) - f.gather(1, c[:, None])[:, 0]).mean()


class Net(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(5, 7), nn.Linear(7, 3), reentrant

    def forward(self, x):
        inside = lambda x: self.first(x).tanh()  # noqa: E731
        if self.reentrant is None:
            return self.last(inside(x))
        return self.last(checkpoint(inside, x.requires_grad_(), use_reentrant=self.reentrant))


def trained(method, loss=known, *, show=True, steps=6, reentrant=None, base=torch.optim.AdamW, **asked):
    """An engine after some steps, its model, and what it told."""
    torch.manual_seed(0)
    model = Net(reentrant)
    engine = attach(model, base(model.parameters(), lr=0.05), method, **asked)
    told = list[str]()
    engine.tell = lambda what: told.append(str(what))
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, c = torch.randn(16, 5, generator=generator), torch.randint(0, 3, (16,), generator=generator)
        engine.optimizer.zero_grad()
        value = loss(model(x), c)
        if show:
            engine.before_backward(value)
        value.backward()
        engine.optimizer.step()
    return engine, model, told


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", [KFAC, EKFAC])
@pytest.mark.parametrize(
    ("loss", "base"),
    [(squares, torch.optim.AdamW), (squares, torch.optim.SGD), (known, torch.optim.SGD)],
)
def test_labels_are_drawn_where_the_loss_is_known(method, loss, base):
    (engine, model, told), (_, same, _) = (
        trained(method(fisher=fisher), loss, base=base) for fisher in ("auto", "sampled")
    )
    assert torch.equal(weights(model), weights(same))
    assert "of labels drawn from the model\n" in str(engine.plan)
    assert told == ["Fisher matrices: of labels drawn from the model"]
    assert {layer.fisher for layer in curvature(engine).values()} == {"sampled"}


@pytest.mark.parametrize("method", [KFAC, EKFAC])
@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD])
def test_labels_at_hand_are_taken_where_it_is_not_and_the_plan_says_why(method, base):
    (engine, model, told), (_, same, _) = (
        trained(method(fisher=fisher), unknown, base=base, reduction="mean") for fisher in ("auto", "empirical")
    )
    assert torch.equal(weights(model), weights(same))
    assert "of the labels at hand (empirical): this loss is made with" in str(engine.plan)
    assert len(told) == 1
    assert told[0] in str(engine.plan)
    assert {layer.fisher for layer in curvature(engine).values()} == {"empirical"}


@pytest.mark.parametrize("method", [KFAC, EKFAC])
def test_classes_at_hand_are_taken_where_only_a_direction_is_asked_for(method):
    (engine, model, told), (_, same, _) = (trained(method(fisher=fisher)) for fisher in ("auto", "empirical"))
    assert torch.equal(weights(model), weights(same))
    assert told == ["Fisher matrices: of the labels at hand (empirical): the loss is a cross-entropy of classes"]
    assert told[0] in str(engine.plan)


def test_the_plan_leaves_it_open_before_the_first_loss():
    engine, *_ = trained(KFAC(), steps=0)
    assert "the first loss will tell" in str(engine.plan)
    assert "Fisher" not in str(trained(KFAC(fisher="sampled"), steps=0)[0].plan)


def test_a_loss_that_is_not_shown_leaves_the_labels_at_hand():
    (engine, model, _), (_, same, _) = trained(KFAC(), show=False), trained(KFAC(fisher="empirical"), show=False)
    assert torch.equal(weights(model), weights(same))
    assert "the loss was not shown to `engine.before_backward`" in str(engine.plan)


def test_layers_that_only_run_inside_the_backward_pass_leave_the_labels_at_hand():
    engine, model, _ = trained(KFAC(), squares, reentrant=True, steps=3)
    assert "first.weight is inside checkpoint(..., use_reentrant=True)" in str(engine.plan)
    assert len(curvature(engine)) == 2
    assert bool(torch.isfinite(weights(model)).all())
    with pytest.raises(ConfigError, match="use_reentrant"):
        trained(KFAC(fisher="sampled"), reentrant=True)


@pytest.mark.slow
def test_a_compiled_model_leaves_the_labels_at_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    engine = attach(model, torch.optim.AdamW(model.parameters(), lr=0.05), KFAC())
    compiled = torch.compile(model, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            engine.optimizer.zero_grad()
            loss = squares(compiled(torch.randn(16, 5)), torch.randint(0, 3, (16,)))
            engine.before_backward(loss)
            loss.backward()
            engine.optimizer.step()
    assert "bears one backward pass" in str(engine.plan)
