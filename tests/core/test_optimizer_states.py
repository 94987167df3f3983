"""What an optimizer with an engine gives out, takes in and is copied to, in a plain loop."""

import copy
import io
import warnings

import pytest
import torch

from lightning_so import KFAC, SOAP, Muon, attach
from lightning_so.callbacks.following import take_over
from lightning_so.core.checkpoint import checkpoint
from lightning_so.errors import StateError
from tests.support import noted
from tests.support.problems import Net, batch, train

METHOD = SOAP(start=4, period=4)


def same(model, other):
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def rotating(method=METHOD, steps=12):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    engine = attach(net, optimizer, method)
    train(net, optimizer, range(steps))
    return net, optimizer, engine


def by_deepcopy(net, optimizer):
    return copy.deepcopy((net, optimizer))


def by_torch_save(net, optimizer):
    file = io.BytesIO()
    torch.save((net, optimizer), file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_states(net, optimizer):
    other = Net()
    other.load_state_dict(net.state_dict())
    stepped = torch.optim.AdamW(other.parameters(), lr=1e-2)
    stepped.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares what it loads
    return other, stepped


@pytest.mark.parametrize("copied", [by_deepcopy, by_torch_save, by_states], ids=lambda copied: copied.__name__)
def test_copies_are_plain_and_nobody_s(copied):
    net, optimizer, engine = rotating()
    before = {param: state["exp_avg"].clone() for param, state in optimizer.state.items()}
    other, alone = copied(net, optimizer)
    for param, state in optimizer.state.items():
        assert torch.equal(state["exp_avg"], before[param])  # as it was
    assert "step" not in alone.__dict__
    assert "__getstate__" not in alone.__dict__
    assert not hasattr(alone, "_lightning_so")
    steps = engine.report.step
    train(other, alone, range(12, 16))
    assert engine.report.step == steps
    engine.detach()  # which leaves plain moments
    train(net, optimizer, range(12, 16))
    same(other, net)


def test_muon_has_nothing_to_make_plain():
    _, optimizer, _ = rotating(Muon())
    live = [state["exp_avg"] for state in optimizer.state.values()]
    given = [state["exp_avg"] for state in optimizer.state_dict()["state"].values()]
    assert all(one is other for one, other in zip(live, given, strict=True))


def test_a_plain_loop_goes_back_exactly_with_the_engine_s_state_too():
    net, optimizer, engine = rotating()
    states = [copy.deepcopy(of.state_dict()) for of in (net, optimizer, engine)]
    train(net, optimizer, range(12, 20))
    want = copy.deepcopy(net.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the optimizer's state was changed")
        for of, state in zip((net, optimizer, engine), states, strict=True):
            of.load_state_dict(state)
        train(net, optimizer, range(12, 20))
    torch.testing.assert_close(net.state_dict(), want, rtol=0, atol=0)
    assert engine.report.step == 20
    optimizer.load_state_dict(states[1])
    with pytest.warns(UserWarning, match=r"First moments of 3 blocks \(conv.weight, .*second ones start"):
        train(net, optimizer, range(20, 21))
    assert engine.report.rotated == 3


def test_a_state_without_moments_is_one_of_before_they_were_in_it():
    net, optimizer, engine = rotating()
    want = copy.deepcopy(net)
    rotated = {"state": copy.deepcopy({n: dict(s) for n, s in enumerate(optimizer.state.values())})}
    rotated["param_groups"] = optimizer.state_dict()["param_groups"]
    state = engine.state_dict()
    del state["moments"]
    train(net, optimizer, range(12, 16))
    stepped = torch.optim.AdamW(want.parameters(), lr=1e-2)
    later = attach(want, stepped, METHOD)
    stepped.load_state_dict(rotated)
    later.load_state_dict(state)
    train(want, stepped, range(12, 16))
    same(want, net)


def test_a_load_in_the_middle_of_a_step_is_refused():
    net, optimizer, engine = rotating()
    state = optimizer.state_dict()
    torch.nn.functional.cross_entropy(net(batch(0)[0]), batch(0)[1]).backward()
    engine.step()
    with pytest.raises(StateError, match="in the middle of a step") as said:
        optimizer.load_state_dict(state)
    noted.refused(said, option="a load in the middle of a step")
    engine.restore()


def test_rows_that_were_seen_before_a_load_do_not_join_what_is_loaded():
    net, optimizer, engine = rotating(KFAC(period=4))
    optimizer.zero_grad()
    state = checkpoint.write(engine.parts, "full")
    x, y = batch(12)
    torch.nn.functional.cross_entropy(net(x), y).backward()
    assert any(recorder.seen.fired for recorder in engine.recorders)
    take_over([engine], [copy.deepcopy(state)], cold=False)
    optimizer.step()  # of a pass from before the load, as in manual optimization
    now = checkpoint.write(engine.parts, "full")
    for name, block in state["blocks"].items():
        factors = {key: value for key, value in block["tensors"].items() if "factor" in key}
        assert factors
        torch.testing.assert_close({key: now["blocks"][name]["tensors"][key] for key in factors}, factors)
