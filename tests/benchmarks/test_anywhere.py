"""The suite's machinery: rates are tuned beyond edges, runs go on where they were broken off, shares are right."""

import json
import math
from dataclasses import replace

import pytest

from benchmarks.anywhere import cell, problems, run, shares, table, tune
from benchmarks.anywhere.cell import Cell
from benchmarks.shared import lines
from benchmarks.shared.methods import METHODS


@pytest.fixture
def short(monkeypatch):
    """The smallest problem alone, for four steps, and rates of it."""
    made = replace(problems.load("poisson"), steps=4)
    monkeypatch.setitem(problems.PROBLEMS, "poisson", lambda: made)


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def called(module, monkeypatch, *args):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, args)])
    module.main()


# ---------------------------------------------------------------- rates


def test_rates_are_half_a_decade_apart():
    assert [tune.rate(at) for at in range(-7, 2)] == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0]


@pytest.mark.parametrize(
    ("losses", "then"),
    [
        ({}, -7),
        ({-7: 1.0, -6: 0.5, -5: 0.6}, -4),
        ({-7: 3, -6: 2, -5: 1, -4: 2, -3: None}, None),
        ({-7: 3, -6: 2, -5: 1, -4: 0.9, -3: 0.8}, -2),
        ({-7: 0.1, -6: 2, -5: 1, -4: 0.9, -3: 0.8}, -8),
        ({-8: 0.2, -7: 0.1, -6: 2, -5: 1, -4: 0.9, -3: 0.8}, None),
        ({at: float(-at) for at in range(-7, 8)}, None),
    ],
)
def test_rates_are_tried_beyond_the_edge_that_is_best(losses, then):
    assert tune.wanted(losses, tune.FIRST["adamw"]) == then


def test_what_diverged_is_not_best():
    assert tune.best({-7: 3.0, -6: None, -5: 4.0}) == -7


@pytest.mark.usefixtures("short")
def test_tuning_writes_a_line_an_optimizer_and_does_not_do_it_again(tmp_path, monkeypatch):
    out = tmp_path / "tuned.jsonl"
    called(tune, monkeypatch, "--problems", "poisson", "--methods", "adamw", "--out", out)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["rates"] == sorted(line["rates"])
    assert line["losses"][line["rates"].index(line["rate"])] == min(line["losses"])
    assert line["cpu_seconds"] > 0
    assert problems.tuned("poisson", "kfac", out) == line["rate"]
    called(tune, monkeypatch, "--problems", "poisson", "--methods", "adamw", "--out", out)
    assert len(out.read_text().splitlines()) == 1


def test_the_last_line_of_a_rate_counts_and_one_that_is_missing_is_named(tmp_path):
    lines = [{"problem": "poisson", "method": "adamw", "rate": rate} for rate in (1e-3, 3e-3)]
    path = written(tmp_path / "tuned.jsonl", lines)
    assert problems.tuned("poisson", "soap", path) == 3e-3
    with pytest.raises(KeyError, match=r"no rate of sgd on 'poisson': python -m benchmarks\.anywhere\.tune --problems"):
        problems.tuned("poisson", "kfac_sgd", path)


def test_methods_on_sgd_take_its_rate():
    bases = {name: problems.base(name) for name in METHODS}
    assert {name for name, base in bases.items() if base == "sgd"} == {"sgd", "kfac_sgd", "ekfac_sgd", "shampoo_sgd"}


# ---------------------------------------------------------------- runs


@pytest.mark.usefixtures("short")
def test_runs_that_a_file_has_are_skipped_and_those_that_failed_are_not(tmp_path, monkeypatch, capsys):
    lines = [{"problem": "poisson", "method": method, "rate": 1e-3} for method in ("adamw", "sgd")]
    rates, out = written(tmp_path / "tuned.jsonl", lines), tmp_path / "runs.jsonl"
    args = ["--problems", "poisson", "--methods", "adamw", "kfac_sgd", "--rates", 1, 3, "--seeds", 0, "--longer", 2]
    args += ["--rates-of", rates, "--out", out]
    called(run, monkeypatch, *args)
    assert "0 runs are in" in capsys.readouterr().out
    text = out.read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [(line["method"], line["rate"], line["steps"]) for line in found] == [
        ("adamw", 1e-3, 4),
        ("adamw", 1e-3, 8),
        ("kfac_sgd", 1e-3, 4),
        ("adamw", 3e-3, 4),
        ("kfac_sgd", 3e-3, 4),
    ]
    first = found[0]
    assert first["curve"]["steps"] == [0, 1, 2, 3, 4]
    assert first["final_loss"] == first["curve"]["losses"][-1] < first["curve"]["losses"][0]
    assert 0 < first["cpu_seconds"] == first["curve"]["seconds"][-1]
    called(run, monkeypatch, *args)
    assert "5 runs are in" in capsys.readouterr().out
    assert out.read_text() == text
    # A line that says that it failed is no run.
    with out.open("a") as file:
        print(json.dumps({**first, "failed": "once"}), file=file)
    called(run, monkeypatch, *args)
    assert "4 runs are in" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 7
    assert "failed" not in cell.read(out)[Cell("poisson", "adamw", 1e-3, 0)]


@pytest.mark.usefixtures("short")
def test_a_method_that_is_refused_is_written_down_and_the_others_go_on(monkeypatch):
    def refused(model, settings):
        raise ValueError("not on this one")

    monkeypatch.setitem(METHODS, "soap", refused)
    lines = list(cell.runs([Cell("poisson", method, 1e-3, 0) for method in ("soap", "adamw")], 1))
    assert lines[0]["failed"] == "ValueError: not on this one"
    assert lines[0]["final_loss"] is None
    assert math.isfinite(lines[1]["final_loss"])


def test_a_model_that_is_refused_by_name_is_no_cell(tmp_path, monkeypatch, capsys):
    (found,) = cell.runs([Cell("tanh_rnn", "kfac", 1e-3, 0)], 1)
    assert "works on none of the 6 parameters" in found["refused"]
    out = written(tmp_path / "runs.jsonl", [line("tanh_rnn", "adamw", 1.0)[1], found])
    assert cell.left([Cell("tanh_rnn", "kfac", 1e-3, 0)], out) == []
    assert not shares.grouped(cell.read(out)).at("tanh_rnn", "kfac")
    called(table, monkeypatch, out)
    assert "tanh_rnn kfac x1 seed 0: coverage is 0" in capsys.readouterr().out


def test_losses_keep_six_digits_and_become_null():
    assert [lines.rounded(loss) for loss in (1.23456789e-7, math.nan, math.inf)] == [1.23457e-7, None, None]


# ---------------------------------------------------------------- the table


def line(problem, method, final, seed=0, times=1.0, stretch=1.0, seconds=1.0):
    first = Cell(problem, method, 1e-3 * times, seed, times, stretch)
    return first, {**first._asdict(), "final_loss": final, "cpu_seconds": seconds}


def test_a_share_is_of_cells_and_compares_medians_at_the_same_rate():
    lines = [line("a", "adamw", loss, seed) for seed, loss in enumerate((1.0, 1.0, 1.0))]
    lines += [line("a", "soap", loss, seed) for seed, loss in enumerate((0.5, 1.005, 9.0))]
    lines += [line("a", "adamw", 2.0, times=3.0), line("a", "soap", 1.5, times=3.0)]
    lines += [line("b", "adamw", 1.0), line("b", "soap", 1.02)]
    lines += [line("b", "adamw", 0.9, times=3.0), line("b", "soap", 0.9, times=3.0)]
    runs = shares.grouped(dict(lines))
    found = shares.summary(runs, "soap")
    assert found.same == pytest.approx({("a", 1.0): 1.005, ("a", 3.0): 0.75, ("b", 1.0): 1.02, ("b", 3.0): 1.0})
    assert found.tuned == pytest.approx({("a", 1.0): 1.005, ("a", 3.0): 1.5, ("b", 1.0): 1.02, ("b", 3.0): 0.9})
    assert shares.share(runs, "soap", found.same) == 0.75
    assert shares.share(runs, "soap", found.tuned) == 0.5
    assert table.ends(found.same) == ("1.002", "1.02", "b x1")
    assert table.shares(runs).row_count == 1


def test_only_seeds_that_both_have_are_compared():
    lines = [line("a", "adamw", 1.0, 0), line("a", "adamw", 5.0, 1), line("a", "muon", 2.0, 0)]
    assert shares.summary(shares.grouped(dict(lines)), "muon").same == {("a", 1.0): 2.0}
    assert shares.summary(shares.grouped(dict(lines[1:])), "muon").same == {}


def test_what_a_bases_own_seeds_differ_by_is_equal():
    lines = [line("a", "adamw", loss, seed) for seed, loss in enumerate((0.9, 1.0, 1.1))]
    runs = shares.grouped(dict([*lines, line("a", "muon", 1.0)]))
    assert shares.allowed(runs, "a", "muon") == pytest.approx(1.1)
    assert shares.allowed(shares.grouped(dict(lines[:1])), "a", "muon") == 1.01


def test_a_run_that_diverged_is_infinitely_worse_unless_both_did():
    lines = [line("a", "adamw", 1.0), line("a", "muon", None), line("b", "adamw", None), line("b", "muon", None)]
    lines += [line("c", "adamw", None), line("c", "muon", 1.0)]
    found = shares.summary(shares.grouped(dict(lines)), "muon").same
    assert found == {("a", 1.0): math.inf, ("b", 1.0): 1.0, ("c", 1.0): 0.0}


def test_methods_on_sgd_are_compared_with_sgd_and_sgd_with_adamw():
    lines = [line("a", "adamw", 1.0), line("a", "sgd", 4.0), line("a", "kfac_sgd", 2.0), line("a", "kfac", 2.0)]
    runs = shares.grouped(dict(lines))
    ratios = {method: shares.summary(runs, method).same["a", 1.0] for method in ("sgd", "kfac_sgd", "kfac")}
    assert ratios == {"sgd": 4.0, "kfac_sgd": 0.5, "kfac": 2.0}


@pytest.mark.parametrize(
    ("seconds", "theirs"),
    [(0.5, 1.0), (1.0, 1.0), (2.0, 0.5), (math.sqrt(8), 0.5 * 0.5**0.5), (4.0, 0.25), (9.0, 0.25)],
)
def test_at_equal_seconds_the_base_had_as_long(seconds, theirs):
    lines = [line("a", "adamw", 1.0, seconds=1.0), line("a", "adamw", 0.5, stretch=2.0, seconds=2.0)]
    lines += [line("a", "adamw", 0.25, stretch=3.0, seconds=4.0), line("a", "soap", 0.4, seconds=seconds)]
    found = shares.summary(shares.grouped(dict(lines)), "soap").timed
    assert found == pytest.approx({("a", 1.0): 0.4 / theirs})


def test_there_is_no_figure_at_equal_seconds_where_the_base_was_not_run_for_longer():
    runs = shares.grouped(dict([line("a", "adamw", 1.0), line("a", "soap", 0.4, seconds=2.0)]))
    assert shares.summary(runs, "soap").timed == {}
    assert table.percent(shares.share(runs, "soap", {})) == "-"


def test_the_table_is_printed_with_what_failed(tmp_path, monkeypatch, capsys):
    lines = [line("a", "adamw", 1.0), line("a", "soap", 0.5), line("a", "kfac", None)]
    lines[-1][1].update(failed="ConfigError: no", cpu_seconds=0)
    del lines[-1][1]["cpu_seconds"]
    called(table, monkeypatch, written(tmp_path / "runs.jsonl", [one for _, one in lines]))
    said = capsys.readouterr().out
    assert "a kfac x1 seed 0: ConfigError: no" in said
    assert "100 %" in said
    assert "inf" in said
