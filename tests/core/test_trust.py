"""Silent failure is refused: lost hooks, foreign optimizers and wrong updates stop a training by name."""

import copy

import pytest
import pytorch_lightning
import torch

from lightning_so import SOAP, ConfigError, Muon, SecondOrder, TrustError, attach
from lightning_so.core.trust import proof
from tests.callbacks.test_second_order import METHOD, fit, module
from tests.support.daily import one_in
from tests.support.problems import BASES, SGDS, Net, name, train
from tests.together.test_situations import Plain, by_hand, loss_of, same


def pair(method=METHOD, **arguments):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    return net, optimizer, attach(net, optimizer, method, **arguments)


# ------------------------------------------------------------------ proof of work
def test_work_is_counted_by_block():
    net, optimizer, engine = pair()
    net.tall.weight.requires_grad_(False)
    train(net, optimizer, range(16))
    assert (
        proof.staleness(engine.parts.units, engine.report.step)[0] < 10
    )  # a frozen block has nothing new to solve: its basis does not age
    net.tall.weight.requires_grad_(True)
    train(net, optimizer, range(16, 24))
    work = {done.name: done for done in proof.work(engine.parts.units, engine.parts.roster, engine.report.step)}
    assert {done.observed for done in work.values()} == {8, 24}
    assert work["tall.weight"].observed == 8
    for done in work.values():
        assert done.bent + done.rotated == done.observed
        assert done.solves > 0
        assert 0 <= done.age <= engine.parts.units.schedule.bound(0)
    assert work["conv.weight"].rotated > work["conv.weight"].bent > 0
    assert proof.staleness(engine.parts.units, engine.report.step)[0] == max(done.age for done in work.values())


def test_a_lost_post_hook_stops_the_training_and_leaves_the_weights():
    net, optimizer, engine = pair()
    train(net, optimizer, range(6))
    before = net.tall.weight.detach().clone()
    optimizer._optimizer_step_post_hooks.clear()
    with pytest.raises(
        TrustError, match=r"3 steps of AdamW.*hidden: conv\.weight, tall\.weight, wide\.weight.*never finished"
    ):
        train(net, optimizer, range(6, 20))
    assert torch.equal(net.tall.weight, before)
    assert engine.report.undone == 3


def test_a_lost_pre_hook_stops_the_training():
    net, optimizer, _ = pair()
    train(net, optimizer, range(6))
    optimizer._optimizer_step_pre_hooks.clear()
    with pytest.raises(TrustError, match="AdamW has stepped, and SOAP was not asked"):
        train(net, optimizer, range(6, 7))


def test_an_overdue_solve_stops_the_training_by_name(monkeypatch):
    net, optimizer, engine = pair()
    train(net, optimizer, range(6))
    monkeypatch.setattr(engine.parts.units.schedule, "due", lambda *_: [])
    with pytest.raises(TrustError, match=r"(conv|tall|wide)\.weight: its basis was not solved within \d+ steps"):
        train(net, optimizer, range(6, 80))


class Foreign(Plain):
    """Steps an optimizer of its own, not the one that configure_optimizers gave."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = torch.optim.AdamW(self.parameters())

    def training_step(self, data, index):
        self.other.zero_grad()
        loss_of(self.net, index).backward()
        self.other.step()
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_ready()
        self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.increment_completed()


def test_stepping_another_optimizer_stops_the_training():
    with pytest.raises(TrustError, match=r"has counted 20 steps.*AdamW.*self\.optimizers\(\)"):
        fit(Foreign(), [SecondOrder(METHOD)], length=40)


class Raw(Plain):
    """Manual optimization with the plain torch optimizer, past Lightning's wrapper and its hooks."""

    def __init__(self, closed):
        super().__init__()
        self.automatic_optimization, self.closed = False, closed

    def training_step(self, data, index):
        optimizer = self.optimizers(use_pl_optimizer=False)

        def closure():
            optimizer.zero_grad()
            loss_of(self.net, index).backward()

        if self.closed:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize("closed", [False, True])
def test_the_plain_optimizer_in_manual_optimization_is_still_ours(closed):
    model, ours = Raw(closed), SecondOrder(METHOD)
    fit(model, [ours])
    same(model.net, by_hand(16, lambda hand, number: loss_of(hand, number).backward()))
    assert ours.engines[0].report.step == 16


# ------------------------------------------------------------------ the float64 reference
ROTATED = [(method, case) for method in (SOAP(start=4, period=2), SOAP(start=4, period=2, cap=3)) for case in BASES]
BENT = [(Muon(), case) for case in [*BASES, *SGDS] if "Adagrad" not in name(case) and "centered" not in name(case)]


@pytest.mark.parametrize(
    ("method", "case"), one_in(3, ROTATED + BENT), ids=lambda x: name(x) if isinstance(x, tuple) else str(x)
)
def test_updates_agree_with_the_reference(method, case):
    base, arguments = case
    net = Net()
    optimizer = base(net.parameters(), **arguments)
    engine = attach(net, optimizer, method, verify_every=1)
    train(net, optimizer, range(16))
    assert engine.report.verified >= 12  # bases without a first moment stay bare while cold
    assert engine.report.deviation < 1e-3


def test_the_reference_changes_nothing_and_allows_bfloat16():
    plain, optimizer, _ = pair()
    checked, other, engine = pair(verify_every=1)
    checked.load_state_dict(plain.state_dict())
    train(plain, optimizer, range(12))
    train(checked, other, range(12))
    torch.testing.assert_close(checked.state_dict(), plain.state_dict(), rtol=0, atol=0)
    half = copy.deepcopy(plain).bfloat16()
    optimizer = torch.optim.AdamW(half.parameters(), lr=1e-2)
    engine = attach(half, optimizer, METHOD, verify_every=1)
    train(half, optimizer, range(12), dtype=torch.bfloat16)
    assert engine.report.verified == 12


@pytest.mark.parametrize("method", [METHOD, Muon()], ids=["soap", "muon"])
def test_a_wrong_update_is_refused_by_name(method, monkeypatch):
    net, optimizer, _ = pair(method, verify_every=1)
    train(net, optimizer, range(10))

    def plain_step(hidden, *_, **__):  # what a hook that never fired would leave: the base's own update, unturned
        for cohort in hidden:
            for p, saved in zip(cohort.params, cohort.saved, strict=True):
                p.add_(saved)
        hidden.clear()

    monkeypatch.setattr("lightning_so.core.step.finish.finish", plain_step)
    with pytest.raises(TrustError, match=r"step 11, (conv|tall|wide)\.weight \((rotate|bend)\): its new value is"):
        train(net, optimizer, range(10, 11))


def test_a_gradient_that_is_not_rotated_is_refused(monkeypatch):
    net, optimizer, _ = pair(verify_every=1)
    train(net, optimizer, range(10))
    monkeypatch.setattr("lightning_so.core.matrices.matrices.Matrices.write", lambda *_: None)
    with pytest.raises(TrustError, match="its rotated gradient is"):
        train(net, optimizer, range(10, 11))
    assert bool(net.tall.weight.any())


def test_verification_through_the_trainer_is_counted():
    ours = SecondOrder(METHOD, verify_every=3)
    fit(module(), [ours])
    assert ours.engines[0].report.verified == 5


@pytest.mark.parametrize("argument", ["verify_every", "compare_every"])
def test_bad_arguments_are_named(argument):
    with pytest.raises(ConfigError, match=rf"Checks\({argument}=-1\)"):
        SecondOrder(METHOD, **{argument: -1})


# ------------------------------------------------------------------ the ladder's last rung
def test_a_block_whose_solves_keep_failing_is_bent_and_comes_back():
    net, optimizer, engine = pair()
    train(net, optimizer, range(12))
    (index,) = [i for i, stack in enumerate(engine.stacks) if stack.blocks[0].name == "wide.weight"]
    factor = engine.stacks[index].stats.sides[0].factors[0]
    good = factor.clone()
    factor.fill_(float("nan"))
    train(net, optimizer, range(12, 40))
    assert engine.report.cooled == 1
    assert (engine.report.rotated, engine.report.bent) == (2, 1)
    assert all(bool(p.isfinite().all()) for p in net.parameters())
    factor.copy_(good)
    train(net, optimizer, range(40, 60))
    assert (engine.report.rotated, engine.report.bent) == (3, 0)
    assert engine.report.cooled == 1


# ------------------------------------------------------------------ watch-only parts
def test_logging_plan_and_checks_leave_weights_bit_identical():
    quiet, loud = module(), module()
    fit(quiet, [SecondOrder(METHOD, print_plan=False)], log_every_n_steps=0)
    trainer = fit(loud, [SecondOrder(METHOD, verify_every=2, compare_every=2)], log_every_n_steps=1)
    torch.testing.assert_close(loud.state_dict(), quiet.state_dict(), rtol=0, atol=0)
    assert "so/overhead_frac" in trainer.callback_metrics


def test_logged_names_are_stable(capsys):
    class Bar(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            self.items = dict(trainer.progress_bar_metrics)

    bar = Bar()
    trainer = fit(module(), [SecondOrder(METHOD), bar], log_every_n_steps=4)
    names = {key for key in trainer.callback_metrics if key.startswith("so/")}
    assert names == {
        "so/overhead_frac", "so/solve_ms", "so/comm_ms", "so/state_mem_gb", "so/staleness_max", "so/staleness_p95",
        "so/rotated_blocks", "so/bent_blocks", "so/bent_length", "so/preconditioned_blocks",
        "so/silent_layers", "so/solves", "so/solve_fallbacks", "so/cooled_blocks",
        "so/skipped_steps", "so/withheld_gradients", "so/coverage_params",
    }  # fmt: skip
    values = {key: float(trainer.callback_metrics[key]) for key in names}
    assert 0 < values["so/overhead_frac"] < 1
    assert values["so/solve_ms"] > 0
    assert values["so/comm_ms"] == 0
    assert 0 < values["so/staleness_p95"] <= values["so/staleness_max"] < 10
    assert values["so/rotated_blocks"] == 3
    assert 0 < values["so/coverage_params"] < 1
    assert bar.items["so%"] == pytest.approx(100 * values["so/overhead_frac"])
    assert "3 blocks rotated and 0 bent" in capsys.readouterr().out


def test_the_summary_names_blocks_without_a_gradient(capsys):
    class Unused(Plain):
        def __init__(self):
            super().__init__()
            self.idle = torch.nn.Linear(4, 4)

    fit(Unused(), [SecondOrder(METHOD)])
    assert "never a gradient: idle.weight" in capsys.readouterr().out
