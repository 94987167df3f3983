"""Side by side with other packages: who is missing is named, sweeps go on, figures and tables are right."""

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.peers import FOLDER, run, table
from benchmarks.peers.contenders import ENTRIES, OURS, Entry, dotted, present
from benchmarks.peers.round import held, trained
from benchmarks.shared import problems
from benchmarks.shared.methods import METHODS

MINE = "tests.benchmarks.test_peers:mine"


def mine(named, rate):
    """A contender by its dotted path."""
    assert {name for name, _ in named} >= {"0.weight", "0.bias"}
    return torch.optim.SGD([p for _, p in named], lr=rate)


def raises(named, rate):
    raise RuntimeError("not today")


@pytest.fixture
def short(monkeypatch):
    """The smallest problem, for four steps."""
    made = replace(problems.load("regression"), steps=4)
    monkeypatch.setitem(problems.PROBLEMS, "regression", lambda name: made)
    return made


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path, str(Path(__file__).parents[2] / FOLDER)])


def called(module, monkeypatch, *args):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, args)])
    monkeypatch.setattr("sys.path", [*sys.path])
    module.main()


def lines(out):
    return [json.loads(text) for text in out.read_text().splitlines()]


# ---------------------------------------------------------------- who takes part


def test_who_is_not_installed_is_skipped_by_name_and_the_others_go_on(capsys):
    gone = Entry("shiny", "no_such_package.optim", METHODS["adamw"])
    assert present([gone, ENTRIES["adamw"]]) == [ENTRIES["adamw"]]
    assert capsys.readouterr().out == "skipped: shiny, as no_such_package.optim is not installed\n"


@pytest.mark.usefixtures("short")
def test_nothing_left_is_an_error_and_one_that_is_gone_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ENTRIES, "heavyball_soap", replace(ENTRIES["heavyball_soap"], module="no_such_package"))
    args = ["--problem", "regression", "--times", 1, "--seeds", 0, "--out", tmp_path / "out.jsonl"]
    with pytest.raises(SystemExit, match="nothing is left to compare"):
        called(run, monkeypatch, *args, "--contenders", "heavyball_soap")
    called(run, monkeypatch, *args, "--contenders", "heavyball_soap", "soap")
    assert "skipped: heavyball_soap, as no_such_package is not installed" in capsys.readouterr().out
    assert [line["contender"] for line in lines(tmp_path / "out.jsonl")] == ["adamw", "soap"]


@pytest.mark.parametrize("text", ["module", "module:", ":function", "m:f@0", "m:f@much", "m:f@nan"])
def test_a_path_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"--with '"):
        dotted(text)


def test_a_dotted_path_is_a_contender_with_the_middle_of_its_sweep(short):
    entry = dotted(f"{MINE}@0.5")
    assert (entry.name, entry.rate, entry.there) == (MINE, 0.5, True)
    (line,) = trained(short, [(entry, 1e-2)], 0, 4)
    assert line["final_loss"] < line["curve"]["losses"][0]
    assert dotted(MINE).rate == ENTRIES["adamw"].rate


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "heavyball_psgd" else ())
        for name, entry in ENTRIES.items()
        if entry not in OURS
    ],
)
def test_every_peer_takes_steps(name, short):
    entry = ENTRIES[name]
    if not entry.there:
        pytest.skip(f"{entry.module} is not there: make bench-peers puts it into {FOLDER}")
    (line,) = trained(short, [(entry, entry.rate)], 0, 2)
    assert "failed" not in line, line
    assert line["final_loss"] < line["curve"]["losses"][0]
    assert line["state"] > 0
    assert entry.package["version"] != "unknown"


# ---------------------------------------------------------------- rounds


def test_contenders_of_a_round_do_not_see_each_other(short):
    pairs = [(ENTRIES[name], 3e-3) for name in ("soap", "adamw", "kfac")]
    together = [line["curve"]["losses"] for line in trained(short, pairs, 1, 4)]
    assert together == [trained(short, [pair], 1, 4)[0]["curve"]["losses"] for pair in pairs]


def test_one_that_fails_or_diverges_leaves_the_others_alone(short):
    failing = dotted("tests.benchmarks.test_peers:raises")
    found = trained(short, [(failing, 1.0), (dotted(MINE), 1e30), (ENTRIES["adamw"], 3e-3)], 0, 4)
    assert found[0] == {"failed": "RuntimeError: not today", "final_loss": None}
    assert found[1]["final_loss"] is None
    assert len(found[1]["curve"]["steps"]) < 5
    assert math.isfinite(found[2]["final_loss"])


def test_state_is_counted_once_wherever_a_package_keeps_it():
    class Keeper:
        def __init__(self, kept):
            self.kept = [kept]

    one, other = torch.zeros(3), torch.zeros(2, dtype=torch.float64)
    assert held([{"a": one, "b": {"c": [one]}}, Keeper(other), 7, None], set()) == 12 + 16


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_sweep_goes_on_where_it_was_broken_off(tmp_path, monkeypatch, capsys):
    out = tmp_path / "peers.jsonl"
    args = ["--problem", "regression", "--seeds", 0, "--out", out, "--contenders", "soap", "--with", f"{MINE}@0.01"]
    called(run, monkeypatch, *args, "--times", 1)
    assert [(line["contender"], line["rate"]) for line in lines(out)] == [("adamw", 3e-3), ("soap", 3e-3), (MINE, 0.01)]
    assert [line["package"] for line in lines(out)][:1] == ["torch"]
    assert len({line["adamw_ms"] for line in lines(out)}) == 1
    capsys.readouterr()
    called(run, monkeypatch, *args, "--times", 1, 3)
    assert "3 runs are in" in capsys.readouterr().out
    assert [line["rate"] for line in lines(out)[3:]] == [9e-3, 9e-3, 0.03]
    text = out.read_text()
    called(run, monkeypatch, *args, "--times", 1, 3)
    assert out.read_text() == text
    # One that failed is run again, with AdamW beside it as the clock.
    with out.open("a") as file:
        print(json.dumps({**lines(out)[1], "failed": "once"}), file=file)
    called(run, monkeypatch, *args, "--times", 1, 3)
    assert [line["contender"] for line in lines(out)[7:]] == ["adamw", "soap"]
    assert not any("failed" in line for line in run.read(out).values())


# ---------------------------------------------------------------- the table


def made(contender, rate, seed, losses, median_ms=2.0, **more):
    cell = run.Cell("toy", contender, rate, 1.0, seed, 20)
    steps = [10 * i for i in range(len(losses))]
    curve = {"steps": steps, "seconds": [step / 100 for step in steps], "losses": losses}
    figures = {"final_loss": losses[-1], "curve": curve, "median_ms": median_ms, "adamw_ms": 2.0, "state": 2.0}
    figures |= {"p99_ms": 5.0, "largest_ms": 9.0, "package": "torch", "version": "1", "loss_name": "loss"}
    return {**cell._asdict(), **figures, **more}


@pytest.fixture
def toy():
    found = [
        made("adamw", rate, seed, [4.0, 3.0, end + seed]) for rate, end in ((1, 3), (2, 1), (3, 2)) for seed in (0, 1)
    ]
    found += [made("torch_muon", rate, seed, [4.0, 2.0, rate]) for rate in (1, 2) for seed in (0, 1)]
    found += [made("soap", 1, seed, [4.0, 1.0, 0.5], 3.0, package="lightning_so") for seed in (0, 1)]
    # A rate that diverged, and one with a single seed, are not the best.
    found += [made("soap", 2, seed, [4.0, None]) for seed in (0, 1)]
    found += [made("soap", 3, 0, [4.0, 0.1, 0.1])]
    return found


def test_the_best_of_a_sweep_is_that_of_the_mean_and_an_edge_is_said(toy):
    found = table.sweeps(toy)
    assert {name: (one.best.lr, one.edge) for name, one in found.items()} == {
        "adamw": (2, False),
        "torch_muon": (1, True),
        "soap": (1, True),
    }
    assert table.targets(found) == {"AdamW": 1.5, "torch Muon": 1.0}
    assert found["soap"].over_adamw == 1.0
    assert found["soap"].of_best("median_ms") == 3.0


def test_the_table_has_where_targets_are_reached(toy, tmp_path, monkeypatch, capsys):
    path = tmp_path / "toy.jsonl"
    toy.append(made("kfac", 1, 0, [4.0], failed="ConfigError: no", final_loss=None))
    del toy[-1]["curve"], toy[-1]["median_ms"]
    path.write_text("".join(json.dumps(line) + "\n" for line in toy))
    called(table, monkeypatch, path, "--plot", tmp_path / "toy.png")
    said = capsys.readouterr().out
    rows = {
        row.split("│")[1].strip(): [part.strip() for part in row.split("│")[2:-1]]
        for row in said.splitlines()
        if "│" in row
    }
    assert rows["soap"][:5] == ["lightning_so 1", "3", "1 (edge)", "2", "0.5 ± 0"]
    # From 4 to 1 in ten steps: 1.5 is reached after 8 1/3 of them, 1 after 10.
    assert rows["soap"][5:9] == ["8.33", "0.0833", "10", "0.1"]
    assert rows["soap"][9:] == ["1.00", "3.0", "5.0", "9.0", "2.00"]
    assert rows["adamw"][2:7] == ["2", "2", "1.5 ± 0.71", "1 of 2 runs", "1 of 2 runs"]
    assert rows["kfac"][4] == "diverged"
    assert "toy, 20 steps: kfac rate 1 seed 0: ConfigError: no" in said
    assert (tmp_path / "toy.png").stat().st_size > 1000
