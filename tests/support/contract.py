"""What every pairing of a method and a layer must do: checks of one of each, for whichever test has them.

A layer carries the shape of its input as `layer.shape`.
"""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from lightning_so import ConfigError, attach
from tests.support import noted


def attached(layer, method, **arguments):
    optimizer = torch.optim.AdamW(layer.parameters(), **{"lr": 1e-2, "weight_decay": 0.0, **arguments})
    return optimizer, attach(layer, optimizer, method)


def walk(layer, optimizer, steps, scale=1.0, seed=0):
    """Steps on random inputs and targets, the loss multiplied by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        (scale * loss(layer, generator)).backward()
        optimizer.step()
    noted.ran([optimizer._lightning_so], "one", noted.LOOP)


def seeded():
    return torch.Generator().manual_seed(0)


def loss(layer, generator):
    x = torch.randn(layer.shape, generator=generator)
    if isinstance(layer, nn.Embedding):
        x = (9 * torch.rand(layer.shape, generator=generator)).long()
    out = layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)
    out = out[0] if isinstance(out, tuple) else out
    return (out - torch.randn(out.shape, generator=generator)).square().mean()


# ---------------------------------------------------------------- of a method and a layer


def trains_every_matrix_and_stays_finite(layer, method):
    before = copy.deepcopy(layer.state_dict())
    optimizer, engine = attached(layer, method)
    walk(layer, optimizer, 12)
    report = engine.report
    assert report.rotated + report.bent == len(engine.plan.blocks) > 0
    assert report.step == 12
    assert report.failures == report.undone == report.skipped == 0
    for key, value in layer.state_dict().items():
        assert value.shape == before[key].shape
        assert value.stride() == before[key].stride()
        assert bool(value.isfinite().all())
        assert not torch.equal(value, before[key])


def the_scale_of_the_loss_does_not_matter(layer, method):
    # Adam is scale-free but for eps; curvature must not bring the scale back in.
    twin = copy.deepcopy(layer)
    for model, scale in ((layer, 1.0), (twin, 64.0)):
        optimizer, _ = attached(model, method, eps=1e-30)
        walk(model, optimizer, 3, scale)
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def zero_gradients_change_nothing(layer, method):
    before = copy.deepcopy(layer.state_dict())
    optimizer, _ = attached(layer, method)
    walk(layer, optimizer, 8, scale=0.0)
    for key, value in layer.named_parameters():
        assert torch.equal(value, before[key]), key


def state_round_trip(layer, method):
    optimizer, engine = attached(layer, method)
    walk(layer, optimizer, 7)
    twin = copy.deepcopy(layer)
    other, again = attached(twin, method)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(engine.state_dict())
    for model, base in ((layer, optimizer), (twin, other)):
        walk(model, base, 7, seed=1)
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def the_first_step_descends(layer, method):
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer, _ = attached(layer, method)
    grads = dict(
        zip(layer.parameters(), torch.autograd.grad(loss(layer, seeded()), list(layer.parameters())), strict=True)
    )
    walk(layer, optimizer, 1)
    # A rotated gradient is plain again only through the change: compare with the one that was drawn. A weight and its
    # bias are one block, which descends as a whole.
    changes = [(p - old).detach() * grads[p] for p, old in zip(layer.parameters(), before, strict=True)]
    assert sum(float(change.sum()) for change in changes) < 0


CHECKS = (
    trains_every_matrix_and_stays_finite,
    the_scale_of_the_loss_does_not_matter,
    zero_gradients_change_nothing,
    state_round_trip,
    the_first_step_descends,
)


# ---------------------------------------------------------------- of a method alone


def counts_are_integers_in_a_range(cls, wrong):
    counts = [field.name for field in dataclasses.fields(cls) if field.type in (int, int | None)]
    assert counts
    for name in counts:
        with pytest.raises(ConfigError, match=rf"{cls.__name__}\({name}={wrong}\): {name} must be an integer in \["):
            cls(**{name: wrong})
