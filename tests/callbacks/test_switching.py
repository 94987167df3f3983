"""Other methods in mid-training: promoted warm, switched without a jump, counted exactly, resumed from a file."""

import pytest
import pytorch_lightning
import torch

from lightning_so import KFAC, SOAP, ConfigError, Muon, Recorder, SecondOrder, Shadow, attach
from lightning_so.core.options import Part
from lightning_so.core.switch import switch
from tests.callbacks.test_shadow import Images, data, fit
from tests.support.daily import daily

SWITCHED = {"SOAP": SOAP(start=4, period=4), "Muon": Muon(), "KFAC": KFAC(period=4), "AdamW": None}


class At(pytorch_lightning.Callback):
    """Calls a function after a step, and remembers what the engine is doing after each."""

    def __init__(self, calls, second_order):
        self.calls, self.second_order, self.parts = calls, second_order, []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        engine = self.second_order.engines[0]
        self.parts.append(engine.part)
        if trainer.global_step in self.calls:
            self.calls[trainer.global_step]()


@pytest.mark.slow
def test_a_promoted_method_watches_until_it_is_warm_and_takes_over():
    alone, promoted = Images(drop=0), Images(drop=0)
    fit(alone, [], count=60)
    second = SecondOrder(SOAP(start=4, period=4), print_plan=False, shadow=Shadow(share=0.5, promote_at=20))
    seen = At({}, second)
    fit(promoted, [second, seen], count=60)
    acts = seen.parts.index(Part.ACTS)
    assert set(seen.parts[:19]) == {Part.RESTS}
    assert set(seen.parts[19:acts]) == {Part.WATCHES}
    assert 4 <= acts - 19 <= 14
    # Watching changes nothing: the first loss that may differ is that after the first step that acts.
    assert promoted.losses[: acts + 1] == alone.losses[: acts + 1]
    assert promoted.losses[acts + 1 :] != alone.losses[acts + 1 :]
    assert second.foretold["samples"][-1]["step"] == 10
    behind = [ours - theirs for ours, theirs in zip(promoted.losses[acts:], alone.losses[acts:], strict=True)]
    assert max(behind[:20]) < 0.02


def test_a_recording_has_what_was_foretold_and_the_promotion(tmp_path):
    second = SecondOrder(SOAP(start=4, period=4), print_plan=False, shadow=Shadow(share=0.5, promote_at=20))
    recorder = Recorder(root=str(tmp_path))
    fit(Images(), [second, recorder], count=40)
    assert recorder.recording.shadow == second.foretold
    (promoted,) = [event for event in recorder.recording.events if event.kind == "promoted"]
    assert 24 <= promoted.step <= 34
    assert "SOAP" in promoted.text


@pytest.mark.parametrize("first", ["SOAP", "KFAC"])
@pytest.mark.parametrize("then", daily(SWITCHED, "SOAP", "AdamW"))
def test_a_switch_does_not_jump(first, then):
    alone, switched = Images(drop=0), Images(drop=0)
    fit(alone, [SecondOrder(SWITCHED[first], print_plan=False)], count=60)
    second = SecondOrder(SWITCHED[first], print_plan=False)
    seen = At({30: lambda: second.switch(SWITCHED[then])}, second)
    fit(switched, [second, seen], count=60)
    assert switched.losses[:30] == alone.losses[:30]
    worst = max(ours - theirs for ours, theirs in zip(switched.losses[30:50], alone.losses[30:50], strict=True))
    assert worst < 0.1
    if SWITCHED[then] is None:
        assert seen.parts[-1] is Part.RESTS


def test_a_switch_counts_on_and_goes_back_to_the_base():
    found = {}
    second = SecondOrder(SWITCHED["SOAP"], print_plan=False)

    def note(name, method):
        engine = second.engines[0]
        found[name] = engine.report.step, engine.report.rotated, engine.report.bent, engine.plan.method.split("(")[0]
        second.switch(method)

    calls = {
        20: lambda: note("SOAP", SWITCHED["Muon"]),
        30: lambda: note("Muon", None),
        40: lambda: note("rest", SWITCHED["KFAC"]),
        55: lambda: note("KFAC", None),
    }
    module, hooks = Images(drop=0), []
    calls[56] = lambda: hooks.extend(hook for layer in module.modules() for hook in layer._forward_hooks)
    fit(module, [second, At(calls, second)], count=60)
    assert hooks == []
    assert found == {
        "SOAP": (20, 2, 0, "SOAP"),
        "Muon": (30, 0, 2, "Muon"),
        "rest": (30, 0, 0, "Muon"),
        "KFAC": (45, 0, 2, "KFAC"),
    }


def test_the_base_goes_on_with_plain_moments():
    second, module, seen = SecondOrder(SWITCHED["SOAP"], print_plan=False), Images(drop=0), []

    def switched():
        optimizer = module.trainer.optimizers[0]
        plain = [state["exp_avg"].clone() for state in optimizer.state_dict()["state"].values()]
        before = [state["exp_avg"].clone() for state in optimizer.state.values()]
        second.switch(None)
        seen.append((plain, before, [state["exp_avg"].clone() for state in optimizer.state.values()]))

    fit(module, [second, At({20: switched}, second)])
    ((plain, before, after),) = seen
    assert not all(map(torch.equal, before, after))
    torch.testing.assert_close(after, plain, rtol=0, atol=1e-7)


def test_the_base_has_its_gradients_while_a_method_watches():
    # A gradient that is not finite withholds a step of a method that acts; one that watches leaves it to the base.
    class Broken(Images):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return loss * float("inf") if index == 25 else loss

    second = SecondOrder(SOAP(start=50), print_plan=False)
    module = Broken(drop=0)
    fit(module, [second, At({20: lambda: second.switch(SOAP(start=50))}, second)], count=30)
    assert not all(torch.isfinite(weight).all() for weight in module.parameters())


class Indexed(Images):
    """Its batch is that of the Trainer's step, so that a run that resumes has the same ones."""

    table = data(60)

    def training_step(self, batch, index):
        return super().training_step(self.table[self.trainer.global_step], index)


@pytest.mark.parametrize("at", [22, 40])
@pytest.mark.parametrize("then", ["SOAP", "KFAC"])
def test_a_checkpoint_after_a_switch_resumes_bit_for_bit(tmp_path, then, at):
    # At step 22 the new method watches still, by step 40 it acts.
    method, path = SOAP(start=8, period=4) if then == "SOAP" else KFAC(period=4), tmp_path / "switched.ckpt"
    second, whole = SecondOrder(Muon(), print_plan=False), Indexed(drop=0)
    seen = At({20: lambda: second.switch(method)}, second)
    seen.calls[at] = lambda: whole.trainer.save_checkpoint(path)
    fit(whole, [second, seen], count=60)
    assert seen.parts[at - 1] is (Part.WATCHES if at == 22 else Part.ACTS)

    resumed, again = Indexed(drop=0), SecondOrder(method, print_plan=False)
    fit(resumed, [again], count=60, ckpt_path=path, max_steps=60, max_epochs=2)
    assert resumed.losses == whole.losses[at:]
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_it_is_called_in_a_fit_and_between_steps():
    second = SecondOrder(SWITCHED["SOAP"], print_plan=False)
    with pytest.raises(ConfigError, match=r"SecondOrder.switch\(\) is called without a running fit"):
        second.switch(None)
    with pytest.raises(ConfigError, match=r"SecondOrder.promote\(\) is called without a running fit"):
        second.promote()

    model = torch.nn.Linear(4, 3)
    engine = attach(model, torch.optim.AdamW(model.parameters()), SWITCHED["SOAP"])
    model(torch.ones(2, 4)).sum().backward()
    engine.step()
    with pytest.raises(ConfigError, match="a step of the optimizer is underway"):
        switch(engine, None)


def test_the_base_may_go_on_alone_from_the_first_step():
    # Hooks of the user come before ours and after them: there the step is not underway.
    class Alone(pytorch_lightning.Callback):
        def on_train_start(self, trainer, module):
            trainer.optimizers[0].register_step_pre_hook(lambda *_: second.switch(None))

    alone, switched = Images(), Images()
    fit(alone, [])
    second = SecondOrder(SWITCHED["SOAP"], print_plan=False)
    fit(switched, [second, Alone()])
    assert switched.losses == alone.losses


def test_what_does_not_fit_changes_nothing():
    second = SecondOrder(SWITCHED["SOAP"], print_plan=False)
    seen = []

    def refused():
        with pytest.raises(ConfigError):
            second.switch("soap")
        engine = second.engines[0]
        seen.append((engine.part, engine.plan.method.split("(")[0], engine.report.rotated))

    fit(Images(drop=0), [second, At({20: refused}, second)])
    assert seen == [(Part.ACTS, "SOAP", 2)]
