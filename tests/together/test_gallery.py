"""docs/gallery: every picture is drawn by its command, for a few steps; the page shows what is there."""

import re

import pytest

from tests.house.test_links import broken
from tests.support.forked import ROOT, module

GALLERY = ROOT / "docs" / "gallery"
PAGE = GALLERY / "README.md"
#: What makes a picture's trainings short, and what it prints then.
FEW = {
    "byte_lm": (["--steps=6", "--points=2"], r"AdamW \+ K-FAC +[\d.]+ at the end"),
    "image_classifier": (["--steps=20", "--every=10"], r"AdamW \+ SOAP +[\d.]+ at the end"),
    "autoencoder": (["--steps=20", "--every=2"], r"AdamW \+ K-FAC +[\d.]+ at the end"),
    "molecules": (["--steps=20", "--every=1"], r"AdamW \+ K-FAC +[\d.]+ at the end"),
    "forecasting": (["--steps=32"], r"as today: 4\.409"),
    "laplace": (["--epochs=20"], r"Laplace, last layer: 0\.\d+ of the patients"),
    "saddle": (["--steps=60"], r"SaddleEscape moved [1-9]\d* times"),
    "spectrum": (["--steps=3", "--lanczos=6", "--probes=2"], r"after 3 steps of AdamW: eigenvalues of \d+ parameters"),
    "resume": (["--steps=24", "--stop=12"], r"with the curvature: largest difference of a loss 0; weights the same"),
    "pinn": (["--share=0.025"], r"Levenberg-Marquardt +[\d.]+ at the end"),
    "pinn_burgers": (["--equation=burgers", "--share=0.01"], r"Levenberg-Marquardt +[\d.]+ at the end"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_picture_is_drawn(name, tmp_path):
    few, said = FEW[name]
    picture = tmp_path / "picture.png"
    done = module(tmp_path, f"examples.gallery.{name.removesuffix('_burgers')}", *few, f"--out={picture}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(said, done.stdout), done.stdout[-2000:]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_every_picture_and_its_command():
    text = PAGE.read_text()
    assert broken(PAGE, text) == []
    shown = re.findall(r"!\[[^\]]+\]\((\w+)\.png\)", text)
    assert sorted(shown) == sorted(FEW) == sorted(path.stem for path in GALLERY.glob("*.png"))
    commands = re.findall(r"python -m examples\.gallery\.(\w+)(?: --equation (\w+))?", text)
    assert sorted(f"{name}_{more}" if more else name for name, more in commands) == sorted(FEW)
    drawn = re.search(r"^FIGURES \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert sorted(drawn.split()) == sorted(FEW)


def test_pictures_are_small():
    assert {path.name: path.stat().st_size for path in GALLERY.glob("*.png") if path.stat().st_size > 80_000} == {}
