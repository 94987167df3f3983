"""Weights and biases that are frozen apart: before the training, in the middle of it, and back.

BitFit trains biases alone. A resumed `BackboneFinetuning` leaves what was thawed frozen
(Lightning-AI/pytorch-lightning#21901), so that files must not depend on who had a gradient when they were written.
"""

import copy
import warnings

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_so import EKFAC, KFAC, SecondOrder, attach
from lightning_so.core.engine import Engine
from tests.support.daily import daily
from tests.support.trainings import train as trainer_train

ADAMW, SGD = (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}), (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9})
CASES = {
    "rotated": (EKFAC(fisher="empirical", start=6, period=3), ADAMW),
    "preconditioned": (EKFAC(fisher="empirical", period=3), SGD),
    "kfac": (KFAC(fisher="empirical", period=3), SGD),
    "exact": (KFAC(fisher="empirical", period=3, exact=True), SGD),
    "bent": (KFAC(fisher="empirical", period=3), ADAMW),
}
EACH = pytest.mark.parametrize("case", daily(CASES, "kfac", "bent"))


class Normed(nn.Sequential):
    """Matrices and a norm, all with biases, in float64."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 4))
        self.double()

    @property
    def layers(self):
        return self[0], self[1], self[3]


def steps(model, optimizer, numbers, before=lambda n: None, then=lambda n: None):
    """Train in a plain loop; `before` the forward pass and `then`, between backward and step, things are changed."""
    engine = getattr(optimizer, "_lightning_so", None)
    for number in numbers:
        before(number)
        x = torch.randn(24, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
        optimizer.zero_grad()
        if engine is not None:
            engine.before_backward(loss)
        loss.backward()
        then(number)
        optimizer.step()


def started(case, **options):
    method, (base, arguments) = CASES[case]
    model = Normed()
    optimizer = base(model.parameters(), **arguments)
    return model, optimizer, attach(model, optimizer, method, **options)


def frozen(model, what, state=False):
    for layer in model.layers:
        getattr(layer, what).requires_grad_(state)


def acting(engine):
    return engine.report.rotated + engine.report.bent + engine.report.preconditioned


@EACH
def test_a_block_acts_as_if_the_gradient_of_its_frozen_bias_was_zero(case):
    # The biases of the other are put back by hand, behind what is measured of their moves.
    model, optimizer, engine = started(case, verify_every=1, lengths="base")
    other, by_hand, reference = started(case, lengths="base")
    biases = [layer.bias for layer in other.layers]
    for start, stop, still in ((0, 14, False), (14, 24, True), (24, 34, False)):
        held = [layer.bias.detach().clone() for layer in model.layers]

        def nothing(number, still=still):
            for layer in model.layers if still else ():
                layer.bias.grad = None

        def zeros(number, still=still):
            for bias in biases if still else ():
                bias.grad.zero_()

        for number in range(start, stop):
            steps(model, optimizer, [number], then=nothing)
            steps(other, by_hand, [number], then=zeros)
            assert acting(engine) == acting(reference) == (acting(engine) if number < 10 else 3)
            for layer, bias, value in zip(model.layers, biases, held, strict=True):
                if still:
                    assert torch.equal(layer.bias, value)
                    assert layer.bias.grad is None
                    bias.data.copy_(value)
        if case in ("rotated", "bent") or start < 24:  # what SGD has gathered of a bias waits for it meanwhile
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert engine.report.verified > 20


@EACH
def test_a_bias_that_is_frozen_is_no_input_of_its_layer(case):
    model, optimizer, engine = started(case)
    steps(model, optimizer, range(10))
    frozen(model, "bias")
    held = [layer.bias.detach().clone() for layer in model.layers]
    steps(model, optimizer, range(10, 100))
    assert acting(engine) == 3
    assert all(torch.equal(layer.bias, value) for layer, value in zip(model.layers, held, strict=True))
    for stack in engine.stacks:
        sides = [F[0, ..., -1, :] for side in stack.stats.sides for F in side.factors if F.shape[-1] == stack.shape[1]]
        assert all(float(row.abs().max()) < 0.02 for row in sides)  # forgotten


@EACH
def test_files_do_not_depend_on_who_had_a_gradient(case, tmp_path):
    model, optimizer, engine = started(case)
    steps(model, optimizer, range(12))
    states = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, engine)]
    other = Normed()
    frozen(other, "bias")
    method, (base, arguments) = CASES[case]
    again = base(other.parameters(), **arguments)
    resumed = attach(other, again, method)
    for part, state in zip((other, again, resumed), states, strict=True):
        part.load_state_dict(state)
    frozen(other, "bias", True)
    steps(model, optimizer, range(12, 20))
    steps(other, again, range(12, 20))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@EACH
def test_a_bias_that_was_frozen_from_the_start_is_no_obstacle(case):
    method, (base, arguments) = CASES[case]
    model = Normed()
    frozen(model, "bias")
    before = [layer.bias.detach().clone() for layer in model.layers]
    optimizer = base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method, verify_every=1)
    steps(model, optimizer, range(20))
    assert acting(engine) == 3
    assert all(torch.equal(layer.bias, value) for layer, value in zip(model.layers, before, strict=True))
    frozen(model, "bias", True)
    steps(model, optimizer, range(20, 40))
    assert acting(engine) == 3
    assert not any(torch.equal(layer.bias, value) for layer, value in zip(model.layers, before, strict=True))


def test_the_step_of_blocks_that_wait_is_bounded_without_their_frozen_biases(monkeypatch):
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, torch.nan))
    model = Normed()
    frozen(model, "bias")
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = attach(model, optimizer, KFAC(fisher="empirical", period=3, damping=0.01, clip=1e-6))
    steps(model, optimizer, [0])
    moved = torch.cat([(p - value).flatten() for p, value in zip(model.parameters(), before, strict=True)])
    assert acting(engine) == 0
    assert float(moved.square().sum()) == pytest.approx(1e-6 * float(engine.stacks[0].stats.loss.means[0, 0]))


@pytest.mark.parametrize("begin", [5, 12])
@EACH
def test_biases_that_live_alone_are_the_bases_from_plain_moments(case, begin):
    ends = []
    for alone in (False, True):
        model, optimizer, engine = started(case)
        steps(model, optimizer, range(begin))
        frozen(model, "weight")
        if alone:
            engine.detach()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            steps(model, optimizer, range(begin, 20))
        said = [str(warning.message) for warning in said if "without a gradient" in str(warning.message)]
        ends.append([p.detach().clone() for p in model.parameters()])
        assert len(said) == (not alone)
        if not alone:
            assert "0.weight, " in said[0]
            assert acting(engine) == 0
            frozen(model, "weight", True)
            steps(model, optimizer, range(20, 30))
            assert acting(engine) == 3
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_bias_that_lives_alone_enters_no_basis_beside_blocks_that_do():
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, 4)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, bias, means = (
        attach(model, optimizer, EKFAC(fisher="empirical", start=6, period=3)),
        model[2].bias,
        [torch.zeros(6)],
    )
    freeze = {4: lambda: model[2].weight.requires_grad_(False)}
    with pytest.warns(UserWarning, match="2.weight: without a gradient, while the bias has one"):
        steps(
            model,
            optimizer,
            range(16),
            before=lambda n: freeze.get(n, int)(),
            then=lambda n: means.append(means[-1].double().lerp(bias.grad, 0.1)),
        )
    assert engine.report.rotated == 3
    torch.testing.assert_close(optimizer.state[bias]["exp_avg"], means[-1])


@pytest.mark.parametrize("case", ["rotated", "kfac"])
def test_what_a_frozen_bias_was_lent_is_taken_back_where_the_step_fails(case, monkeypatch):
    model, optimizer, engine = started(case)
    steps(model, optimizer, range(10))
    frozen(model, "bias")
    weights = [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr(optimizer, "_init_group", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        steps(model, optimizer, [10])
    engine.restore()
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), weights, strict=True))
    assert all(layer.bias.grad is None for layer in model.layers)
    monkeypatch.undo()
    monkeypatch.setattr(Engine, "_end", lambda *_: 1 / 0)  # after the first of them were written
    with pytest.raises(ZeroDivisionError):
        steps(model, optimizer, [11])
    assert all(layer.bias.grad is None for layer in model.layers)


class Finetuned(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Sequential(nn.Linear(6, 9), nn.Tanh()), nn.Linear(9, 4)

    def training_step(self, data, index):
        return nn.functional.cross_entropy(self.head(self.backbone(data[0])), data[1])

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_a_finetuned_backbone_is_resumed(tmp_path):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=8)
    ends = []
    for epochs in (3, 4):
        ours = SecondOrder(EKFAC(fisher="empirical", start=6, period=3), print_plan=False)
        thaw = BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
        trainer = pytorch_lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ours, thaw, ModelCheckpoint(tmp_path, save_last=True)],
        )
        trainer.fit(Finetuned(), data, ckpt_path=str(tmp_path / "last.ckpt") if ends else None)
        ends.append(ours.engines[0])
    assert [engine.report.step for engine in ends] == [24, 32]
    assert ends[0].report.rotated == 2
    assert ends[1].report.rotated == 1  # the backbone is frozen again, by Lightning


def freeze_biases(net):
    """Freeze the biases of half of the layers."""
    for number, (name, param) in enumerate(net.named_parameters()):
        if name.endswith("bias") and number % 4 < 2:
            param.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp1", "ddp"])
def test_frozen_biases_under_every_strategy(two, strategy):
    case, named = (
        (EKFAC(fisher="empirical", start=2, period=4), ADAMW),
        {"steps": 12, "dtype": torch.float64, "prepare": freeze_biases},
    )
    alone = trainer_train("one", *case, **named)
    for rank in two.run(trainer_train, strategy, *case, **named):
        for name, value in alone.weights.items():
            torch.testing.assert_close(rank.weights[name], value, rtol=0, atol=1e-11)
