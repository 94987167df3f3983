"""Checkpoint files: plain moments, the stamp, exact resumption, and a save in the middle of a step."""

import copy

import pytest
import torch

from lightning_so import EKFAC, SecondOrder, StateError, attach
from lightning_so.core.checkpoint import checkpoint, exact_moments, plain_moments
from tests.callbacks.test_second_order import METHOD, fit, module
from tests.support.inside import SaveInside
from tests.support.problems import Net, train
from tests.support.trainings import Save


class Middle(SaveInside):
    """Notes the weights of a block, the one that is kept and the one that everybody sees, as it saves."""

    def happen(self, trainer):
        if trainer.global_step == self.at:
            (stack, *_) = trainer.callbacks[0].engines[0].stacks
            self.weight, self.live = stack.saved[0][0].clone(), stack.blocks[0].param.detach().clone()
        super().happen(trainer)


def saved(tmp_path, at=12):
    model, ours, path = module(), SecondOrder(METHOD), tmp_path / "some.ckpt"
    fit(model, [ours, Save(path, at)])
    return model, ours, path


def test_saving_changes_nothing(tmp_path):
    plain = module()
    fit(plain, [SecondOrder(METHOD)])
    model, _, _ = saved(tmp_path)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_the_file_holds_plain_moments_and_what_leaving_costs_is_printed(tmp_path, capsys):
    _, ours, path = saved(tmp_path, at=16)
    file, engine = torch.load(path, weights_only=True), ours.engines[0]
    checked = 0
    for index, stack in enumerate(engine.stacks):
        for row, block in enumerate(stack.blocks):
            number = [p is block.param for p in engine.optimizer.param_groups[0]["params"]].index(True)
            exact = engine.parts.roster.away[index, row].states[0]  # The fit has ended: the optimizer's are plain.
            L, R = (torch.block_diag(*(Q[row] for Q in side.bases)) for side in stack.stats.sides)
            state = file["optimizer_states"][0]["state"][number]
            for key, left, right in (("exp_avg", L, R), ("exp_avg_sq", L.square(), R.square())):
                expected = left @ exact[key].view(stack.shape) @ right.mT
                torch.testing.assert_close(state[key].view(stack.shape), expected, rtol=1e-4, atol=1e-7)
                assert not torch.allclose(state[key], exact[key], rtol=1e-3)
                moments = file["callbacks"]["lightning_so.SecondOrder"]["engines"][0]["moments"]
                assert torch.equal(moments[block.name][key], exact[key])
                assert torch.equal(engine.optimizer.state[block.param][key], state[key])
                checked += 1
    assert checked == 6
    assert capsys.readouterr().out.count("resumes from this checkpoint goes on exactly") == 1


def test_the_file_can_be_left_and_a_lost_state_is_refused(tmp_path):
    _, _, path = saved(tmp_path)
    fit(module(), [], length=20, ckpt_path=str(path))  # without us: plain moments, nothing in the way
    file = torch.load(path, weights_only=True)
    del file["callbacks"]["lightning_so.SecondOrder"]
    torch.save(file, path)
    with pytest.raises(StateError, match="state of SecondOrder is missing"):
        fit(module(), [SecondOrder(METHOD)], length=20, ckpt_path=str(path))
    # One of the two stamps is enough: folders of pieces lose that of the groups, a file without callbacks the other.
    stamp = file.pop("lightning_so")
    torch.save(file, path)
    with pytest.raises(StateError, match="state of SecondOrder is missing"):
        fit(module(), [SecondOrder(METHOD)], length=20, ckpt_path=str(path))
    for group in file["optimizer_states"][0]["param_groups"]:
        del group["lightning_so"]
    torch.save({**file, "lightning_so": stamp}, path)
    with pytest.raises(StateError, match="state of SecondOrder is missing"):
        fit(module(), [SecondOrder(METHOD)], length=20, ckpt_path=str(path))
    torch.save(file, path)
    fit(module(), [SecondOrder(METHOD)], length=20, ckpt_path=str(path))


def test_exact_moments_that_are_not_the_optimizers_are_refused(tmp_path):
    _, _, path = saved(tmp_path)
    name = r"net\.tall\.weight"
    for key, change, message in (
        ("exp_avg", lambda m: m[:-1], f"{name}: the state has exp_avg .*, the optimizer has not"),
        ("other", lambda _: torch.zeros(2), f"{name}: the state has other .*, the optimizer has not"),
        ("exp_avg", None, f"{name} rotates, but the state has no exp_avg"),
        (None, None, f"{name} rotates, but the state has no moments"),
    ):
        file = torch.load(path, weights_only=True)
        moments = file["callbacks"]["lightning_so.SecondOrder"]["engines"][0]["moments"]
        found = moments["net.tall.weight"]
        if change is not None:
            found[key] = change(found.get(key))
        elif key is not None:
            del found[key]
        else:
            del moments["net.tall.weight"]
        broken = tmp_path / "broken.ckpt"
        torch.save(file, broken)
        with pytest.raises(StateError, match=message):
            fit(module(), [SecondOrder(METHOD)], length=20, ckpt_path=str(broken))


def test_a_save_in_the_middle_of_a_step_holds_the_weights(tmp_path):
    model, ours, path = module(), SecondOrder(METHOD), tmp_path / "some.ckpt"
    saver = Middle(path, 12)
    fit(model, [ours, saver])
    assert not saver.live.any()  # it was hidden when it was saved
    name = ours.engines[0].stacks[0].blocks[0].name
    value = torch.load(path, weights_only=True)["state_dict"][name]
    assert value.any()
    assert torch.equal(value, saver.weight)


def test_momentum_of_preconditioned_gradients_is_written_as_it_is():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9)
    engine = attach(net, optimizer, EKFAC(period=2))
    train(net, optimizer, range(6))
    assert engine.report.preconditioned == 3
    assert plain_moments.leaving(engine.parts) is None
    assert exact_moments.moments(engine.parts) == {}
    state = optimizer.state_dict()["state"]
    for number, entry in plain_moments.plain_optimizer_state(engine.parts, optimizer.state_dict())["state"].items():
        assert torch.equal(entry["momentum_buffer"], state[number]["momentum_buffer"])


def test_exact_moments_of_weights_and_their_biases_come_back():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    engine = attach(net, optimizer, EKFAC(start=3, period=2))
    train(net, optimizer, range(16))
    assert engine.report.rotated == 3
    state, plain = (
        checkpoint.write(engine.parts, "full"),
        plain_moments.plain_optimizer_state(engine.parts, optimizer.state_dict()),
    )
    again = copy.deepcopy(net)
    other = torch.optim.AdamW(again.parameters(), lr=1e-2)
    twin = attach(again, other, EKFAC(start=3, period=2))
    other.load_state_dict(copy.deepcopy(plain))
    checkpoint.read(twin.parts, state)
    for mine, theirs, entry in zip(net.parameters(), again.parameters(), plain["state"].values(), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(other.state[theirs][key], optimizer.state[mine][key])
            assert torch.equal(entry[key], optimizer.state[mine][key]) == (mine is net.scale)  # no matrix
