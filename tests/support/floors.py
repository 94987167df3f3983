"""A sample of the tests on the oldest versions that pyproject.toml names: python -m tests.support.floors FOLDER.

A floor that is not tested is not declared. The environment is made in the folder, anew where pyproject.toml has
changed: the oldest Python, every declared package in its oldest version, and the others as constraints.txt has them.
torch comes from wherever pip is set up to take it, or from TORCH_INDEX, as in docker/Dockerfile.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What users of these extras get; the others bring nothing that our code imports.
EXTRAS = ("cli", "plots", "progress", "slurm")
#: What the tests themselves need.
TOOLS = ("pytest", "hypothesis", "numpy", "scikit-learn")
#: Every strategy of one machine, both import names, files, resuming, and the command line.
SAMPLE = (
    "tests/callbacks", "tests/cli", "tests/core", "tests/strategies", "tests/together/test_ddp.py",
    "tests/together/test_resume.py",
)  # fmt: skip


def floors(project: dict) -> dict[str, str]:
    """Every declared package in its oldest version, `{"torch": "torch==2.13"}`.

    Args:
        project: The table `project` of pyproject.toml.

    Raises:
        ValueError: If one has no floor.
    """
    optional = project["optional-dependencies"]
    declared = [*project["dependencies"], *(each for extra in EXTRAS for each in optional[extra])]
    # Lightning under its other name: dev has it.
    declared += [each for each in optional["dev"] if each.startswith("lightning>")]
    found = {}
    for each in declared:
        name = re.match(r"[\w-]+", each)[0]
        if name == project["name"]:
            continue
        if "<" in each and ">=" not in each:
            # A ceiling alone: what is newest under it is what everybody has.
            found[name] = each
        elif low := re.fullmatch(r"([\w-]+(?:\[\w+\])?)>=([\w.]+)", each):
            found[name] = f"{low[1]}=={low[2]}"
        else:
            raise ValueError(f"{each} in pyproject.toml has no floor: write NAME>=VERSION")
    return found


def made(folder: Path, project: dict) -> Path:
    """The environment; its Python."""
    python, wanted = folder / "bin" / "python", floors(project)
    ready = folder / "floors.txt"
    version = re.search(r">=\s*([\d.]+)", project["requires-python"])[1]
    said = "\n".join([f"python {version}", *wanted.values(), *TOOLS])
    if ready.exists() and ready.read_text() == said:
        return python
    oldest = shutil.which(f"python{version}")
    if oldest is None:
        raise SystemExit(f"python{version}, the oldest that pyproject.toml names, is not on the PATH")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([oldest, "-m", "venv", str(folder)], check=True)
    rest = [line for line in (ROOT / "constraints.txt").read_text().splitlines()
            if re.match(r"[\w.-]*", line)[0].lower() not in wanted]  # fmt: skip
    (folder / "constraints.txt").write_text("\n".join(rest))
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(folder / "constraints.txt")]
    index = ["--index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    # By itself first, so that a local CPU build is taken where pip is set up with one.
    subprocess.run([*pip, *index, wanted["torch"]], check=True)
    subprocess.run([*pip, *wanted.values(), *TOOLS], check=True)
    # Its metadata alone are read from here.
    subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
    ready.write_text(said)
    return python


def main(folder: Path) -> int:
    """Make the environment, say what is in it, run the sample."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    python = made(folder.absolute(), project)
    line = "import sys, importlib.metadata as m; print(sys.version.split()[0], *(f'{n} {m.version(n)}' for n in %r))"
    line %= ([*floors(project), "numpy"],)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / '.ci' / 'start'}{os.pathsep}{ROOT}"}
    subprocess.run([str(python), "-c", line], check=True, env=environment)
    tests = [str(python), "-m", "pytest", "-q", "-m", "not slow", *SAMPLE]
    return subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
