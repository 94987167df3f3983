"""On a CUDA device: the same numbers as on the CPU, the optimizer variants that only run there, no host reads."""

import warnings

import pytest
import torch

from lightning_so import SOAP, Muon, attach
from tests.problems import Net, batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
METHODS = [SOAP(start=4, period=2), SOAP(start=4, period=2, cap=3), Muon()]
VARIANTS = [{}, {"foreach": True}, {"fused": True}, {"capturable": True}, {"capturable": True, "lr": "tensor"}]


def walk(device, method, steps, dtype=torch.float64, **arguments):
    torch.manual_seed(0)
    model = Net(dtype).to(device)
    if arguments.get("lr") == "tensor":
        arguments["lr"] = torch.tensor(1e-2, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, "weight_decay": 0.1, **arguments})
    engine = attach(model, optimizer, method)
    for step in range(steps):
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device)).backward()
        optimizer.step()
    return model, optimizer, engine


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_equals_the_cpu(method, variant):
    plain, _, _ = walk("cpu", method, 12)
    model, _, engine = walk("cuda", method, 12, **variant)
    assert engine.report.rotated + engine.report.bent == 3
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        # A capturable AdamW keeps its step, and so its bias corrections, in float32.
        tolerance = 1e-5 if "capturable" in variant else 1e-8
        torch.testing.assert_close(a, b.cpu(), rtol=tolerance, atol=tolerance)


def test_muon_in_bf16_turns_like_fp32():
    def weights(steps, precision):
        model, _, _ = walk("cuda", Muon(precision=precision), steps, torch.float32)
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    start = weights(0, "fp32")
    turned = [weights(1, precision) - start for precision in ("fp32", "bf16")]
    assert float(torch.nn.functional.cosine_similarity(*turned, dim=0)) > 0.999


def host_reads(optimizer):
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_host_read_a_step_and_one_a_solve(method):
    # The guard must know whether the base may step; a solve whether its basis may be swapped in.
    _, optimizer, engine = walk("cuda", method, 12, torch.float32)
    for _ in range(8):
        before = engine.report.solves
        reads = host_reads(optimizer)
        assert len(reads) <= 1 + engine.report.solves - before, reads


def test_a_non_finite_gradient_is_withheld():
    model, optimizer, engine = walk("cuda", SOAP(start=4, period=2), 6, torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    model.tall.weight.grad[0, 0] = float("nan")
    optimizer.step()
    assert engine.report.skipped == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
