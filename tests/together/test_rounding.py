"""Where torch is told to round the factors of products (TF32), or an autocast does it, only rotations are rounded.

The device is emulated. Lightning advises its GPU users to tell it so (Lightning-AI/pytorch-lightning#21256); that SOAP
does not bear it was found by NVIDIA-NeMo/Emerging-Optimizers (#218).
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_so import EKFAC, KFAC, SOAP, Mixture, Muon, Shampoo, Synchronous, Ways, attach, curvature
from lightning_so.core.checkpoint import checkpoint
from lightning_so.core.checkpoint.plain_moments import plain_optimizer_state
from lightning_so.linalg.precision import FullPrecision
from tests.support.problems import Net, batch
from tests.support.rounding import TensorCores
from tests.support.spectra import matrix

ADAMW, SGD = (torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})
#: Every method and what it does on either kind of base.
CASES = [
    (SOAP(start=3, period=2), ADAMW),
    (KFAC(period=2), SGD),
    (KFAC(period=2), ADAMW),
    (KFAC(period=2, exact=True, fisher="exact"), SGD),
    (KFAC(period=2, fisher="sampled"), SGD),
    (EKFAC(period=2), SGD),
    (EKFAC(start=3, period=2), ADAMW),
    (Shampoo(period=2), SGD),
    (Shampoo(period=2, whiten=True), ADAMW),
    (Muon(), ADAMW),
    (Mixture({"Conv2d": Shampoo(period=2), "tall.*": KFAC(period=2), "*": SOAP(start=3, period=2)}), ADAMW),
]


def label(case):
    method, (cls, _) = case
    return f"{method}-{cls.__name__}"


EVERY = pytest.mark.parametrize("case", CASES, ids=label)


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    torch.set_float32_matmul_precision("highest")


def trained(case, setting, cores, lr=0.0, steps=6, autocast=False, ways=None):
    """The model and the engine's state, after steps of which all matrix products are made by the emulated device."""
    torch.manual_seed(0)
    method, (base, options) = case
    model = Net()
    optimizer = base(model.parameters(), lr=lr, **options)
    engine = attach(model, optimizer, method, ways=ways)
    torch.set_float32_matmul_precision(setting)
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        with cores:
            loss = F.cross_entropy(model(x), y)
            engine.before_backward(loss)
            loss.backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                optimizer.step()
    with cores:
        saved = engine.state_dict()
        plain = plain_optimizer_state(engine.parts, optimizer.state_dict())["state"]
    torch.set_float32_matmul_precision("highest")
    return model, saved, plain


def rounds(found):
    """Whether the product is one of a rotation of a step."""
    turns = any(name.startswith("methods/") and name.endswith(" turn") for name in found)
    return turns and any(name in ("core/step/act.py begin", "core/step/finish.py finish") for name in found)


@EVERY
def test_only_rotations_are_rounded(case):
    cores = TensorCores()
    trained(case, "medium", cores, lr=1e-3)
    others = [found for found in cores.ours if not rounds(found)]
    assert not others, others[0]
    # The model's are as its training wants them, and so are rotations.
    assert cores.theirs
    rotates = isinstance(case[0], SOAP | Mixture) or (isinstance(case[0], EKFAC) and case[1] is ADAMW)
    assert any(map(rounds, cores.ours)) is rotates
    cores = TensorCores()
    trained(case, "highest", cores, steps=1)
    assert not cores.ours
    assert not cores.theirs


@pytest.mark.parametrize("case", [CASES[0], CASES[6]], ids=label)
@pytest.mark.parametrize(("setting", "rotation"), [("highest", "tf32"), ("medium", "fp32")])
def test_rotations_are_rounded_as_was_chosen_and_nothing_else_of_ours(case, setting, rotation):
    cores = TensorCores()
    trained(case, setting, cores, lr=1e-3, ways=Ways(rotation=rotation))
    assert all(rounds(found) for found in cores.ours)
    assert bool(cores.ours) is (rotation == "tf32")
    # The model's products are as its training says.
    assert bool(cores.theirs) is (setting == "medium")


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@EVERY
def test_what_is_observed_and_solved_is_that_of_full_precision(case):
    # At a rate of zero gradients are the same, whatever is done to them.
    expected, found = (trained(case, setting, TensorCores(ours_alone=True)) for setting in ("highest", "medium"))
    for _, saved, _ in (expected, found):
        saved.pop("moments")  # of gradients that were rotated
    assert same(found[1], expected[1])


@EVERY
def test_a_step_inside_of_an_autocast_is_the_step_outside(case):
    off, on = (trained(case, "highest", TensorCores(), lr=1e-2, autocast=autocast) for autocast in (False, True))
    assert same(on[1:], off[1:])
    assert all(torch.equal(a, b) for a, b in zip(on[0].parameters(), off[0].parameters(), strict=True))


def turned(method, setting):
    """The share of a basis' columns that turn by more than 8 degrees while the gradient stands still."""
    torch.manual_seed(0)
    model, gradient = nn.Linear(64, 64, bias=False), matrix(64, 64, "1/k^2").float()
    engine = attach(model, torch.optim.AdamW(model.parameters(), lr=0.0), method)

    def go(steps):
        for _ in range(steps):
            model.weight.grad = gradient.clone()
            engine.optimizer.step()
        return [Q.clone() for side in engine.stacks[0].stats.sides for Q in side.bases]

    before = go(40)
    torch.set_float32_matmul_precision(setting)
    with TensorCores():
        after = go(3)
    kept = torch.cat([(old * new).sum(1) for old, new in zip(before, after, strict=True)]).abs()
    return float((kept < 0.99).float().mean())


def test_a_basis_stays_where_its_factor_does(monkeypatch):
    method = SOAP(period=1, start=1, schedule=Synchronous())
    assert turned(method, "highest") == turned(method, "medium") == 0.0
    # Without the context most of it is dealt anew at every refresh: what is emulated does what the real thing does.
    monkeypatch.setattr(FullPrecision, "changes", ())
    assert turned(method, "medium") > 0.5


def test_what_is_exported_is_not_rounded():
    model = nn.Linear(8, 3)
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.0), EKFAC(period=1))
    for _ in range(4):
        model(torch.randn(6, 8)).square().mean().backward()
        engine.optimizer.step()
    torch.set_float32_matmul_precision("medium")
    with TensorCores():
        found = curvature(engine)["weight"]
    assert found.bases is not None
    for basis, Q in zip(found.bases, engine.stacks[0].stats.bases, strict=True):
        assert torch.equal(basis, Q.tensors[0][0])


def test_rows_precondition_in_full_precision(monkeypatch):
    used = []
    monkeypatch.setattr(KFAC, "of_rows", lambda *given, inside=KFAC.of_rows: used.append(1) or inside(*given))
    model = nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 3))
    engine = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), KFAC(period=1))
    torch.set_float32_matmul_precision("medium")
    with TensorCores(ours_alone=True) as cores:  # Rows that do not give the gradient are of no use.
        for _ in range(3):
            engine.optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(4, 20)), torch.tensor([0, 1, 2, 0])).backward()
            engine.optimizer.step()
    assert used
    assert not cores.ours


@pytest.mark.parametrize("case", [CASES[0], CASES[5]], ids=label)
def test_what_a_file_is_read_into_is_solved_in_full_precision(case):
    """From factors alone: bases are found again, and moments move into them."""
    found = []
    for setting in ("highest", "medium"):
        torch.manual_seed(0)
        method, (base, options) = case
        model = Net()
        engine = attach(model, base(model.parameters(), lr=1e-2, **options), method)
        for step in range(6):
            x, y = batch(step)
            engine.optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            engine.optimizer.step()
        torch.set_float32_matmul_precision(setting)
        with TensorCores() as cores:
            checkpoint.read(engine.parts, checkpoint.write(engine.parts, "compact"))
        assert not cores.ours
        found.append((engine.state_dict(), [dict(state) for state in engine.optimizer.state.values()]))
    assert same(*found)
