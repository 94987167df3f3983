"""On a CUDA device: the same numbers as on the CPU, the optimizer variants that only run there, no host reads."""

import itertools
import warnings

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Mixture, Muon, Shampoo, attach
from lightning_so.linalg.basis import refresh
from lightning_so.linalg.precision import FullPrecision
from tests.support.problems import Net, batch
from tests.support.spectra import matrix

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
METHODS = [SOAP(start=4, period=2), SOAP(start=4, period=2, cap=3), Muon()]
ADAMW = (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
#: Beside those: every method and what it does on either kind of base.
OTHERS = [
    (KFAC(fisher="empirical", period=2), SGD),
    (KFAC(period=2, fisher="exact", cap=8), SGD),
    (KFAC(fisher="empirical", period=2, sharing="reduce", exact=True), ADAMW),
    (EKFAC(fisher="empirical", start=4, period=2), SGD),
    (EKFAC(fisher="empirical", start=4, period=2), ADAMW),
    (Shampoo(period=2), SGD),
    (Shampoo(period=2, whiten=True), ADAMW),
    (Muon(), SGD),
    (
        Mixture(
            {"Conv2d": Shampoo(period=2), "tall.*": KFAC(fisher="empirical", period=2), "*": SOAP(start=4, period=2)}
        ),
        ADAMW,
    ),
]
VARIANTS = [{}, {"foreach": True}, {"fused": True}, {"capturable": True}, {"capturable": True, "lr": "tensor"}]


def walk(device, method, steps, dtype=torch.float64, base=ADAMW, **arguments):
    torch.manual_seed(0)
    model = Net(dtype).to(device)
    cls, usual = base
    if arguments.get("lr") == "tensor":
        arguments["lr"] = torch.tensor(1e-2, device=device)
    optimizer = cls(model.parameters(), **{**usual, **arguments})
    engine = attach(model, optimizer, method)
    for step in range(steps):
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()
    return model, optimizer, engine


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_equals_the_cpu(method, variant):
    plain, _, _ = walk("cpu", method, 12)
    model, _, engine = walk(DEVICE, method, 12, **variant)
    assert engine.report.rotated + engine.report.bent == 3
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        # A capturable AdamW keeps its step, and so its bias corrections, in float32.
        tolerance = 1e-5 if "capturable" in variant else 1e-8
        torch.testing.assert_close(a, b.cpu(), rtol=tolerance, atol=tolerance)


def label(case):
    method, (cls, _) = case
    return f"{method}-{cls.__name__}"


@pytest.mark.parametrize("case", OTHERS, ids=label)
def test_the_others_equal_the_cpu(case):
    method, base = case
    plain, _, expected = walk("cpu", method, 12, base=base)
    model, _, engine = walk(DEVICE, method, 12, base=base)
    report = engine.report
    assert report.rotated + report.bent + report.preconditioned == 3
    assert report.failures == 0
    assert report.solves == expected.report.solves
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-7, atol=1e-7)


def test_muon_in_bf16_turns_like_fp32():
    def weights(steps, precision):
        model, _, _ = walk(DEVICE, Muon(precision=precision), steps, torch.float32)
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


def walked_on(model, optimizer, engine, steps=8):
    """Goes on, and gives where each step read from the device, and its solves."""
    for step in range(steps):
        x, y = batch(step)
        loss = torch.nn.functional.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE))
        optimizer.zero_grad()
        engine.before_backward(loss)
        loss.backward()
        before = engine.report.solves
        yield host_reads(optimizer), engine.report.solves - before


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_host_read_a_step_and_one_a_solve(method):
    # The guard must know whether the base may step; a solve whether its basis may be swapped in.
    for reads, solves in walked_on(*walk(DEVICE, method, 12, torch.float32)):
        assert len(reads) <= 1 + solves, reads


@pytest.mark.parametrize("case", OTHERS, ids=label)
def test_one_host_read_a_step_beside_the_solves(case, monkeypatch):
    # Their solves ask more than once: whether a decomposition was finished, and how well a root was found.
    def unseen(solve):
        def run(*arguments):
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("default")
            try:
                return solve(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        return run

    for cls, name in itertools.product((KFAC, EKFAC, Shampoo, SOAP), ("solve", "solve_afresh")):
        monkeypatch.setattr(cls, name, unseen(getattr(cls, name)))
    method, base = case
    for reads, _ in walked_on(*walk(DEVICE, method, 12, torch.float32, base)):
        assert len(reads) == 1, reads


def test_a_non_finite_gradient_is_withheld():
    model, optimizer, engine = walk(DEVICE, SOAP(start=4, period=2), 6, torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    model.tall.weight.grad[0, 0] = float("nan")
    optimizer.step()
    assert engine.report.skipped == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.fixture
def tell():
    """Tells torch how float32 products are to be made, until the end of the test."""
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_a_basis_stays_where_its_factor_does_while_products_are_rounded(setting, tell):
    # To 11 bits, on devices with tensor cores; its eigenvalues fall as 1/k^2.
    X = matrix(512, 512, "1/k").to(DEVICE)
    F, Q = (X @ X.mT).float()[None], torch.linalg.eigh(X @ X.mT)[1].flip(1).float()[None]
    for _ in range(20):  # until it is settled: the ridge that breaks ties is not in the factor
        Q = refresh(F, Q, strength=1e-2).value

    def turned(found):
        return float(((found.mT @ Q).abs().amax(2) < 0.99).float().mean())

    exact, expected = F @ Q, refresh(F, Q, strength=1e-2).value
    assert turned(expected) < 0.01
    tell(setting)
    if torch.equal(F @ Q, exact):
        pytest.skip("this device does not round them")
    with FullPrecision():
        assert torch.equal(refresh(F, Q, strength=1e-2).value, expected)
    rounded = refresh(F, Q, strength=1e-2).value
    tell("highest")
    assert turned(rounded) > 0.1


@pytest.mark.parametrize("case", [*((method, ADAMW) for method in METHODS), *OTHERS], ids=label)
def test_what_is_observed_and_solved_is_not_rounded(case, tell):
    """At a rate of zero, gradients are given: whatever is done to them, statistics are those of full precision."""
    method, (cls, options) = case
    found = []
    for setting in ("highest", "high", "medium"):
        torch.manual_seed(0)
        model = Net().to(DEVICE)
        engine = attach(model, cls(model.parameters(), **{**options, "lr": 0.0}), method)
        for step in range(8):
            x, y = batch(step)
            engine.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE))  # in full precision
            engine.before_backward(loss)
            loss.backward()
            tell(setting)
            engine.optimizer.step()
            assert torch.get_float32_matmul_precision() == setting
            tell("highest")
        found.append(engine.state_dict()["blocks"])
    for blocks in found[1:]:
        for name, of_block in found[0].items():
            for key, expected in of_block["tensors"].items():
                assert torch.equal(blocks[name]["tensors"][key], expected), (name, key)
