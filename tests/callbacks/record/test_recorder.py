"""A training that is recorded is the same training, and what is recorded is what happened."""

import copy
import math
import pickle

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_so import KFAC, SOAP, ConfigError, Recorder, SecondOrder
from lightning_so.callbacks.record import run as run_of
from lightning_so.callbacks.record import turns
from lightning_so.recording.file import read


class Net(pl.LightningModule):
    """Dropout and BatchNorm, so that a number that is drawn or a pass more would be seen."""

    def __init__(self, base=torch.optim.AdamW, spoiled=()):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
        )
        self.base, self.spoiled, self.losses = base, spoiled, []

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if batch_idx in self.spoiled:
            loss = loss * self.spoiled[batch_idx]
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self):
        return self.base(self.parameters(), lr=0.01)


def fit(module, folder, *callbacks, steps=12, logger=True, **named):
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(1200, 6), torch.randint(3, (1200,)))
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=steps,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version="run") if logger else False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu", "enable_checkpointing": False, **named},
    )
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True))
    return trainer


def recorded(folder, name="recording", rank=0):
    return read(folder / "run" / name / f"rank-{rank:04d}.json.gz")


@pytest.fixture
def often(monkeypatch):
    """Looks at everything at every other step."""
    monkeypatch.setattr(turns, "ROUND", 1)
    monkeypatch.setattr(run_of, "LOOK", 2)
    monkeypatch.setattr(run_of, "NORM", 1)


@pytest.mark.parametrize("method", [None, SOAP(start=4, period=2), KFAC(period=2)], ids=["none", "soap", "kfac"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_that_is_recorded_is_the_same_bit_for_bit(method, accumulate, tmp_path, often):
    ends = []
    for watching in (False, True):
        ours = [] if method is None else [SecondOrder(method, print_plan=False, recorder=False)]
        module = Net(torch.optim.AdamW if method != KFAC(period=2) else torch.optim.SGD)
        callbacks = [Recorder()] if watching else []
        fit(module, tmp_path, *ours, *callbacks, accumulate_grad_batches=accumulate)
        reports = [engine.report.portable() for callback in ours for engine in callback.engines]
        ends.append((module.state_dict(), reports, torch.get_rng_state(), torch.rand(3)))
    for plainly, watched in zip(*ends, strict=True):
        torch.testing.assert_close(watched, plainly, rtol=0, atol=0)
    found = recorded(tmp_path)
    assert found["last"]["step"] == list(range(1, 12 // accumulate + 1))
    assert len(found["layers"]["step"]) == 12 // accumulate
    assert found["units"]["names"] == ["net.0", "net.1", "net.4", "net.6"]
    assert len(found["units"]["step"]) == 6 // accumulate


class Truth(pl.Callback):
    """The same numbers from outside, in float64."""

    def __init__(self):
        self.seen = []

    def matrices(self, module):
        return [p for p in module.parameters() if p.ndim > 1]

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.grads = [p.grad.double().clone() for p in self.matrices(module)]
        self.gradient = sum(float(p.grad.double().square().sum()) for p in module.parameters())
        self.before = [p.detach().double().clone() for p in self.matrices(module)]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        moved = [p.detach().double() - before for p, before in zip(self.matrices(module), self.before, strict=True)]
        of_layers = zip(self.before, moved, self.grads, strict=True)
        rows = [[w.square().sum(), d.square().sum(), g.square().sum(), (d * g).sum()] for w, d, g in of_layers]
        self.seen.append((self.gradient, torch.tensor(rows).T))


@pytest.mark.parametrize("method", [None, SOAP(start=3, period=2), KFAC(period=2)], ids=["none", "soap", "kfac"])
def test_what_is_recorded_is_what_happened(method, tmp_path, often):
    truth, module = Truth(), Net()
    ours = [] if method is None else [SecondOrder(method, print_plan=False)]
    trainer = fit(module, tmp_path, truth, *ours, *([] if ours else [Recorder()]))
    found = recorded(tmp_path)
    assert found["last"]["loss"] == pytest.approx(module.losses)
    assert found["last"]["gradient"] == pytest.approx([gradient for gradient, _ in truth.seen], rel=1e-5)
    assert found["layers"]["names"] == ["net.0.weight", "net.4.weight", "net.6.weight"]
    assert found["layers"]["shapes"] == [[8, 6], [8, 8], [3, 8]]
    for row, name in enumerate(("weight", "update", "gradient", "dot")):
        told = torch.tensor(found["layers"][name], dtype=torch.float64)
        seen = torch.stack([rows[row] for _, rows in truth.seen])
        torch.testing.assert_close(told, seen, rtol=2e-3, atol=1e-9)
    assert found["facts"]["optimizer"] == "AdamW"
    assert found["facts"]["settings"]["AdamW"]["lr"] == 0.01
    assert found["last"]["lr"] == [0.01] * 12
    if method is None:
        assert found["facts"]["method"] is None
        return
    (engine,) = ours[0].engines
    assert found["facts"]["plan"] == str(engine.plan)
    assert found["facts"]["settings"][type(method).__name__]["period"] == 2
    assert found["last"]["solves"][-1] == engine.report.solves > 0
    assert sum(len(blocks) for *_, blocks in found["solved"]) == engine.report.solves
    assert all(seconds > 0 for _, _, seconds, _ in found["solved"])
    drift = [share for share in found["last"].get("drift", ()) if share is not None]
    assert bool(drift) == (type(method) is SOAP)
    assert all(-1e-5 < share <= 1 for share in drift)
    assert engine.parts.turned is None  # nobody takes it out any more
    assert {"step", "solve"} <= {span[0] for span in found["spans"]}
    assert found["memory"]["curvature"] > 0
    assert {event["kind"] for event in found["events"]} == {"entered"}
    assert trainer.callbacks.count(None) == 0


@pytest.mark.filterwarnings("ignore:max_overhead")
def test_a_budget_is_recorded_as_foretold_and_as_measured(tmp_path):
    ours = SecondOrder(SOAP(start=4, period=2), print_plan=False, max_overhead=0.9)
    fit(Net(), tmp_path, ours, steps=60)
    (engine,) = ours.engines
    found = recorded(tmp_path)["last"]
    measured = [share for share in found["overhead_measured"] if share is not None]
    assert len(measured) > 40
    assert all(share > 0 for share in measured)
    assert found["overhead_predicted"][-1] == (engine.parts.overhead.choice and engine.parts.overhead.choice.predicted)
    assert engine.parts.overhead.scalars()["so/overhead_measured"] > 0  # what is logged is another's to ask


def test_large_weights_are_sampled(tmp_path, often, monkeypatch):
    monkeypatch.setattr(turns, "NUMBERS", 16)
    truth = Truth()
    fit(Net(), tmp_path, truth, Recorder())
    told = torch.tensor(recorded(tmp_path)["layers"]["update"], dtype=torch.float64).sum(0)
    seen = torch.stack([rows[1] for _, rows in truth.seen]).sum(0)
    torch.testing.assert_close(told, seen, rtol=0.5, atol=0)
    assert not torch.allclose(told, seen, rtol=1e-4)


def test_the_loss_of_a_step_is_the_mean_of_its_batches(tmp_path):
    module = Net()
    fit(module, tmp_path, Recorder(), accumulate_grad_batches=3)
    means = [sum(module.losses[first : first + 3]) / 3 for first in range(0, 12, 3)]
    assert recorded(tmp_path)["last"]["loss"] == pytest.approx(means)


def test_validation_is_no_part_of_a_step(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_of.time, "perf_counter", lambda: now[0])

    class Slow(Net):
        def training_step(self, batch, batch_idx):
            now[0] += 1.0
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            now[0] += 100.0

        def val_dataloader(self):
            return DataLoader(range(3))

    fit(Slow(), tmp_path, Recorder(), val_check_interval=4)
    assert recorded(tmp_path)["last"]["step_seconds"] == pytest.approx([1.0] * 12)


def test_a_loss_that_is_not_finite_is_found(tmp_path):
    fit(Net(spoiled={40: math.nan}), tmp_path, Recorder(), steps=60)
    found = recorded(tmp_path)
    assert [(event["step"], event["kind"]) for event in found["events"]] == [(41, "nan")]
    assert found["last"]["loss"][40] is None
    assert None not in found["last"]["loss"][:40]


def test_a_step_that_is_left_out_is_told(tmp_path):
    fit(Net(spoiled={4: math.nan}), tmp_path, SecondOrder(SOAP(), print_plan=False), steps=8)
    kinds = [(event["step"], event["kind"]) for event in recorded(tmp_path)["events"]]
    assert (5, "skipped") in kinds


@pytest.mark.parametrize(("fault", "kind"), [(math.nan, "nan"), (100.0, "spike")])
def test_the_file_is_there_soon_after_an_alarm(fault, kind, tmp_path):
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (tmp_path / "run" / "recording" / "rank-0000.json.gz").exists():
                seen.setdefault(recorded(tmp_path)["written"]["why"], trainer.global_step)

    fit(Net(spoiled={40: fault}), tmp_path, Recorder(), Look(), steps=100)
    assert list(seen) == [kind]
    assert 41 <= seen[kind] <= 41 + 2 * run_of.FLUSH
    assert recorded(tmp_path)["written"]["why"] == "end"


@pytest.mark.parametrize("method", [None, SOAP()], ids=["none", "soap"])
def test_the_file_is_written_at_an_exception(method, tmp_path):
    class Broken(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 7:
                raise RuntimeError("the disk is on fire")

    ours = [Recorder()] if method is None else [SecondOrder(method, print_plan=False)]
    with pytest.raises(RuntimeError, match="on fire"):
        fit(Net(), tmp_path, *ours, Broken())
    written = recorded(tmp_path)["written"]
    assert (written["why"], written["message"]) == ("exception", "RuntimeError: the disk is on fire")
    assert recorded(tmp_path)["last"]["step"][-1] in (7, 8)


def test_a_long_training_writes_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(run_of, "PERIOD", 0.0)
    why = []
    monkeypatch.setattr(run_of.file, "write", lambda path, found: why.append(found["written"]["why"]))
    fit(Net(), tmp_path, Recorder(), steps=40)
    assert why == ["checkpoint", "checkpoint", "end"]


def test_nothing_is_overwritten(tmp_path):
    runs = []
    for name in ("recording", "recording-2", "recording-3"):
        fit(Net(), tmp_path, Recorder())
        runs.append(recorded(tmp_path, name)["run"])
    assert len(set(runs)) == 3
    assert recorded(tmp_path)["run"] == runs[0]


def test_a_folder_that_cannot_be_written_stops_no_training(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recording").write_text("a file")

    class Blocked(Recorder):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            self._run._path = tmp_path / "run" / "recording" / "rank-0000.json.gz"

    with pytest.warns(UserWarning, match="cannot be written") as said:
        trainer = fit(Net(spoiled={1: math.nan}), tmp_path, Blocked(), steps=40)
    assert trainer.global_step == 40
    assert len([each for each in said if "cannot be written" in str(each.message)]) == 1


def test_who_records_by_default(tmp_path):
    trainer = fit(Net(), tmp_path, SecondOrder(SOAP(), print_plan=False))
    assert sum(isinstance(callback, Recorder) for callback in trainer.callbacks) == 1
    assert (tmp_path / "run" / "recording").is_dir()


@pytest.mark.parametrize(
    ("recorder", "named"), [(False, {}), (True, {"logger": False}), (True, {"fast_dev_run": True})], ids=str
)
def test_who_does_not(recorder, named, tmp_path):
    fit(Net(), tmp_path, SecondOrder(SOAP(), print_plan=False, recorder=recorder), **named)
    assert not list(tmp_path.rglob("*.gz"))


@pytest.mark.parametrize("beside", [True, False])
def test_ones_own_recorder_is_taken(beside, tmp_path):
    mine = Recorder(last=5)
    ours = SecondOrder(SOAP(), print_plan=False, recorder=True if beside else mine)
    trainer = fit(Net(), tmp_path, ours, *([mine] if beside else []), logger=False)
    assert [callback for callback in trainer.callbacks if isinstance(callback, Recorder)] == [mine]
    found = read(tmp_path / "recording" / "rank-0000.json.gz")
    assert found["last"]["step"] == [8, 9, 10, 11, 12]
    assert found["whole"]["step"] == list(range(1, 13))
    assert mine.recording is not None


def test_copies_hold_nothing_of_a_fit(tmp_path):
    mine = Recorder(last=7)
    fit(Net(), tmp_path, mine)
    for other in (pickle.loads(pickle.dumps(mine)), copy.deepcopy(mine)):
        assert other.last == 7
        assert other.recording is None


def test_several_optimizers_by_hand(tmp_path, often):
    class Two(Net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return {"loss": loss.detach()}

        def configure_optimizers(self):
            parts = self.net[:4], self.net[4:]
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

    fit(Two(), tmp_path, Recorder())
    found = recorded(tmp_path)
    assert found["last"]["step"] == list(range(2, 25, 2))
    assert all(loss > 0 for loss in found["last"]["loss"])
    assert all(number > 0 for row in found["layers"]["update"] for number in row)
    assert list(found["facts"]["settings"]) == ["SGD", "SGD 1"]


@pytest.mark.parametrize("last", [0, -1, 1.5, "all"])
def test_bad_arguments(last):
    with pytest.raises(ConfigError, match=r"Recorder\(last="):
        Recorder(last=last)
