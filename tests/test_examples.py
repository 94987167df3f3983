"""The examples run as a user would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments, timeout=300):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_demo_prints_the_table_and_writes_the_plot(tmp_path):
    out = run("-m", "examples.demo", "--steps", "20", "--out", str(tmp_path / "curves.png"))
    for word in ("AdamW + SOAP", "AdamW + Muon", "curves.png"):
        assert word in out
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_benchmarks_write_lines(tmp_path):
    out = tmp_path / "lines.jsonl"
    grid = ["--method", "adamw", "soap", "--lrs", "3e-3", "--seeds", "0", "--steps", "20"]
    run("-m", "benchmarks.train", "--problem", "autoencoder", *grid, "--out", str(out))
    assert len(out.read_text().splitlines()) == 2
    assert "soap" in run("-m", "benchmarks.table", str(out))
