"""The engine: guard, failure ladder, undoing, odd parameters, routing and state."""

import copy
from unittest import mock

import pytest
import torch
from torch import nn

from lightning_so import SOAP, ConfigError, Muon, StateError, attach
from lightning_so.actions import hide
from lightning_so.linalg.basis import decompose, refresh
from tests.support import noted
from tests.support.problems import Net, batch, train


def pair(method, model=None, **arguments):
    model = model or Net()
    optimizer = torch.optim.AdamW(model.parameters(), **arguments)
    return model, optimizer, attach(model, optimizer, method)


@pytest.mark.parametrize("method", [SOAP(start=3, period=2), Muon()], ids=["soap", "muon"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_non_finite_gradient_changes_nothing_and_is_counted(method, bad):
    net, optimizer, engine = pair(method)
    train(net, optimizer, range(6))
    engine.share_factors()  # Nothing is left of which the step would learn.
    before = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict()), copy.deepcopy(engine.state_dict())
    train(net, optimizer, range(6, 7), before=lambda _: net.wide.bias.grad.fill_(bad))
    assert engine.report.skipped == 1
    assert net.wide.bias.grad is not None  # given back
    after = net.state_dict(), optimizer.state_dict(), engine.state_dict()
    before[2]["report"]["skipped"] = 1
    for now, then in zip(after, before, strict=True):
        torch.testing.assert_close(numbers(now), numbers(then), rtol=0, atol=0)
    train(net, optimizer, range(7, 9))
    assert engine.report.step == 8


def test_an_interrupt_while_weights_are_hidden_loses_none():
    net, optimizer, engine = pair(Muon())
    train(net, optimizer, range(2))
    before, plain = copy.deepcopy(net.state_dict()), hide.hide

    def interrupted(params):
        plain(params)
        raise KeyboardInterrupt

    with mock.patch.object(hide, "hide", interrupted), pytest.raises(KeyboardInterrupt):
        train(net, optimizer, range(2, 3))
    assert all(map(torch.equal, before.values(), net.state_dict().values()))
    assert not engine.hidden


def numbers(state):
    """A state without its text, which `assert_close` cannot compare."""
    if isinstance(state, dict):
        return {str(k): numbers(v) for k, v in state.items() if not isinstance(v, str) and v is not None}
    if isinstance(state, (list, tuple)):
        return [numbers(v) for v in state]
    return state


class Boom(torch.optim.AdamW):
    armed = False

    def _init_group(self, *args, **kwargs):
        if self.armed:
            raise KeyboardInterrupt
        return super()._init_group(*args, **kwargs)


def test_a_failing_base_leaves_no_weight_hidden():
    net = Net()
    optimizer = Boom(net.parameters())
    engine = attach(net, optimizer, SOAP(start=3, period=2))
    train(net, optimizer, range(6))
    before = copy.deepcopy(net.state_dict())
    optimizer.armed = True
    with pytest.raises(KeyboardInterrupt):
        train(net, optimizer, range(6, 7))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert engine.report.undone == 1


def test_an_exception_inside_our_step_leaves_no_weight_hidden(monkeypatch):
    net, optimizer, _ = pair(Muon())
    before = copy.deepcopy(net.state_dict())
    monkeypatch.setattr(Muon, "direction", lambda self, *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(net, optimizer, range(1))
    for key in ("conv.weight", "tall.weight", "wide.weight"):
        assert torch.equal(net.state_dict()[key], before[key])


def test_a_failed_solve_keeps_the_last_basis_and_is_counted():
    net, optimizer, engine = pair(SOAP(start=5, period=2))
    train(net, optimizer, range(12))
    side = engine.stacks[0].stats.sides[0]
    basis = side.bases[0].clone()
    side.factors[0].fill_(float("nan"))
    train(net, optimizer, range(12, 30))
    assert engine.report.failures > 0
    assert torch.equal(side.bases[0], basis)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_ladder_of_the_basis():
    F = torch.randn(6, 6, dtype=torch.float64)
    F = F @ F.T
    Q = torch.eye(6, dtype=torch.float64)
    for _ in range(300):
        solved = refresh(F[None], Q[None], strength=0.0)
        assert float((Q.T @ solved.value[0, :, :1])[0]) > 0  # a leading column never flips
        Q = solved.value[0]
        assert solved.good.all()
    off = Q.T @ F @ Q
    assert float((off - off.diag().diag()).abs().max()) < 1e-8 * float(F.norm())
    # QR overflows in float32, float64 does not. One that fails is no matter of the others'.
    eye = torch.eye(3)
    factors = torch.stack([torch.full((3, 3), float("inf")), torch.zeros(3, 3), eye * 3e38, eye * float("nan"), eye])
    solved = refresh(factors, eye.expand(5, 3, 3), strength=1.0)
    assert solved.good.tolist() == [False, False, False, False, True]
    found = [decompose(F, eye, 1.0) for F in factors]
    assert [result.ok for result in found] == [False, False, True, False, True]
    assert bool(found[2].value.isfinite().all())


def test_missing_gradients_and_frozen_parameters():
    net, optimizer, engine = pair(SOAP(start=5, period=2))
    net.tall.weight.requires_grad_(False)
    before = net.tall.weight.detach().clone()
    train(net, optimizer, range(15))
    assert torch.equal(net.tall.weight, before)
    assert engine.report.rotated == 2
    net.tall.weight.requires_grad_(True)
    train(net, optimizer, range(15, 40))
    assert not torch.equal(net.tall.weight, before)
    assert engine.report.rotated == 3
    optimizer.zero_grad()
    optimizer.step()  # no gradient at all


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.good = nn.Linear(4, 3)
        self.one = nn.Parameter(torch.ones(1, 1))
        self.row = nn.Parameter(torch.ones(1, 5))
        self.none = nn.Parameter(torch.ones(0, 5))
        self.turn = nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))


def test_odd_parameters_stay_on_the_base_by_name_with_a_reason():
    _, optimizer, engine = pair(SOAP(start=2, period=2), Odd())
    plan = str(engine.plan)
    verdicts = {row.name: row.verdict for row in engine.plan.rows}
    assert verdicts["good.weight"] == "hidden: bend until step 2, then rotate; tiles 1x3 and 1x4"
    assert "complex" in verdicts["turn"]
    assert "empty" in verdicts["none"]
    assert "single row" in verdicts["one"]
    assert "single row" in verdicts["row"]
    assert "1 of 6 parameters" in plan
    for _ in range(5):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert engine.report.rotated == 1


def test_sparse_gradient_is_refused_by_name():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    attach(model, optimizer, SOAP())
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ConfigError, match=r"0\.weight has a sparse gradient.*route") as said:
        optimizer.step()
    noted.refused(said, option="sparse gradients")


class Tower(nn.Module):
    """A transformer's skeleton whose width equals its number of positions."""

    def __init__(self, width=16, vocabulary=32, tied=False):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(width, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight


def test_roles_are_structural():
    for tied in (False, True):
        _, _, engine = pair(Muon(), Tower(tied=tied))
        assert [block.name for block in engine.plan.blocks] == [f"layers.{i}.weight" for i in range(3)]
    model = Tower()
    optimizer = torch.optim.AdamW(model.parameters())
    engine = attach(model, optimizer, Muon(), route={"base": ["layers.0.*"], "hidden": ["head.weight"]})
    assert [block.name for block in engine.plan.blocks] == ["layers.1.weight", "layers.2.weight", "head.weight"]


def test_soap_leaves_edges_bare_until_warm():
    model = Tower()
    _, optimizer, engine = pair(SOAP(start=4, period=2), model)
    for step in range(12):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        if step == 1:
            assert engine.report.bent == 3
    assert engine.report.rotated == 6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda n: attach(n, torch.optim.LBFGS(n.parameters()), SOAP()), "LBFGS is not in the registry.*AdamW"),
        (lambda n: attach(n, torch.optim.AdamW([n.scale]), SOAP()), "coverage is 0"),
        (lambda n: attach(n, torch.optim.AdamW(n.parameters()), SOAP(), min_coverage=0.999), "min_coverage=0.999"),
        (lambda n: attach(n, torch.optim.AdamW(n.parameters()), SOAP(), route={"muon": ["*"]}), "role must be one of"),
        (
            lambda n: attach(n, torch.optim.AdamW(n.parameters()), SOAP(), route={"base": ["x*"]}),
            "matches no parameter",
        ),
        (lambda n: attach(n, torch.optim.AdamW(n.parameters()), "soap"), "is not a method"),
        (lambda n: attach(torch.optim.AdamW(n.parameters()), n, SOAP()), "in this order, and got AdamW, Net and SOAP"),
        (lambda n: Muon(precision="fp8"), "precision='fp8'.*bf16"),
        (lambda n: attach(n, torch.optim.AdamW(n.parameters()), lengths="measure"), "Did you mean 'measured'?"),
        (lambda n: Muon(steps=0), "steps"),
    ],
)
def test_misuse_is_refused_with_the_next_move(build, message):
    with pytest.raises(ConfigError, match=message):
        build(Net())


def test_attaching_twice_is_refused_and_detaching_leaves_no_trace():
    net, optimizer, engine = pair(SOAP(start=3, period=2))
    with pytest.raises(ConfigError, match="detach"):
        attach(net, optimizer, Muon())
    train(net, optimizer, range(8))
    engine.detach()
    before = engine.report.step
    train(net, optimizer, range(8, 12))
    assert engine.report.step == before
    attach(net, optimizer, Muon())


def test_a_subclass_with_an_inherited_step_counts_as_its_parent():
    class Mine(torch.optim.AdamW):
        pass

    class Other(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    net = Net()
    attach(net, Mine(net.parameters()), SOAP())
    with pytest.raises(ConfigError, match="Other is not in the registry") as said:
        attach(net, Other(net.parameters()), SOAP())
    noted.refused(said, base="LAMB, LBFGS or another that is not known")


def test_closures_are_wrapped():
    losses = []
    for closed in (False, True):
        torch.manual_seed(0)
        net, optimizer, engine = pair(SOAP(start=3, period=2))
        for step in range(8):
            x, y = batch(step)

            def closure(x=x, y=y, net=net, optimizer=optimizer):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(x), y)
                loss.backward()
                return loss

            if closed:
                loss = optimizer.step(closure)
            else:
                loss = closure()
                optimizer.step()
        losses.append(loss.item())
        assert engine.report.step == 8
    assert losses[0] == losses[1]


def test_resuming_equals_not_having_stopped_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    net, optimizer, engine = pair(SOAP(start=6, period=4))
    train(net, optimizer, range(17))
    torch.save([net.state_dict(), optimizer.state_dict(), engine.state_dict()], tmp_path / "state.pt")
    train(net, optimizer, range(17, 40))
    model, base, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again, optimizer, engine = pair(SOAP(start=6, period=4))
    again.load_state_dict(model)
    optimizer.load_state_dict(base)
    engine.load_state_dict(state)
    train(again, optimizer, range(17, 40))
    torch.testing.assert_close(again.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_a_foreign_state_is_refused_and_changes_nothing():
    net, optimizer, engine = pair(SOAP(start=3, period=2))
    train(net, optimizer, range(6))
    good = engine.state_dict()
    cases = []
    for edit, message in [
        (lambda s: s.update(format=99), "format is 99"),
        (lambda s: s.update(method="SOAP(other)"), r"the state is of SOAP\(other\)"),
        (lambda s: s["blocks"].pop("wide.weight"), "only in this run: .*wide.weight"),
        (
            lambda s: s["blocks"]["wide.weight"]["tensors"].update({"rows.factor.0": torch.zeros(3, 3)}),
            r"wide.weight.*\(3, 3\)",
        ),
    ]:
        state = copy.deepcopy(good)
        edit(state)
        cases.append((state, message))
    for state, message in cases:
        with pytest.raises(StateError, match=message):
            engine.load_state_dict(state)
    torch.testing.assert_close(numbers(engine.state_dict()), numbers(good), rtol=0, atol=0)


def test_bfloat16_weights_are_rounded_once():
    torch.manual_seed(0)
    net = nn.Linear(8, 8, bias=False)
    half = copy.deepcopy(net).bfloat16()
    for model in (net, half):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        attach(model, optimizer, SOAP(start=2, period=2))
        generator = torch.Generator().manual_seed(0)
        for _ in range(12):
            model.weight.grad = torch.randn(8, 8, generator=generator).to(model.weight.dtype)
            optimizer.step()
    assert half.weight.dtype is torch.bfloat16
    torch.testing.assert_close(half.weight.float(), net.weight, rtol=0, atol=2e-2)


@pytest.mark.parametrize("sides", [(40, 7), (7, 40), (200, 6)])
def test_tiles_and_long_sides(sides):
    model = nn.Linear(sides[1], sides[0], bias=False)
    _, optimizer, engine = pair(SOAP(start=4, period=2, cap=16), model)
    for _ in range(30):
        model.weight.grad = torch.randn(sides)
        optimizer.step()
    rows, cols = engine.stacks[0].stats.sides
    widths = [F.shape[1] for F in rows.factors]
    assert engine.report.rotated == 1
    if sides[0] == 200:
        assert rows.bases == []
        assert widths == [200]
    else:
        assert max(max(widths), max(F.shape[1] for F in cols.factors)) <= 16
    assert bool(model.weight.isfinite().all())


def test_solves_wait_at_the_first_step_and_where_blocks_enter():
    net, optimizer, engine = pair(SOAP(start=10, period=4))
    solves, rotated = [0], [0]
    for step in range(24):
        train(net, optimizer, range(step, step + 1))
        solves.append(engine.report.solves)
        rotated.append(engine.report.rotated)
    steps = range(1, 25)
    idle = [step for step in steps if solves[step] == solves[step - 1]]
    entries = [step for step in steps if rotated[step] > rotated[step - 1]]
    assert len(entries) > 1
    assert {1, *entries} <= set(idle)
    assert engine.report.solves > len(net.state_dict())  # and are made up for at others
