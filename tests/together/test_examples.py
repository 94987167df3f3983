"""The examples run as a user would run them."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.forked import ROOT, module


@pytest.fixture
def quickly(tmp_path_factory):
    """Gives what a module prints, without a new Python."""

    def give(name, *arguments):
        done = module(tmp_path_factory.mktemp("printed"), name, *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return give


def run(*arguments, timeout=300, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def found(pattern, text):
    return re.search(pattern, text)[1]


@pytest.mark.slow
def test_demo_prints_the_table_and_writes_the_plot(quickly, tmp_path):
    out = quickly("examples.demo", "--steps", "20", "--out", str(tmp_path / "curves.png"))
    for word in ("AdamW + SOAP", "AdamW + Muon", "curves.png"):
        assert word in out
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_benchmarks_write_lines(quickly, tmp_path):
    out = tmp_path / "lines.jsonl"
    grid = ["--method", "adamw", "soap", "--lrs", "3e-3", "--seeds", "0", "--steps", "20"]
    quickly("benchmarks.training.grid", "--problem", "autoencoder", *grid, "--out", str(out))
    assert len(out.read_text().splitlines()) == 2
    assert "soap" in quickly("benchmarks.training.table", str(out))
    few = ["--sides", "4", "--counts", "3", "--repeats", "1"]
    assert "schulz" in quickly("benchmarks.steps.solves", *few, "--out", str(out))
    assert len(out.read_text().splitlines()) == 6


@pytest.mark.slow
def test_image_classifier_reaches_its_accuracy_in_the_rotated_basis(quickly, tmp_path):
    out = quickly("examples.image_classifier", "--method", "soap", "--out", str(tmp_path))
    assert float(found(r"validation ([\d.]+)", out)) > 0.96
    assert int(found(r"at the last one (\d+) blocks rotated", out)) == 4
    assert (tmp_path / "soap.ckpt").stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "loss", "did"),
    [
        (["--model.base", "sgd", "--model.lr", "0.01"], 1.5, "8 preconditioned"),
        (["--trainer.callbacks", "null"], 2.0, ""),
    ],
    ids=["sgd", "alone"],
)
def test_autoencoder_from_yaml_with_and_without_the_callback(quickly, arguments, loss, did, tmp_path):
    config = ["--config", "configs/kfac_autoencoder.yaml", "--trainer.enable_progress_bar", "false"]
    root = ["--trainer.default_root_dir", str(tmp_path)]
    out = quickly("examples.autoencoder", "fit", *config, *root, *arguments)
    assert loss / 4 < float(found(r"squared error per image ([\d.]+)", out)) < loss
    assert did in out


@pytest.mark.slow
def test_gan_has_one_engine_an_optimizer(quickly):
    out = quickly("examples.gan", "--method", "soap", "--epochs", "10")
    for player, turned in {"discriminator": 2, "generator": 3}.items():
        assert f"280 steps, {turned} blocks rotated, 0 bent" in found(rf"{player}: (.*)", out)
    # The discriminator beats a guess (log 2), and the generator is not beaten outright.
    assert 0.05 < float(found(r"discriminator: loss ([\d.]+)", out)) < 0.69
    assert float(found(r"generator: loss ([\d.]+)", out)) < 3


@pytest.mark.slow
def test_ddp_shares_the_solves_and_ends_where_one_process_does(quickly):
    two = quickly("examples.ddp", "--devices", "2", "--steps", "40")
    one = quickly("examples.ddp", "--devices", "1", "--steps", "40")
    solved, total, megabytes = zip(*re.findall(r"rank \d: (\d+) of (\d+) solves, ([\d.]+) MB", two), strict=True)
    assert len(solved) == 2
    assert min(map(int, solved)) > 0
    assert sum(map(int, solved)) == int(total[0]) == int(found(r"rank 0: (\d+) of", one))
    assert min(map(float, megabytes)) > 1
    for out in (two, one):
        assert "15 blocks rotated" in out
    losses = [float(found(r"validation loss ([\d.]+)", out)) for out in (two, one)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.slow
def test_laplace_is_less_sure_than_the_noise_alone_and_right(quickly):
    out = quickly("examples.laplace")
    for line in out.splitlines()[-2:]:
        _, prior, alone, laplace, inside, more = map(float, line.split())
        assert 1 < prior < 100
        assert laplace < alone
        assert inside < more <= 0.95
