"""A parameter of several matrices trains as parameters of one matrix each do, bit for bit."""

import io

import pytest
import torch
from torch import nn

from lightning_so import KFAC, SOAP, ConfigError, Mixture, Muon, Shampoo, attach
from lightning_so.core.checkpoint.plain_moments import plain_optimizer_state
from tests.support.stacked import EXPERTS, SPLIT, gathered, loop, made

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
ADAM = (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
CASES = {
    "soap": (SOAP(start=2, period=4), ADAMW),
    "soap coupled": (SOAP(start=2, period=4), ADAM),
    "soap in tiles": (SOAP(start=2, period=4, cap=7), ADAMW),
    "soap with a diagonal": (SOAP(start=2, period=4, cap=2), ADAMW),
    "muon": (Muon(), ADAMW),
    "muon sgd": (Muon(), SGD),
    "shampoo": (Shampoo(period=4), ADAMW),
    "shampoo sgd": (Shampoo(period=4), SGD),
    "kl-shampoo": (Shampoo(period=4, whiten=True), ADAMW),
}
EVERYDAY = ("soap", "muon", "shampoo sgd")
#: By the last step all blocks rotate, and bases have been solved in them.
STEPS = 12


def trained(case, *, apart, steps=STEPS, model=None, **how):
    method, (base, arguments) = CASES[case]
    model = model or made(apart=apart)
    optimizer = base(model.parameters(), **arguments)
    engine = attach(model, optimizer, method, route=None if apart else SPLIT, **how)
    return model, optimizer, engine


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in EVERYDAY else pytest.mark.slow) for c in CASES])
def test_stacked_experts_and_a_fused_projection_equal_weights_of_their_own(case):
    """marin#7512, lerobot PR#4658, xtuner PR#2030: each expert, and each of Q, K and V, is a matrix."""
    found = []
    for apart in (False, True):
        model, optimizer, engine = trained(case, apart=apart)
        # Not clipped: a norm over fewer parameters is rounded in another order.
        loop(model, optimizer, range(STEPS), accumulate=2)
        found.append((gathered(model), engine))
    (stacked, engine), (weights, other) = found
    torch.testing.assert_close(stacked, weights, rtol=0, atol=0)
    assert all(weight.isfinite().all() for weight in stacked.values())  # one expert never has a token
    facts = ("step", "solves", "failures", "rotated", "bent", "preconditioned")
    assert [getattr(engine.report, f) for f in facts] == [getattr(other.report, f) for f in facts]
    assert engine.report.rotated + engine.report.bent + engine.report.preconditioned > 2 * EXPERTS
    assert sum(size for size, _ in engine.plan.costs.values()) == sum(size for size, _ in other.plan.costs.values())


@pytest.mark.parametrize("case", ["soap", "shampoo sgd"])
def test_resuming_in_the_middle_of_the_entries_is_exact(case):
    """At the stop some experts of a weight rotate and others do not."""
    stop = 5
    model, optimizer, engine = trained(case, apart=False)
    loop(model, optimizer, range(stop))
    warm = [flag for rows in engine.parts.roster.warm for flag in rows]
    assert any(warm)
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "engine": engine.state_dict()}
    states = torch.load(_file(states), weights_only=True)
    loop(model, optimizer, range(stop, STEPS))
    again, other, anew = trained(case, apart=False)
    again.load_state_dict(states["model"])
    other.load_state_dict(states["optimizer"])
    anew.load_state_dict(states["engine"])
    loop(again, other, range(stop, STEPS))
    torch.testing.assert_close(gathered(again), gathered(model), rtol=0, atol=0)


def test_files_hold_plain_moments_of_parts_that_rotate_and_of_those_that_do_not():
    found = []
    for apart in (False, True):
        model, optimizer, engine = trained("soap", apart=apart)
        loop(model, optimizer, range(5))
        warm = [flag for rows in engine.parts.roster.warm for flag in rows]
        assert any(warm)
        assert not all(warm)
        state = plain_optimizer_state(engine.parts, optimizer.state_dict())["state"]
        with torch.no_grad():
            for number, param in enumerate(model.parameters()):
                param.copy_(state[number]["exp_avg_sq"])
        found.append(gathered(model))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert not torch.equal(found[0]["experts.w1"], optimizer.state_dict()["state"][0]["exp_avg_sq"])


def _file(states):
    buffer = io.BytesIO()
    torch.save(states, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("case", ["soap", "muon", "shampoo", "shampoo sgd"])
def test_the_float64_reference_sees_parts(case):
    model, optimizer, engine = trained(case, apart=False, verify_every=1)
    loop(model, optimizer, range(STEPS))
    assert engine.report.verified == STEPS - (case.startswith("shampoo"))  # cold, there is nothing to compare
    assert 0 < engine.report.deviation < 0.02


def test_an_update_of_a_stack_is_that_of_its_matrices():
    """Case f11: folded, the updates of experts had a condition of 284 and 4.2 MB of state."""
    torch.manual_seed(0)
    x, w = torch.randn(8, 64, 32), torch.randn(8, 32, 32)

    def updates(params):
        holder = nn.Module()
        holder.w = params
        optimizer = torch.optim.AdamW(holder.parameters(), lr=1e-2, weight_decay=0)
        engine = attach(holder, optimizer, Muon())
        torch.stack([(x[k] @ holder.w[k]).tanh().square().sum() for k in range(8)]).sum().backward()
        optimizer.step()
        return torch.cat([p.detach().reshape(-1, 32, 32) for p in holder.parameters()]) - w, engine

    stacked, engine = updates(nn.Parameter(w.clone()))
    apart, _ = updates(nn.ParameterList([nn.Parameter(q.clone()) for q in w]))
    torch.testing.assert_close(stacked, apart, rtol=0, atol=0)
    assert engine.plan.rows[0].verdict == "hidden, 8 matrices of 32x32: bend"
    assert [block.name for block in engine.plan.blocks] == [f"w[{k}]" for k in range(8)]


def test_state_of_a_stack_is_that_of_its_matrices():
    """Factors and bases of 8 matrices of 64x128, and their saved weights; folded it was 4.2 MB."""
    holder = nn.Module()
    holder.w = nn.Parameter(torch.randn(8, 64, 128))
    engine = attach(holder, torch.optim.AdamW(holder.parameters()), SOAP())
    assert engine.plan.costs["w"][0] == 4 * 8 * (2 * (64**2 + 128**2) + 64 * 128)
    assert "1 of 1 parameters" in str(engine.plan)
    assert "hidden, 8 matrices of 64x128: bend until step 50, then rotate; tiles 1x64 and 1x128; 1.6 MB" in str(
        engine.plan
    )


def test_methods_of_layers_leave_stacks_to_the_base_or_to_another_rule():
    model = made()
    engine = attach(model, torch.optim.AdamW(model.parameters()), KFAC())
    verdicts = {row.name: row.verdict for row in engine.plan.rows}
    assert verdicts["experts.w1"] == verdicts["experts.w2"] == "base: not the weight of a layer"
    engine.detach()
    rules = Mixture({"experts.*": SOAP(start=2), "third.*": "base", "*": KFAC()})
    optimizer = torch.optim.AdamW(model.parameters())
    engine = attach(model, optimizer, rules)
    verdicts = {row.name: row.verdict for row in engine.plan.rows}
    assert verdicts["experts.w1"].startswith(f"hidden, {EXPERTS} matrices of 12x17: SOAP bend until")
    assert verdicts["head.weight"].startswith("hidden: KFAC bend")
    loop(model, optimizer, range(12))
    assert 0 < engine.report.rotated <= 2 * (EXPERTS - 1)  # one has nothing to solve
    with pytest.raises(ConfigError, match=r"third.qkv.weight.*KFAC sees the layer as a whole"):
        attach(model, torch.optim.AdamW(model.parameters()), KFAC(), route=SPLIT)
