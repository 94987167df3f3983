"""Curvature that holds less: what is exact is the same training, what is promised is what is held."""

import io
from itertools import pairwise
from unittest import mock

import pytest
import torch
from torch import nn

from lightning_so import EKFAC, KFAC, SOAP, ConfigError, Memory, Mixture, Muon, Shampoo, StateError, Synchronous, attach
from lightning_so.callbacks.factor_watch import look
from lightning_so.comm.replicated import Replicated
from lightning_so.core.checkpoint import checkpoint
from lightning_so.core.stacks import stack as stacks
from lightning_so.core.trust.memory import state_bytes
from lightning_so.core.trust.traffic import exchanges
from tests.support import ranks, trainings
from tests.support.daily import daily

ADAMW, SGD = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}), (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})
SOON = SOAP(start=4, period=3)
METHODS = {
    "soap": (SOON, ADAMW),
    "whitened": (SOAP(start=4, period=3, whiten=True, polish=True), ADAMW),
    "tiles": (SOAP(start=4, period=3, cap=20), ADAMW),
    "shampoo": (Shampoo(period=3), ADAMW),
    "shampoo on sgd": (Shampoo(period=3, cap=20), SGD),
    "kfac": (KFAC(period=3), ADAMW),
    "kfac on sgd": (KFAC(period=3), SGD),
    "kfac, exact": (KFAC(period=3, exact=True, cap=20), ADAMW),
    "ekfac": (EKFAC(period=3, start=4), ADAMW),
    "ekfac on sgd": (EKFAC(period=3), SGD),
    "muon": (Muon(), ADAMW),
}
#: The others have their solves and their sides from these.
FIRST = ("soap", "kfac", "shampoo")
SOME = [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in METHODS]
EACH = pytest.mark.parametrize("name", SOME)


class Training:
    """A small regression, in float64, that goes on where it was."""

    def __init__(self, method, base, memory, dtype=torch.float64, sizes=(24, 36, 36, 36, 5)):
        torch.manual_seed(0)
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.Tanh())]
        self.model, self.sizes = nn.Sequential(*layers).to(dtype), sizes
        self.optimizer = base[0](self.model.parameters(), **base[1])
        self.engine = attach(self.model, self.optimizer, method, memory=memory)
        self.batches, self.dtype = torch.Generator().manual_seed(1), dtype

    def steps(self, count):
        for _ in range(count):
            x = torch.randn(32, self.sizes[0], generator=self.batches, dtype=torch.float64).to(self.dtype)
            self.optimizer.zero_grad()
            loss = (self.model(x) - (x * x.roll(5, 1))[:, : self.sizes[-1]].tanh()).square().mean()
            self.engine.before_backward(loss)
            loss.backward()
            self.optimizer.step()
        return self

    @property
    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def held(self):
        """Bytes a byte of the parameters, the optimizer's moments included."""
        states = self.optimizer.state.values()
        moments = sum(v.nbytes for state in states for v in state.values() if torch.is_tensor(v) and v.ndim)
        own = state_bytes(self.engine.parts.units, self.engine.parts.matrices)
        return (moments + own) / self.weights.nbytes


@EACH
def test_triangles_and_room_inside_a_step_are_exact(name, monkeypatch):
    monkeypatch.setattr(stacks, "LEAST", 2000)
    method, base = METHODS[name]
    usual, lean = (Training(method, base, memory).steps(24) for memory in (None, Memory()))
    assert len(lean.engine.stacks) > len(usual.engine.stacks)
    torch.testing.assert_close(lean.weights, usual.weights, rtol=0, atol=1e-9)
    assert lean.held < 0.75 * usual.held


@pytest.mark.parametrize("name", ["soap", "kfac, exact", pytest.param("tiles", marks=pytest.mark.slow), "ekfac on sgd"])
def test_bases_in_half_precision_turn_as_far_as_their_rounding(name):
    method, base = METHODS[name]
    usual, half = (Training(method, base, memory).steps(12) for memory in (Memory(), Memory(half=True)))
    bases = [t for stack in half.engine.stacks for n, t in stack.tensors() if "basis" in n or "solved." in n]
    assert bases
    assert {Q.dtype for Q in bases if Q.shape[-1] > 1} == {torch.float16}
    for Q in bases:
        if Q.ndim > 2 and Q.shape[-1] == Q.shape[-2]:
            eye = torch.eye(Q.shape[-1], dtype=torch.float64)
            assert float((Q.double().mT @ Q.double() - eye).abs().amax()) < 2e-3
    moved = (usual.weights - Training(method, base, None).weights).norm()
    assert 0 < float((half.weights - usual.weights).norm() / moved) < 0.02


@EACH
def test_factors_are_watched_whole(name):
    method, base = METHODS[name]
    usual, lean = (Training(method, base, memory).steps(6).engine for memory in (None, Memory()))
    blocks = sum(stack.solver is not None for stack in usual.stacks)
    for turn in range(blocks):
        (name, mine), (_, theirs) = (look([engine], turn) for engine in (lean, usual))
        assert mine.rank == pytest.approx(theirs.rank, rel=1e-6), name
        assert mine.condition == pytest.approx(theirs.condition, rel=1e-6), name


def test_one_sided_factors_leave_the_longer_side_its_diagonal():
    training = Training(SOON, ADAMW, Memory(sides="short")).steps(12)
    shapes = {}
    for stack in training.engine.stacks:
        shapes[stack.shape] = [len(side.cuts) for side in stack.stats.sides]
    assert shapes == {(36, 24): [0, 1], (36, 36): [0, 1], (5, 36): [1, 0]}
    assert "tiles diagonal and 1x24" in str(training.engine.plan)
    assert training.engine.report.rotated == 4
    assert training.held < Training(SOON, ADAMW, Memory()).steps(12).held


@pytest.mark.parametrize("kind", ["full", "compact"])
@EACH
def test_a_run_goes_on_in_another_mode(name, kind):
    method, base = METHODS[name]
    straight = Training(method, base, None).steps(20)
    for before, after in ((None, Memory()), (Memory(), None)):
        first = Training(method, base, before).steps(14)
        written = io.BytesIO()
        torch.save(
            {"engine": checkpoint.write(first.engine.parts, kind), "optimizer": first.optimizer.state_dict()}, written
        )
        again = Training(method, base, after)
        again.model.load_state_dict(first.model.state_dict())
        again.batches.set_state(first.batches.get_state())
        written.seek(0)
        state = torch.load(written)
        again.optimizer.load_state_dict(state["optimizer"])
        checkpoint.read(again.engine.parts, state["engine"])
        again.steps(6)
        far = 1e-8 if kind == "full" else 0.2
        assert float((again.weights - straight.weights).norm()) < far


def test_solves_on_their_way_are_of_one_form():
    first = Training(KFAC(period=3), ADAMW, Memory())
    first.engine.detach()
    first.engine = attach(first.model, first.optimizer, KFAC(period=3), lag=1, memory=Memory())
    while not first.engine.parts.flights:
        first.steps(1)
    other = Training(KFAC(period=3), ADAMW, None)
    with pytest.raises(StateError, match="resume with memory= as it was"):
        other.engine.load_state_dict(first.engine.state_dict())


def test_between_steps_only_curvature_is_held():
    training = Training(Muon(), ADAMW, Memory()).steps(100)
    parts = training.engine.parts
    for _ in range(16):
        training.steps(1)
        waits = any(stack.slopes.open for stack in parts.stacks)
        assert (state_bytes(parts.units, parts.matrices) > 0) == waits  # the second slope needs what the weights were
    assert not waits


def test_solves_have_the_room_of_a_stack(monkeypatch):
    monkeypatch.setattr(stacks, "LEAST", 3 * 36 * 36)
    usual, lean = (Training(SOON, ADAMW, memory).engine.parts.units for memory in (None, Memory()))
    wide = [number for number, unit in enumerate(lean) if unit.shape == (36, 36)]
    assert len(wide) == 6
    assert [len(some) for some in usual.alike(wide)] == [6]
    assert [len(some) for some in lean.alike(wide)] == [3, 3]


def test_a_step_that_fails_gives_weights_back():
    training = Training(SOON, ADAMW, Memory()).steps(10)
    before = training.weights
    for p in training.model.parameters():
        p.grad = torch.ones_like(p)
    training.engine.step()
    assert not torch.equal(training.weights, before)  # hidden
    training.engine.restore()
    assert torch.equal(training.weights, before)
    assert state_bytes(training.engine.parts.units, training.engine.parts.matrices) > 0
    training.steps(3)


SQUARE = {"sizes": (128,) * 5, "dtype": torch.float32}


@pytest.mark.parametrize(
    ("method", "memory", "most"),
    [(SOON, Memory(half=True), 5.0), (KFAC(period=3), Memory(), 4.5), (Muon(), Memory(), 3.1)],
)
def test_what_is_promised_is_what_is_held(method, memory, most):
    training = Training(method, ADAMW, memory, **SQUARE).steps(8)
    training.engine.parts.stacks[0].slopes.drop()
    training.engine.restore()
    promised = float(str(training.engine.plan).split(" bytes a byte of the parameters")[0].split()[-1])
    assert training.held < most
    # Counts, weights and the like of the methods, and matrices that are not square.
    assert abs(training.held - promised) < 0.03


def test_a_number_takes_what_it_needs():
    full, half = (Training(SOON, ADAMW, most, **SQUARE).engine for most in (6.0, 4.5))
    assert {Q.dtype for stack in full.stacks for side in stack.stats.sides for Q in side.bases} == {torch.float32}
    assert {Q.dtype for stack in half.stacks for side in stack.stats.sides for Q in side.bases} == {torch.float16}


@pytest.mark.parametrize(
    ("method", "memory", "said"),
    [
        (SOON, 3.0, r"memory=3 cannot be met, as the least is 4\.\d\d bytes .* factors .* Allow 4\.\d\d, or take"),
        (KFAC(), 3.0, r"memory=3 cannot be met, .* Allow 4\.\d\d\.$"),
        (Muon(), Memory(half=True), r"Memory\(half=True\): Muon cannot have it, EKFAC and SOAP can"),
        (KFAC(), Memory(sides="short"), r"Memory\(sides='short'\): KFAC cannot have it, SOAP can"),
        (SOON, "lean", r"memory='lean': it is a Memory"),
        (SOON, True, r"memory=True: it is a Memory"),
        (SOON, -1, r"memory=-1: .* a number in \[0, 1000\) of bytes"),
        (SOON, float("nan"), r"memory=nan: .* a number in \[0, 1000\) of bytes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(method, memory, said):
    with pytest.raises(ConfigError, match=said):
        Training(method, ADAMW, memory, **SQUARE)


def test_one_method_of_a_mixture_may_have_a_mode():
    engine = Training(Mixture({"0.*": SOON, "*": Muon()}), ADAMW, Memory(half=True)).engine
    assert {Q.dtype for Q in engine.stacks[0].stats.sides[0].bases} == {torch.float16}


@pytest.mark.parametrize("arguments", [{"half": 1.5}, {"sides": "long"}, {"most": -1.0}])
def test_arguments_are_checked(arguments):
    with pytest.raises(ConfigError, match=rf"Memory\({next(iter(arguments))}="):
        Memory(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("method", [SOON, KFAC(period=3, fisher="empirical")], ids=["soap", "kfac"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero1"])
def test_ranks_end_where_one_process_does(two, strategy, method):
    dtype, far = (torch.float32, 1e-5) if strategy == "zero1" else (torch.float64, 1e-10)
    alone = trainings.train("one", method, ADAMW, 10, dtype=dtype)
    for many in two.run(trainings.train, strategy, method, ADAMW, 10, dtype=dtype, memory=Memory()):
        for name, value in alone.weights.items():
            torch.testing.assert_close(many.weights[name], value, rtol=0, atol=far)


def in_portions(method, steps):
    """A training of ranks whose solves of a step go in several portions."""
    with mock.patch.object(stacks, "LEAST", 40):
        return ranks.train(method, *ADAMW, steps, memory=Memory(), dtype=torch.float64)


@pytest.mark.parametrize(
    "method",
    daily([SOAP(start=10, period=4, schedule=Synchronous()), Shampoo(period=4, schedule=Synchronous())]),
    ids=["soap", "shampoo"],
)
def test_ranks_that_solve_in_portions_end_where_one_process_does_and_send_what_is_predicted(two, method):
    alone = ranks.train(method, *ADAMW, 64, shard=False, dtype=torch.float64)
    for weights, _, sent, predicted in two.run(in_portions, method, 64):
        for name, value in alone[0].items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-10)
        assert (sent[-1] - sent[-17]) / 16 == pytest.approx(predicted, rel=0.02)


def all_gathers(units, host, matrices):
    """How many a step of a cycle has, as predicted."""
    due = units.schedule.slots()
    steps = exchanges(units, host, matrices, due, [0.0] * len(due))
    return sum(each.calls for step in steps for each in step if each.kind == "all_gather") / len(due)


def gathered(memory, least, steps):
    """All-gathers of a training, and those that a step is predicted to have."""
    counted = mock.patch.object(Replicated, "start_gather", autospec=True, side_effect=Replicated.start_gather)
    with mock.patch.object(stacks, "LEAST", least), mock.patch.object(ranks, "traffic", all_gathers), counted as calls:
        *_, predicted = ranks.train(
            SOAP(start=10, period=4, schedule=Synchronous()), *ADAMW, steps, memory=memory, dtype=torch.float64
        )
    return calls.call_count, predicted


@pytest.mark.parametrize(
    ("memory", "least"), daily([(Memory(), 40), (Memory(share=0.5), 40), (None, 1)], (Memory(), 40))
)
def test_a_step_has_as_many_all_gathers_as_are_predicted(two, memory, least):
    for (many, predicted), (few, _) in zip(
        *(two.run(gathered, memory, least, steps) for steps in (64, 48)), strict=True
    ):
        assert predicted == pytest.approx((many - few) / 16)


def test_a_plan_says_that_one_process_holds_all_of_a_share():
    half, whole = (str(Training(SOON, ADAMW, Memory(share=share)).engine.plan) for share in (0.5, 1.0))
    said = "; share counts from two ranks on, and one process holds all"
    assert said in half
    assert half.replace(said, "") == whole
