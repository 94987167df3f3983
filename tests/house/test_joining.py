"""What those who join a project look for: forms, a workflow that runs what this machine runs, one version."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import lightning_so
from lightning_so.cli.__main__ import main

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "CITATION.cff", *FORMS]
FIELDS = {"textarea", "dropdown", "markdown", "input", "checkboxes"}


def test_there_is_one_version(capsys):
    assert lightning_so.__version__ == PROJECT["version"]
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert PROJECT["version"] in capsys.readouterr().out


@pytest.mark.slow
def test_the_package_is_the_command():
    said = subprocess.run([sys.executable, "-m", "lightning_so", "--version"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, f"lightning-so {PROJECT['version']}\n")


def test_the_citation_is_of_this_version_and_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], cited["version"], cited["license"]) == (
        "1.2.0", PROJECT["version"], PROJECT["license"])  # fmt: skip
    assert cited["message"]
    assert cited["title"]
    assert cited["authors"]


def test_the_workflow_runs_what_is_run_here():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    (steps,) = [job["steps"] for job in jobs.values()]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["make lint", "make test"]
    assert commands[-1] in (ROOT / ".ci" / "run").read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`make ([a-z-]+)`", "".join(page.read_text() for page in PAGES))
    assert {"lint", "test", *named} <= set(targets)


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.stem)
def test_a_form_is_one(form):
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    asked = [field for field in content["body"] if field["type"] != "markdown"]
    assert all(field["type"] in FIELDS and field["attributes"]["label"] for field in asked)
    assert len({field["id"] for field in asked}) == len(asked)
    assert any(field.get("validations", {}).get("required") for field in asked)


def test_there_are_three_forms():
    assert {form.stem for form in FORMS} == {"bug", "worse", "question", "config"}
