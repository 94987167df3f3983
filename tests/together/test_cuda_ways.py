"""On a CUDA device: what is measured there, bases by Cholesky factorisations, polar factors in fp16 and padded."""

import pytest
import torch

from lightning_so import SOAP, Muon, Ways
from lightning_so.core import measure
from lightning_so.core.device.alternatives import ways_of
from lightning_so.linalg.basis import by_cholesky, refresh
from lightning_so.linalg.padding import Frames
from lightning_so.linalg.polar import polar
from lightning_so.linalg.precision import FullPrecision
from tests.core.test_ways import trained, walk
from tests.support.spectra import EVERY, cosine, factor, matrix

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = torch.device("cuda")


@EVERY
@pytest.mark.parametrize("side", [64, 256])
def test_cholesky_finds_the_basis_of_householder(spectrum, side):
    F = factor(side, spectrum, count=3).float()
    Q = torch.eye(side).expand(3, -1, -1).contiguous()
    for _ in range(10):
        Q = refresh(F, Q, strength=1e-2).value
    F = F + 0.01 * factor(side, "1/k", seed=1, count=3).float()
    expected = refresh(F, Q, strength=1e-2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with FullPrecision():
            found = refresh(F.to(DEVICE, non_blocking=True), Q.to(DEVICE, non_blocking=True), strength=1e-2,
                            how=by_cholesky)  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.good.all()
    assert torch.equal(found.order.cpu(), expected.order)
    assert float((found.value.cpu() - expected.value).abs().max()) < 1e-4


def test_every_way_is_timed_and_the_choice_is_for_this_device():
    for what in ("refresh", "polar", "rotation", "padding"):
        works = ways_of(what, ((2, 64, 64), (1, 32, 96)), DEVICE)
        assert len(measure.medians(works, measure.waiting_clock(DEVICE))) == 2
    _, _, engine = trained(SOAP(start=4, period=2), 12, device=DEVICE)
    assert engine.parts.chosen.device == torch.cuda.get_device_name()
    assert set(engine.parts.chosen.seconds) == {"refresh", "polar", "rotation", "padding"}
    assert engine.plan.ways in str(engine.plan)
    assert engine.report.failures == 0


@pytest.mark.parametrize("rotation", ["torch", "tf32", "fp32"])
def test_every_way_trains(rotation):
    ends = []
    for ways in (Ways("householder", "fp32", "fp32"), Ways("cholesky", "fp16", rotation)):
        net, _, engine = trained(SOAP(start=4, period=2), 16, device=DEVICE, ways=ways)
        assert engine.report.failures == 0
        ends.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach())
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 0.02


@EVERY
@pytest.mark.parametrize("shape", [(96, 384), (384, 96), (128, 128)], ids=str)
def test_polar_factors_in_fp16_are_those_of_float64(spectrum, shape):
    M = matrix(*shape, spectrum)
    for scale in (1e-30, 1.0, 1e30):
        found = polar((M.float() * scale)[None].to(DEVICE), precision=torch.float16)[0].cpu()
        assert cosine(found, polar(M[None])[0]) > 0.9995


def test_a_state_goes_on_where_it_was_written_and_elsewhere():
    _, optimizer, engine = trained(Muon(), 4, device=DEVICE)
    chosen = engine.parts.chosen.ways
    net, base, other = trained(Muon(), 0, device=DEVICE)
    base.load_state_dict(optimizer.state_dict())
    other.load_state_dict(engine.state_dict())
    assert other.parts.chosen.ways == chosen
    walk(net, base, other, range(4, 8), device=DEVICE)


@pytest.mark.parametrize("precision", [None, torch.float16], ids=str)
def test_padded_polar_factors_are_those_of_each_shape_alone(precision):
    Xs = [torch.randn(2, *shape, device=DEVICE) for shape in ((96, 384), (384, 60), (30, 30))]
    frames = Frames(tuple((len(X), X.shape[1], X.shape[2]) for X in Xs))
    with FullPrecision():
        batch = frames.fill(torch.empty(frames.shape, device=DEVICE), Xs)
        for found, X in zip(frames.views(polar(batch, precision=precision)), Xs, strict=True):
            for one, alone in zip(found, polar(X, precision=precision), strict=True):
                assert cosine(one.cpu(), alone.cpu()) > (0.99999 if precision is None else 0.9995)


def test_padding_trains_as_each_shape_apart_does():
    ends = []
    for padding in ("apart", "padded"):
        net, _, engine = trained(Muon(), 8, device=DEVICE, ways=Ways(padding=padding))
        assert engine.parts.chosen.ways.padding == padding
        ends.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach())
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 1e-3
