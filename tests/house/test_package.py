"""What is published: the wheel and the source archive, built as a release is, and the demo on the wheel alone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ["build==1.6.1", "hatchling", "twine==7.0.0"]
DEMO = """
import runpy, sys
import lightning_so
runpy.run_module("examples.demo", run_name="__main__", alter_sys=True)
ours = [module for name, module in sys.modules.items() if name.startswith("lightning_so")]
print("FROM", *sorted({str(module.__file__) for module in ours}))
"""


def run(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel and a source archive, of the files that git knows or would take, and the tools' folder."""
    folder = tmp_path_factory.mktemp("package")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone: which files belong to the project is not known")
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--target",
        folder / "tools",
        "-c",
        "constraints.txt",
        *TOOLS,
        cwd=ROOT,
    )
    options = ["--no-isolation", "--outdir", folder / "dist"]
    run(sys.executable, "-m", "build", *options, cwd=folder / "source", PYTHONPATH=str(folder / "tools"))
    return folder


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_types_and_its_licence_alone(built):
    names = zipfile.ZipFile(only(built / "dist", "*.whl")).namelist()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "lightning_so").rglob("*.py")}
    others = {"py.typed", *(f"report/page.{kind}" for kind in ("html", "css", "js"))}
    assert {name for name in names if ".dist-info/" not in name} == sources | {
        f"lightning_so/{name}" for name in others
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_source_archive_holds_what_the_makefile_needs(built):
    names = {name.split("/", 1)[1] for name in tarfile.open(only(built / "dist", "*.tar.gz")).getnames() if "/" in name}
    for name in ("LICENSE", "README.md", "Makefile", "constraints.txt", "docker/Dockerfile", "tests/conftest.py",
                 "CONTRIBUTING.md", "CITATION.cff", ".ci/run", ".github/workflows/ci.yml"):  # fmt: skip
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]


@pytest.mark.slow
def test_the_index_takes_the_metadata(built):
    tools = {"PYTHONPATH": str(built / "tools")}
    out = run(sys.executable, "-m", "twine", "check", "--strict", *(built / "dist").iterdir(), cwd=built, **tools)
    assert out.count("PASSED") == 2


@pytest.mark.slow
def test_the_demo_runs_on_the_wheel_alone(built, tmp_path):
    # Dependencies are seen through a path file; those of the folder that it names are not read, so that an editable
    # install there is not seen.
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        only(built / "dist", "*.whl"),
        cwd=tmp_path,
    )
    site = only(environment, "lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # Apart from the rest of the archive, which holds the package as well.
    with tarfile.open(only(built / "dist", "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copytree(only(tmp_path, "lightning_so-*") / "examples", tmp_path / "apart" / "examples")
    out = run(python, "-c", DEMO, "--steps", "10", cwd=tmp_path / "apart", PYTHONPATH="", OMP_NUM_THREADS="1")
    assert (tmp_path / "apart" / "demo_out" / "curves.png").exists()
    imported = out.splitlines()[-1].split()[1:]
    assert len(imported) > 50
    assert all(file.startswith(str(site)) for file in imported)
    assert "resume-check" in run(environment / "bin" / "lightning-so", "--help", cwd=tmp_path, PYTHONPATH="")
