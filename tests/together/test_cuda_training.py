"""On a CUDA device in a Trainer: the weights of the CPU, whatever the method, precision or strategy of one rank."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_so import EKFAC, KFAC, SOAP, CurvatureMonitor, Mixture, Muon, Shampoo, spectrum
from lightning_so.core.solves.line import SideStream
from tests.callbacks.test_matrix_free import METHODS as WHOLE
from tests.callbacks.test_matrix_free import one, trained
from tests.callbacks.test_monitor import Net as Dropping
from tests.callbacks.test_monitor import fit
from tests.probe import test_residuals
from tests.support import trainings
from tests.support.late import in_line
from tests.support.problems import Net, batch

DEVICE, ACCELERATOR, BACKEND = "cuda", "gpu", "nccl"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
FUSED = (torch.optim.AdamW, {"lr": 3e-3, "fused": True})
LAYERWISE = {
    "soap": (SOAP(start=4, period=2), ADAMW),
    "kfac": (KFAC(period=2, damping=0.1), SGD),
    "ekfac": (EKFAC(start=4, period=2, damping=0.1), SGD),
    "ekfac on adamw": (EKFAC(start=4, period=2), FUSED),
    "mixture": (Mixture({"*.up.weight": Shampoo(period=2), "*.down.weight": Muon(), "*": KFAC(period=2)}), ADAMW),
}


def close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def alone(tmp_path):
    """A process group of one rank."""
    dist.init_process_group(BACKEND, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", WHOLE)
def test_methods_on_the_whole_vector_equal_the_cpu(name):
    expected, scalars, counts = one(name)
    weights, found, done = trained("one", name, accelerator=ACCELERATOR)
    close(weights, expected, 1e-6)
    assert (done.evaluations, done.forwards) == (counts.evaluations, counts.forwards)
    for key, value in scalars.items():
        assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("name", ["krylov", "adahessian", "nystrom"])
def test_exact_products_equal_the_cpu(name):
    expected, *_ = one(name, product="exact")
    weights, *_ = trained("one", name, product="exact", accelerator=ACCELERATOR)
    close(weights, expected, 1e-6)


def test_levenberg_and_marquardt_equal_the_cpu():
    found = test_residuals.trained("one", accelerator=ACCELERATOR)
    close({name: value.cpu() for name, value in found.items()}, test_residuals.trained("one"), 1e-6)


@pytest.mark.parametrize("strategy", ["one", "ddp", "ddp_so", "fsdp2", "fsdp1"])
@pytest.mark.parametrize("name", LAYERWISE)
def test_strategies_equal_the_cpu(request, strategy, name):
    method, base = LAYERWISE[name]
    more = {"steps": 12, "dtype": torch.float64, "accumulate": 2, "clip": 0.5}
    expected = trainings.train("one", method, base, **more)
    if strategy != "one":
        request.getfixturevalue("alone")
    found = trainings.train(strategy, method, base, accelerator=ACCELERATOR, **more)
    close(found.weights, expected.weights, 1e-6)
    assert found.report.step == 12
    assert found.report.failures == found.report.skipped == 0
    assert found.report.solves == expected.report.solves


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_exchange_behind_the_backward_pass_equals_the_cpu(alone, strategy):
    more = {"steps": 12, "dtype": torch.float64, "lag": 1}
    expected = trainings.train("one", SOAP(start=4, period=2), ADAMW, **more)
    found = trainings.train(strategy, SOAP(start=4, period=2), ADAMW, accelerator=ACCELERATOR, **more)
    close(found.weights, expected.weights, 1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1"])
@pytest.mark.parametrize("name", ["few", "newton sliced", "sophia"])
def test_methods_on_the_whole_vector_under_a_strategy(alone, strategy, name):
    expected, *_ = one(name)
    weights, *_ = trained(strategy, name, accelerator=ACCELERATOR)
    close(weights, expected, 1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", LAYERWISE)
def test_mixed_precision_is_near_float32(name, precision):
    method, base = LAYERWISE[name]
    exact = trainings.train("one", method, base, 40, accelerator=ACCELERATOR)
    found = trainings.train("one", method, base, 40, precision=precision, accelerator=ACCELERATOR)
    # A scaler begins at 2**16 and halves it until float16 holds the gradients: those steps are skipped.
    assert found.report.step > 30
    assert found.report.failures == 0
    assert all(bool(value.isfinite().all()) for value in found.weights.values())
    last = [sum(run.losses[-8:]) / 8 for run in (exact, found)]
    assert last[1] < found.losses[0]
    assert last[0] == pytest.approx(last[1], rel=0.1)


@pytest.mark.parametrize("name", LAYERWISE)
def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path, name):
    method, base = LAYERWISE[name]
    path, more = tmp_path / "saved.ckpt", {"accelerator": ACCELERATOR, "steps": 12}
    expected = trainings.train("one", method, base, callbacks=[trainings.Save(path, 7)], **more)
    found = trainings.train("one", method, base, resume=path, **more)
    different = [key for key, value in expected.weights.items() if not torch.equal(found.weights[key], value)]
    assert not different


@pytest.mark.parametrize("there", ["cpu", ACCELERATOR])
@pytest.mark.parametrize("name", ["soap", "kfac"])
def test_a_checkpoint_goes_from_one_device_to_the_other(tmp_path, name, there):
    method, base = LAYERWISE[name]
    path, more = tmp_path / "saved.ckpt", {"steps": 12, "dtype": torch.float64}
    here = "cpu" if there != "cpu" else ACCELERATOR
    expected = trainings.train("one", method, base, accelerator=here, callbacks=[trainings.Save(path, 7)], **more)
    found = trainings.train("one", method, base, accelerator=there, resume=path, **more)
    close(found.weights, expected.weights, 1e-6)


def test_a_monitor_sees_what_it_sees_on_the_cpu():
    seen = []
    for accelerator in ("cpu", ACCELERATOR):
        monitor = CurvatureMonitor(every=4, layers="*", verbose=False)
        more = {"accelerator": accelerator, "steps": 12, "dtype": torch.float64}
        trainings.train("one", SOAP(start=4, period=2), ADAMW, callbacks=[monitor], **more)
        seen.append([monitor.last, *monitor.last_of.values()])
    assert len(seen[0]) == 4
    for found, expected in zip(*seen, strict=True):
        assert (found.top, found.bottom) == pytest.approx((expected.top, expected.bottom), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("product", ["exact", "difference"])
def test_a_spectrum_is_that_of_the_cpu(product):
    found = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        model, (x, y) = Net(torch.float64).to(device), (part.to(device) for part in batch(0, torch.float64))
        loss = lambda m=model, x=x, y=y: nn.functional.cross_entropy(m(x), y)  # noqa: E731
        found.append(spectrum(model, loss, steps=12, probes=3, product=product))
    here, there = found
    for a, b in ((here.top, there.top), (here.bottom, there.bottom), (here.trace.mean, there.trace.mean)):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def test_dropout_is_repeated_on_the_device():
    # What is evaluated besides sees the random numbers of the step, and puts the device's generator back.
    ends = []
    for callbacks in ([], [CurvatureMonitor(every=2, verbose=False)]):
        module = Dropping(torch.optim.AdamW)
        fit(module, callbacks, accelerator=ACCELERATOR)
        ends.append(module.cpu().state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


@pytest.mark.parametrize("name", LAYERWISE)
def test_solves_on_a_stream_of_their_own_change_no_bit(name):
    method, base = LAYERWISE[name]
    more = {"steps": 30, "accelerator": ACCELERATOR, "lag": 1}
    with mock.patch("lightning_so.core.solves.line.SideStream", side_effect=SideStream) as made:
        found = trainings.train("one", method, base, **more)
    assert made.called
    expected = in_line(trainings.train, "one", method, base, **more)
    assert found.report.solves == expected.report.solves > 0
    for key, value in expected.weights.items():
        assert torch.equal(found.weights[key], value), key
