"""What pyproject.toml declares can be tested: every dependency has an oldest version, and `make floors` takes it."""

import tomllib

import pytest

from tests.support.floors import ROOT, SAMPLE, floors

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_has_a_floor():
    found = floors(PROJECT)
    assert {"torch", "pytorch-lightning", "lightning", "jsonargparse", "matplotlib", "rich", "submitit"} <= set(found)
    assert all("==" in each or name == "setuptools" for name, each in found.items())
    # Before 2.6 a checkpoint of which the weights alone were to be read ran code that was planted in it.
    assert [int(part) for part in found["pytorch-lightning"].partition("==")[2].split(".")[:2]] >= [2, 6]
    assert found["lightning"].partition("==")[2] == found["pytorch-lightning"].partition("==")[2]


def test_the_oldest_python_is_the_one_that_is_declared_everywhere():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert whole["pyright"]["pythonVersion"] == oldest
    assert whole["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    pythons = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if "Python :: 3." in each]
    assert pythons[0] == oldest


def test_what_has_no_floor_is_named():
    with pytest.raises(ValueError, match=r"torch in pyproject\.toml has no floor"):
        floors({**PROJECT, "dependencies": ["torch"]})


def test_the_sample_is_there():
    assert all((ROOT / each).exists() for each in SAMPLE)
