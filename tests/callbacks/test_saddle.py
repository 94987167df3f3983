"""Saddle points are left along the most negative curvature; anywhere else nothing has changed."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_so import ConfigError, SaddleEscape
from lightning_so.linalg.line import Point, downhill
from tests.support import trainings
from tests.support.fits import fit


class Saddle(pl.LightningModule):
    """Quadratic with known curvatures in a dense basis, quartic walls at distance one where they are negative."""

    def __init__(self, curvatures, start, rate=0.1):
        super().__init__()
        self.c = torch.tensor(curvatures, dtype=torch.float64)
        n = len(curvatures)
        Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
        self.Q = Q if n > 2 else torch.eye(n, dtype=torch.float64)
        self.w, self.rate = nn.Parameter(self.Q @ torch.tensor(start, dtype=torch.float64)), rate
        self.bottom = float(self.c.clamp(max=0).sum() / 4)
        self.losses = []

    def training_step(self, batch, batch_idx):
        z = self.Q.mT @ self.w
        loss = (self.c * z.square() / 2 - self.c.clamp(max=0) * z**4 / 4).sum() - self.bottom
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([self.w], lr=self.rate, momentum=0.5)


def test_a_ridge_that_descent_never_leaves_is_left():
    alone, ours = Saddle([1.0, -1.0], [1.0, 0.0]), Saddle([1.0, -1.0], [1.0, 0.0])
    alone.bottom = ours.bottom = 0.0  # On the ridge the loss falls to zero, and never stands still.
    escape = SaddleEscape(every=10, verbose=False)
    fit(alone, steps=100)
    assert alone.losses[-1] == pytest.approx(0.0, abs=1e-6)
    fit(ours, escape, steps=100)
    assert ours.losses[-1] == pytest.approx(-0.25, abs=1e-6)
    assert escape.escapes == 1


@pytest.mark.slow
def test_a_saddle_of_many_dimensions_is_left_in_all_of_them():
    curvatures = [-1.0, -0.3, -0.1, *torch.linspace(0.3, 3, 97).tolist()]
    module, escape = Saddle(curvatures, [0.0] * 100), SaddleEscape(every=10, verbose=False)
    fit(module, escape, steps=300)
    assert escape.escapes >= 3
    assert module.losses[-1] < 1e-3 < 0.3 < module.losses[0]
    # Along any other direction there is no way.
    module, escape = Saddle(curvatures, [0.0] * 100), SaddleEscape(every=10, curvature="constant", verbose=False)
    fit(module, escape, steps=300)
    assert escape.evaluations > 0
    assert module.losses[-1] > 0.3


def test_the_distance_is_that_of_the_model():
    # No walls: from .01 beside the ridge, ten times four times as far.
    module, escape = Saddle([1.0, -0.5], [0.0, 0.01], rate=1e-9), SaddleEscape(every=2, verbose=False)
    module.training_step = lambda *_: (module.c * module.w.square()).sum() / 2 + 1
    fit(module, escape, steps=2)
    assert escape.last.curvature == pytest.approx(-0.5, rel=1e-3)
    assert escape.last.modelled == pytest.approx(0.01, rel=1e-3)
    assert escape.last.distance == pytest.approx(0.01 * 4**10, rel=1e-3)
    assert escape.last.gain == pytest.approx(0.25 * 0.01**2 * ((1 + 4**10) ** 2 - 1), rel=1e-3)
    assert module.w[1].item() == pytest.approx(0.01 * (1 + 4**10), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "loss", "slope", "expected"),
    [
        ("level", lambda t: 0.0, lambda t: 0.0, 0.0),
        ("straight", lambda t: -t, lambda t: -1.0, 0.0),
        ("a step up", lambda t: float(t > 0), lambda t: -t, 0.0),
        ("a step up beyond", lambda t: t > 0.05, lambda t: -t, 0.016),
        ("a wall", lambda t: t**4 / 4 - t**2 / 2, lambda t: t**3 - t, 1.0),
        ("flatter and flatter", lambda t: (t + 1) * math.exp(-t), lambda t: -t * math.exp(-t), 4.096),
        ("not finite beyond", lambda t: -(t**2) / 2 if t < 1 else math.nan, lambda t: -t, None),
    ],
)
def test_a_line_is_followed_while_it_bends_down(name, loss, slope, expected):
    found = downhill(lambda t: Point(t, loss(t), slope(t)), Point(0.0, loss(0.0), slope(0.0)), 1e-3)
    assert found is None if expected is None else found.distance == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("name", "looks"), [("beside a saddle the loss falls", 0), ("in a bowl it stands still", 4)])
def test_where_there_is_no_way_it_is_the_same_training(name, looks):
    ends = []
    for callbacks in ([], [SaddleEscape(every=10, verbose=False)]):
        module = Saddle([1.0, 0.1, -1e-4], [1.0, 1.0, 0.0], 1.0) if looks else Saddle([0.05, -1.0], [10.0, 0.1])
        module.bottom -= looks  # A loss that falls to zero never stands still.
        fit(module, *callbacks, steps=180 if looks else 20)
        ends.append(module.w.detach().clone())
    assert torch.equal(*ends)
    escape = callbacks[0]
    assert escape.escapes == escape.unfit == 0
    # The wait doubles. Each look takes the gradient and three products, the first is tried out besides.
    assert escape.evaluations == 4 * looks + 3 * bool(looks)


@pytest.mark.parametrize("where", ["at the weights", "along the line"])
def test_nothing_moves_where_a_number_is_not_finite(where):
    class Breaks(pl.Callback):
        def __init__(self, broken):
            self.broken = broken

        def on_train_batch_end(self, trainer, module, *_):
            module.broken = self.broken

    module, escape = Saddle([1.0, -1.0], [0.0, 0.0]), SaddleEscape(every=2, verbose=False)
    step = module.training_step
    module.broken, far = 1.0, -1.0 if where == "at the weights" else 0.1
    # During looks alone.
    module.training_step = lambda *a: step(*a) * (math.nan if module.broken is None and module.w.norm() > far else 1.0)
    fit(module, Breaks(None), escape, Breaks(1.0), steps=4)
    assert escape.unfit == 1
    assert escape.escapes == 0
    assert torch.equal(module.w, torch.zeros(2, dtype=torch.float64))


def test_a_weight_that_no_optimizer_steps_on_stays():
    module, escape = Saddle([1.0, -1.0, -0.5], [0.0] * 3), SaddleEscape(every=2, verbose=False)
    module.Q, module.other = torch.eye(3, dtype=torch.float64), nn.Parameter(torch.zeros(1, dtype=torch.float64))
    step = module.training_step
    module.training_step = lambda *a: step(*a) - 10 * module.other.square().sum()
    fit(module, escape, steps=2)
    assert escape.last.curvature == pytest.approx(-1, rel=1e-3)
    assert escape.escapes == 1
    assert module.other.item() == 0


@pytest.mark.parametrize("at", [13, 60])
def test_a_training_that_is_resumed_is_the_same(tmp_path, at):
    ends, path = [], tmp_path / "saved.ckpt"
    for resume in (None, path):
        module = Saddle([-1.0, -0.3, *torch.linspace(0.3, 3, 18).tolist()], [1e-3] * 20)
        escape = SaddleEscape(every=20, products=6, verbose=False)
        fit(module, escape, trainings.Save(path, at), steps=120, resume=resume)
        ends.append((module.w.detach().clone(), escape.state_dict()))
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert ends[0][1]["escapes"] >= 2


def left(strategy, path):
    """What came of looks at steps 4 and 8 of 10, and whether a training that is resumed after 5 ends the same."""
    ends, save = [], trainings.Save(path, 5)
    for resume in (None, path):
        escape = SaddleEscape(every=4, products=12, flat=1.0, verbose=False)
        base = (torch.optim.SGD, {"lr": 0.01, "momentum": 0.5})
        found = trainings.train(strategy, None, base, 10, callbacks=[escape, save], resume=resume)
        ends.append((found.weights, escape.last, escape.state_dict()))
    same = all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    return *ends[0], same and ends[0][1:] == ends[1][1:]


@pytest.mark.parametrize("strategy", ["ddp", *(pytest.param(s, marks=pytest.mark.slow) for s in ("fsdp2", "fsdp1"))])
def test_ranks_go_where_one_process_goes(two, tmp_path, strategy):
    weights, last, state, resumed = left("one", tmp_path / "one.ckpt")
    assert resumed
    assert state["escapes"] == 2
    for same, seen, counts, resumed in two.run(left, strategy, tmp_path / "two.ckpt"):
        assert resumed
        assert seen.curvature == pytest.approx(last.curvature, rel=1e-2)
        assert seen.distance == pytest.approx(last.distance, rel=1e-2)
        assert seen.gain == pytest.approx(last.gain, rel=2e-2)
        assert counts["_peak"] == pytest.approx(state["_peak"], rel=1e-5)
        assert all(counts[name] == state[name] for name in ("escapes", "evaluations", "unfit"))
        for name, value in weights.items():
            torch.testing.assert_close(same[name], value, rtol=0, atol=1e-3)


def test_what_cannot_be_is_refused():
    for name, value in (("every", 1), ("products", 0), ("flat", 1.5)):
        with pytest.raises(ConfigError, match=rf"SaddleEscape\({name}={value}\)"):
            SaddleEscape(**{name: value})
