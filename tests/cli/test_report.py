"""The command `lightning-so report`: what it writes, what it refuses, and that nothing is written over."""

import sys

import pytest

from lightning_so.cli.__main__ import main
from lightning_so.report.page import GENERATOR
from tests.support import recorded


@pytest.fixture
def run(tmp_path):
    return recorded.put(tmp_path / "runs" / "a", recorded.healthy(2, 200))


def test_a_report_is_written_beside_its_recording(run, capsys):
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert GENERATOR in page
    assert "report.html (" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == ["recording", "report.html"]


@pytest.mark.slow
def test_findings_are_printed_too(tmp_path, capsys):
    recordings = recorded.healthy(1, 400)
    recorded.units(recordings, "dead", "blocks.1.mlp.0", 1.0)
    assert main(["report", str(recorded.put(tmp_path, recordings)), "--out", str(tmp_path / "page.html")]) == 0
    assert "blocks.1.mlp.0: 100% of the units" in capsys.readouterr().out


@pytest.mark.slow
def test_two_runs_stand_side_by_side(run, tmp_path):
    other = recorded.put(tmp_path / "others" / "a", recorded.healthy(1, 100, 5, method=None))
    assert main(["report", str(run), "--against", str(other), "--out", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert "<h1>runs/a against others/a</h1>" in page


def refusal(capsys, *arguments) -> str:
    assert main(["report", *map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lightning-so report: ")
    assert said.err.count("\n") == 1
    return said.err


def test_bad_input_is_one_line_status_2_and_nothing_written(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "has no recording" in refusal(capsys, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    assert "is not there" in refusal(capsys, run, "--against", tmp_path / "gone")
    path = run / "recording" / "rank-0001.json.gz"
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated" in refusal(capsys, run)
    path.write_bytes(b"something else")
    assert "is no recording" in refusal(capsys, run)
    assert not (run / "report.html").exists()


OTHERS = {
    "last": {"step": 3},
    "whole": {"step": ["a"], "loss": [{}]},
    "layers": {"names": 1, "step": [1]},
    "units": {"step": [1], "names": ["a"], "dead": 3},
    "spans": [[1]],
    "events": "x",
    "spectra": [3],
    "facts": {"settings": 3},
}


@pytest.mark.parametrize(("part", "value"), OTHERS.items())
def test_parts_of_another_kind_are_one_line_too(part, value, tmp_path, capsys):
    (recording,) = recorded.healthy(1, 60)
    run = recorded.put(tmp_path, [{**recording, part: value}])
    assert "not those of its version" in refusal(capsys, run)
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_no_file_is_written_over_but_a_report_where_that_is_said(run, tmp_path, capsys):
    assert main(["report", str(run)]) == 0
    first = (run / "report.html").read_bytes()
    capsys.readouterr()
    assert "--replace" in refusal(capsys, run)
    assert (run / "report.html").read_bytes() == first
    (run / "report.html").write_bytes(first.replace(b"Verdict", b"verdict"))
    assert main(["report", str(run), "--replace"]) == 0
    assert (run / "report.html").read_bytes() == first
    capsys.readouterr()
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my notes</p>")
    assert "is no report" in refusal(capsys, run, "--out", mine, "--replace")
    assert mine.read_text() == "<p>my notes</p>"
    assert "is no report" in refusal(capsys, run, "--out", tmp_path, "--replace")
    assert "cannot be written" in refusal(capsys, run, "--out", tmp_path / "gone" / "page.html")


def test_what_draws_is_had_from_a_clone(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert "pip install '.[report]' in a clone of lightning_so" in refusal(capsys, run)


def test_a_run_must_be_named(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["report"])
    assert caught.value.code == 2
