"""How much curvature a checkpoint carries: full is exact, compact goes on rotating, rebuild starts cold."""

import copy
import io

import pytest
import torch

from lightning_so import EKFAC, SOAP, ConfigError, Muon, SecondOrder, StateError, attach
from lightning_so.core.checkpoint import checkpoint, plain_moments
from lightning_so.linalg.triangle import compact, expanded
from tests.callbacks.test_second_order import METHOD, fit, module
from tests.core.test_checkpoint_files import Save
from tests.support.problems import Net, train


def nbytes(state):
    if torch.is_tensor(state):
        return state.nbytes
    return sum(map(nbytes, state.values())) if isinstance(state, dict) else 0


def saved(tmp_path, state, at=20, method=METHOD):
    model, path = module(), tmp_path / f"{state}.ckpt"
    ours = SecondOrder(method, state=state)
    fit(model, [ours, Save(path, at)], length=40)
    return model, ours, path


def resumed(path, **arguments):
    model, ours = module(), SecondOrder(METHOD, **arguments)
    fit(model, [ours], length=60, ckpt_path=str(path))
    return model, ours


@pytest.mark.parametrize("kind", checkpoint.KINDS)
def test_every_kind_resumes_and_any_callback_reads_it(tmp_path, kind):
    _, _, path = saved(tmp_path, kind)
    model, ours = resumed(path)  # which itself would write "full"
    report = ours.engines[0].report
    assert report.step == 60
    assert report.rotated == 3
    assert report.failures == 0
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_sizes(tmp_path):
    size = {}
    for kind in checkpoint.KINDS:
        _, _, path = saved(tmp_path, kind)
        size[kind] = nbytes(torch.load(path, weights_only=True)["callbacks"]["lightning_so.SecondOrder"]["engines"][0])
    assert size["rebuild"] == 0
    assert 0 < size["compact"] < 0.3 * size["full"]


class Cold(SecondOrder):
    """Notes how many blocks rotate at each step."""

    state_key = "lightning_so.SecondOrder"

    def on_train_batch_start(self, *_):
        self.seen = [*getattr(self, "seen", []), self.engines[0].report.rotated]


def test_rebuild_starts_cold_and_warms_up_as_at_the_start(tmp_path):
    _, _, path = saved(tmp_path, "rebuild", method=SOAP(start=9, period=4))
    first, again = Cold(SOAP(start=9, period=4)), Cold(SOAP(start=9, period=4))
    fit(module(), [first], length=20)
    fit(module(), [again], length=60, ckpt_path=str(path))
    # The report of the step before: the first entry is what the checkpoint had counted.
    assert again.seen[1:20] == first.seen[1:20]
    assert first.seen[-1] == 3
    assert first.seen[8] == 0


def test_compact_finds_the_eigenbases_of_the_factors_and_keeps_the_first_moment():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    engine = attach(net, optimizer, SOAP(start=6, period=4))
    train(net, optimizer, range(20))
    state = checkpoint.write(engine.parts, "compact")
    engine.detach()  # moments to plain coordinates, as in a file
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in net.named_parameters()}
    sums = {name: optimizer.state[p]["exp_avg_sq"].sum() for name, p in net.named_parameters()}
    again = attach(net, optimizer, SOAP(start=6, period=4))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    checkpoint.read(again.parts, torch.load(file, weights_only=True))
    for index, stack in enumerate(again.stacks):
        for row, block in enumerate(stack.blocks):
            assert again.parts.roster.warm[index][row]
            for side in stack.stats.sides:
                for F, Q in zip(side.factors, side.bases, strict=True):
                    D = Q[row].mT @ F[row] @ Q[row]
                    assert float((D - D.diag().diag()).abs().max()) < 1e-2 * float(D.diag().mean())  # the ridge's size
                    assert torch.equal(F[row], F[row].mT)
            turned = stack.method.turn(stack.stats, moments[block.name].reshape(1, *stack.shape), [row], leave=False)
            held = again.optimizer.state[block.param]
            torch.testing.assert_close(held["exp_avg"].reshape(turned[0].shape), turned[0], rtol=1e-5, atol=1e-9)
            torch.testing.assert_close(held["exp_avg_sq"].sum(), sums[block.name], rtol=1e-4, atol=0)
    train(net, optimizer, range(20, 40))
    assert again.report.rotated == 3


@pytest.mark.parametrize("kind", checkpoint.KINDS)
def test_a_method_without_bases_has_nothing_to_lose(tmp_path, kind):
    straight = module()
    fit(straight, [SecondOrder(Muon())], max_epochs=2)
    path = tmp_path / "muon.ckpt"
    fit(module(), [SecondOrder(Muon(), state=kind), Save(path, 16)], max_epochs=2)
    model = module()
    fit(model, [SecondOrder(Muon())], max_epochs=2, ckpt_path=str(path))
    torch.testing.assert_close(model.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_bad_kinds_and_broken_compact_states_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"SecondOrder\(state='small'\).*'full', 'compact', 'rebuild'"):
        SecondOrder(METHOD, state="small")
    _, _, path = saved(tmp_path, "compact")
    file = torch.load(path, weights_only=True)
    tensors = file["callbacks"]["lightning_so.SecondOrder"]["engines"][0]["blocks"]["net.wide.weight"]["tensors"]
    tensors["rows.factor.0"] = tensors["rows.factor.0"][:-1]
    torch.save(file, path)
    with pytest.raises(
        StateError, match=r"net\.wide\.weight has other shapes: rows\.factor\.0: state \(54,\), model \(10, 10\)"
    ):
        resumed(path)


def test_triangles():
    full = torch.randn(5, 5)
    full = full + full.T
    assert torch.equal(expanded(compact(full), full), full)
    assert torch.equal(expanded(compact(full[0]), full[0]), full[0])


@pytest.mark.parametrize("kind", checkpoint.KINDS)
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_every_kind_of_ekfac_is_read_and_goes_on(kind, cls):
    def made():
        torch.manual_seed(0)
        model = Net()
        optimizer = cls(model.parameters(), lr=1e-2)
        return model, optimizer, attach(model, optimizer, EKFAC(start=6, period=4))

    straight, optimizer, engine = made()
    train(straight, optimizer, range(20))
    file = io.BytesIO()
    plain = plain_moments.plain_optimizer_state(engine.parts, copy.deepcopy(optimizer.state_dict()))
    torch.save((straight.state_dict(), plain, checkpoint.write(engine.parts, kind)), file)
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    train(straight, optimizer, range(20, 30))
    again, other, later = made()
    again.load_state_dict(weights)
    other.load_state_dict(moments)
    checkpoint.read(later.parts, state)
    first = later.plan.blocks[0].name
    warm = {True: "full compact", False: "rebuild"}
    assert kind in warm[bool(later.parts.roster.warm[0][0])], first
    train(again, other, range(20, 30))
    for a, b in zip(straight.parameters(), again.parameters(), strict=True):
        assert bool(b.isfinite().all())
        assert torch.equal(a, b) is (kind == "full")
        torch.testing.assert_close(a, b, rtol=0, atol=0.1)
