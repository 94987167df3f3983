"""The command `lightning-so plan`: what it foretells is what a training holds and sends, and bad input is one line."""

import sys
from collections import Counter
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_so import EKFAC, KFAC, SOAP, ConfigError, Muon, Recorder, SecondOrder, Shampoo, attach
from lightning_so.cli.__main__ import main
from lightning_so.cli.planning import measured
from lightning_so.cli.planning.fixes import fix
from lightning_so.cli.planning.forecast import Asked, forecast, holds
from lightning_so.cli.planning.job import Made
from lightning_so.cli.planning.network import NETWORKS
from lightning_so.cli.planning.steps import Steps, lengths
from lightning_so.cli.planning.weightless import make
from lightning_so.cli.planning.world import World
from lightning_so.contract.memory import Memory, held
from lightning_so.core.checkpoint import checkpoint
from lightning_so.core.options import Options
from lightning_so.core.overhead.timings import Timings
from lightning_so.core.plan.mixture import Mixture
from lightning_so.core.trust.memory import state_bytes
from tests.support import shards
from tests.support.forked import ROOT
from tests.support.problems import batch
from tests.support.recipes import Data, Module
from tests.together.test_fsdp2 import BASES

CONFIG = str(ROOT / "configs" / "soap_byte_lm.yaml")
CLASSES = ["--model", "examples.byte_lm.ByteLM", "--data", "examples.byte_lm.ByteText"]
CURVATURE = ("factors", "bases and roots", "saved weights", "work space")
METHODS = [SOAP(start=2, period=2), KFAC(), EKFAC(start=2, period=2), Muon(), Shampoo()]


class Small(pl.LightningModule):
    """The model of the tests of sharded parameters."""

    def __init__(self):
        super().__init__()
        self.net = shards.Small().double()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Reads(Module):
    """Cannot be made without numbers."""

    def __init__(self):
        super().__init__()
        self.rates = torch.linspace(0, 1, 3).tolist()


class Deep(pl.LightningModule):
    """Layers of a width."""

    def __init__(self, width: int = 64, layers: int = 4):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def asked(method, make=Module, world=None, **more):
    options = Options(Mixture.of(method))
    return Asked(lambda: Made(make(), None), "it", options, world or World(), torch.device("cpu"), **more)


def trained(method, steps=8):
    """An engine after some steps of a real training, its module and optimizer."""
    torch.manual_seed(0)
    module = Module()
    optimizer = module.configure_optimizers()
    engine = attach(module, optimizer, method)
    for step in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(batch(step), step)
        engine.before_backward(loss)
        loss.backward()
        optimizer.step()
    return engine, module, optimizer


def names(method):
    return type(method).__name__


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow) for m in METHODS], ids=names)
def test_bytes_are_those_of_a_training(method):
    engine, module, optimizer = trained(method)
    found = forecast(asked(method))
    parts = found.memory[0]
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert parts["weights"] == sum(p.nbytes for p in module.parameters())
    assert parts["gradients"] == sum(p.grad.nbytes for p in module.parameters())
    assert parts["optimizer's moments"] == sum(value.nbytes for value in states)
    # Room that a step fills now and then is not there yet.
    seen = state_bytes(engine.parts.units, engine.parts.matrices)
    assert sum(parts[part] for part in CURVATURE) == pytest.approx(seen, rel=0.02)
    own = sum(t.nbytes for t in [*module.parameters(), *states])
    for kind, size in found.checkpoints.items():
        written = sum(t.nbytes for t in held(checkpoint.write(engine.parts, kind)))
        assert size == pytest.approx(own + written, rel=0.02)


@pytest.mark.parametrize("method", [SOAP(start=4, period=4), KFAC(fisher="empirical", period=2)], ids=names)
@pytest.mark.slow
def test_pieces_and_traffic_are_those_of_real_ranks(method, two):
    found = forecast(asked(method, Small, World(1, 2, "fsdp")))
    real = two.run(shards.train, method, *BASES["adamw"], 24)
    assert found.sent["curvature"] == pytest.approx(max(rank.predicted[0] for rank in real), rel=0.01)
    for number, rank in enumerate(real):
        curvature = sum(found.memory[number][part] for part in ("factors", "bases and roots"))
        assert curvature == pytest.approx(rank.curvature, rel=0.02)


@pytest.mark.slow
def test_strategies_share_out_what_they_share_out():
    width, ranks = 64, 2
    whole = 4 * width * width * 4
    for strategy, shares in {
        "ddp": (1, 1, 1),
        "fsdp": (ranks, ranks, ranks),
        "hsdp": (1, 1, 1),
        "zero_1": (1, 1, ranks),
        "zero_2": (1, ranks, ranks),
        "zero_3": (ranks, ranks, ranks),
    }.items():
        for parts in forecast(asked(Muon(), Deep, World(2, 1, strategy))).memory.values():
            found = parts["weights"], parts["gradients"], parts["optimizer's moments"] / 2
            assert found == pytest.approx([whole / share for share in shares], rel=0.01)
            assert parts.get("buckets of DDP", 0) == (whole if strategy == "ddp" else 0)
            assert parts.get("fp32 weights of ZeRO", 0) == (whole / ranks if strategy.startswith("zero") else 0)


def test_a_step_is_as_long_as_its_slowest_rank():
    steps = Steps([1.0, 2.0], [{0: [0], 1: [1]}, {}, {0: [0, 1]}], [0.0, 1.0, 0.5], [])
    assert lengths(steps, 10.0, steps.steady, [5.0, 3.0].__getitem__, 4.0) == [16.0, 16.0, 21.0]


@pytest.mark.slow
def test_seconds_are_put_on_the_schedule():
    found = forecast(asked(SOAP(period=4, start=2)))
    units, kinds = found.engines[0].units, found.engines[0].units.kinds
    solves = tuple(float(kind + 1) for kind in range(max(kinds) + 1))
    pace = found.timed([Timings(100.0, 20.0, 0.0, 0.0, 1, solves)], NETWORKS["nvlink"])
    a_cycle = sum(solves[kinds[number]] / unit.final for number, unit in enumerate(units))
    assert pace.own * pace.mean == pytest.approx(120.0 + a_cycle)
    assert pace.largest > pace.median > 1.2
    two = forecast(asked(SOAP(period=4, start=2), world=World(1, 2)))
    assert two.timed([Timings(100.0, 20.0, 0.0, 0.0, 1, solves)], NETWORKS["nvlink"]).mean < pace.mean


@pytest.mark.slow
def test_rows_make_the_training_s_own_step():
    one, four = (forecast(asked(SOAP(), Deep, tokens=tokens)).modelled() for tokens in (64, 256))
    assert one is not None
    assert four is not None
    assert one.own == 3 * 64 * 4 * 64 * 64
    assert four.mean - 1 == pytest.approx((one.mean - 1) / 4)
    assert forecast(asked(SOAP(), Deep)).modelled() is None


def again(wanted):
    """What it holds, once the few numbers of solves that are made once are there."""
    holds(wanted)
    return holds(wanted)


@pytest.mark.slow
def test_the_first_change_that_fits_is_the_smallest():
    deep = lambda: Deep(512, 1)  # noqa: E731
    usual = asked(SOAP(cap=512), deep)
    triangles, first = (
        replace(usual, options=replace(usual.options, memory=memory)) for memory in (Memory(), Memory(half=True))
    )
    found, lean, whole = forecast(usual), again(first), again(triangles)
    assert lean < whole < found.most
    assert fix(usual, found, whole) == ("memory=Memory()", whole)
    assert fix(usual, found, lean) == ("memory=Memory(half=True)", lean)
    found = forecast(first)
    tiles = again(replace(first, options=replace(first.options, mixture=Mixture.of(SOAP(cap=256)))))
    muon = again(replace(triangles, options=replace(triangles.options, mixture=Mixture.of(Muon()))))
    assert muon < tiles < found.most
    assert fix(first, found, tiles) == ("cap=256", tiles)
    assert fix(first, found, muon) == ("Muon in its place (--method=muon)", muon)
    assert fix(first, found, 1.0) is None


@pytest.mark.slow
def test_pieces_are_a_way_out_where_there_are_ranks():
    ddp = asked(Muon(), Deep, World(1, 2))
    found, sharded = forecast(ddp), holds(asked(Muon(), Deep, World(1, 2, "fsdp")))
    assert sharded < found.most
    assert fix(ddp, found, sharded) == ("pieces of parameters (--strategy=fsdp)", sharded)


def test_tied_weights_and_other_precisions_stay():
    class Tied(Deep):
        def __init__(self):
            super().__init__(8, 2)
            self.layers[1].weight = self.layers[0].weight
            self.register_buffer("scale", torch.ones(3).double())

    module = make(lambda: Made(Tied(), None, {"precision": "bf16-true"}), "it").module
    assert module.layers[0].weight is module.layers[1].weight
    assert {t.dtype for t in (*module.parameters(), *module.buffers())} == {torch.bfloat16}


def test_shapes_that_the_first_batch_gives_are_asked_for():
    class Lazy(Deep):
        def __init__(self):
            super().__init__(8, 2)
            self.layers.append(nn.LazyLinear(3))

    with pytest.raises(ConfigError, match="lazy layers"):
        forecast(asked(Muon(), Lazy))


def calls(ranks, layers):
    """Calls and resumed generators of Python while a plan is made."""
    seen = Counter()
    sys.setprofile(lambda frame, event, argument: seen.update([event == "call"]))
    try:
        forecast(asked(SOAP(), lambda: Deep(64, layers), World(ranks, 1, "fsdp")))
    finally:
        sys.setprofile(None)
    return seen[True]


@pytest.mark.slow
def test_sixteen_times_the_ranks_are_little_work_and_four_times_the_blocks_four_times():
    calls(8, 2)  # What is looked up once is looked up here.
    one, ranks, layers = calls(32, 8), calls(512, 8), calls(32, 32)
    assert ranks < 2 * one
    assert layers < 1.25 * 4 * one


def test_nothing_is_computed_without_numbers():
    found = forecast(asked(Muon(), lambda: Deep(2**20, 1)))
    assert found.memory[0]["weights"] == 4 * 2**40


@pytest.mark.slow
def test_steps_are_timed_by_the_training_itself():
    job = lambda: Made(Module(), Data())  # noqa: E731
    timings = measured.trained(job, Options(Mixture.of(KFAC(period=4))), torch.device("cpu"))
    assert min(timings.own, timings.steady, timings.hooks + timings.folding) > 0
    assert all(seconds > 0 for seconds in timings.solves)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=names)
def test_pieces_are_timed_where_there_are_no_data(method):
    plan = asked(method, Small, tokens=512)
    (timings,), how, why = measured.timings_of(plan, forecast(plan))
    assert how.startswith("by single products and solves")
    assert "train_dataloader() gives none" in why
    assert timings.own > 0
    assert all(seconds > 0 for seconds in timings.solves)
    assert bool(timings.solves) is not isinstance(method, Muon)


# ---------------------------------------------------------------- the command


def run(capsys, *arguments):
    status = main(["plan", *map(str, arguments)])
    return status, capsys.readouterr().out


@pytest.mark.slow
def test_the_verdict_comes_first_and_the_exit_status_says_it(capsys):
    status, out = run(capsys, CONFIG, *CLASSES, "--tokens", 1024)
    assert status == 0
    assert out.startswith("fits: ")
    assert "the mean step takes 1." in out.splitlines()[0]
    for part in ("Memory of a rank", "Size of a checkpoint", "SOAP(period=50", "head.weight"):
        assert part in out
    status, out = run(capsys, CONFIG, *CLASSES, "--gpu_mem", 0.017, "--gpus", 2)
    assert status == 1
    assert out.startswith("does not fit: at least ")
    assert out.splitlines()[1].startswith("  -> fits with ")
    assert "Sent by a rank" in out


@pytest.mark.slow
def test_a_run_stands_beside_its_plan(tmp_path, capsys):
    trainer = pl.Trainer(
        max_steps=12, accelerator="cpu", devices=1, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
        callbacks=[SecondOrder(SOAP(start=2, period=2), print_plan=False, recorder=Recorder())],
    )  # fmt: skip
    trainer.fit(Module(), datamodule=Data())
    status, out = run(
        capsys, "tests.support.recipes.Module", "--accelerator", "cpu", "--method", "soap", "--against", trainer.log_dir
    )
    assert status == 0
    told = out[out.index("Against ") :].splitlines()
    off = {line.split()[0]: float(line.split()[-2]) for line in told[1:] if line.endswith("%")}
    assert set(off) == {"parameters", "gradients", "optimizer", "curvature"}
    assert all(abs(each) <= 5 for each in off.values()), told
    assert "not foretold without --measure" in told[-1]


@pytest.mark.slow
def test_a_named_device_makes_seconds_with_exchanges(capsys):
    def mean(*more):
        status, out = run(capsys, "tests.cli.test_plan.Deep", "--method", "soap", "--tokens", 512, *more)
        step = out[out.index("Step, ") :].splitlines()
        assert status == 0
        return step[0], float(step[0].split(": ")[1].split(" ms")[0]) * float(step[1].split()[1].rstrip("x,"))

    told, alone = mean("--device", "0.04/0.01/0.01")
    assert told.startswith("Step, on 0.04/0.01/0.01, at nominal speeds, 0.0 ms of second order's exchanges over nvlink")
    own = float(told.split(": ")[1].split(" ms")[0])
    assert own == pytest.approx(1e3 * 2 * forecast(asked(SOAP(), Deep, tokens=512)).own / 0.04e12, abs=0.06)
    quick, slow = (mean("--device", "0.04/0.01/0.01", "--gpus", 2, "--network", gb)[1] for gb in ("100@1", "0.01@1"))
    assert quick < 1.01 * alone < slow
    assert "1 x 2 GPUs" in run(capsys, "tests.cli.test_plan.Deep", "--gpus", 2, "--device", "h100", "--tokens", 8)[1]


BAD = {
    "nothing.yaml": "cannot be read",
    "examples.byte_lm.Nothing": "cannot be imported",
    "torch.nn.Linear": "is no LightningModule",
    "examples/byte_lm.py": "is neither a configuration",
    CONFIG: "Give its name (--model",
    "tests.cli.test_plan.Reads": "may not read a tensor's value",
    "tests.cli.test_plan.Deep --method newton": "there are ekfac, kfac, muon, shampoo, soap",
    "tests.cli.test_plan.Deep --strategy tensor": "must be one of ['ddp', 'fsdp', 'hsdp', 'zero_1',",
    "tests.cli.test_plan.Deep --gpus 0": "--gpus must be an integer in [1,",
    "tests.cli.test_plan.Deep --gpu_mem 0": "--gpu_mem must be a number in",
    "tests.cli.test_plan.Deep --tokens 0": "--tokens must be an integer in [1,",
    "tests.cli.test_plan.Deep --network token-ring": "--network must be one of ['loopback', 'ethernet',",
    "tests.cli.test_plan.Deep --device h1 --tokens 8": "--device must be one of ['h100'], or TFLOP/s of",
    "tests.cli.test_plan.Deep --device 1/0/1 --tokens 8": "--device must be one of ['h100'], or TFLOP/s of",
    "tests.cli.test_plan.Deep --device h100": "give --tokens, and leave --measure out",
    "tests.cli.test_plan.Deep --device h100 --tokens 8 --measure": "give --tokens, and leave --measure out",
    "tests.cli.test_plan.Deep -- --height=3": "Give its arguments behind '--'",
    "tests.cli.test_plan.Deep --accelerator cpu --measure": "needs a batch",
    "tests.cli.test_plan.Deep --against /nowhere": "/nowhere is not there",
}


@pytest.mark.parametrize("line", BAD)
@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(line, capsys):
    assert main(["plan", *line.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lightning-so plan: ")
    assert said.err.count("\n") == 1
    assert BAD[line] in said.err


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["plan", "tests.cli.test_plan.Deep", "--cards", "8"])
    assert caught.value.code == 2
    assert "--cards" in capsys.readouterr().err


def test_methods_on_the_whole_vector_are_refused_by_name(capsys):
    assert main(["plan", str(ROOT / "configs" / "few_directions_byte_lm.yaml"), *CLASSES]) == 2
    assert "MatrixFree(FewDirections) alone" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--help"])
    assert caught.value.code == 0
    assert "-- --d=4096" in capsys.readouterr().out
