"""Writes docs/licences.md from the metadata of what is installed. `python -m tests.support.licences`."""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).parents[2] / "docs" / "licences.md"
EXTRAS = ("cli", "plots", "progress", "report")  # what the image installs, and what reports need
HEAD = f"""# Licences of the dependencies

This page lists what `lightning-so[{",".join(EXTRAS)}]` brings at run time on Linux, in the versions of
`constraints.txt`, with the licence that each package's own metadata states. Written by `make licences`. CUDA builds of
torch bring NVIDIA's libraries as well, under NVIDIA's own terms: they are not listed.

| package | version | licence | why it is here |
|---|---|---|---|
"""
OURS = "lightning-so"
FAMILY = "License :: OSI Approved :: "


def requirements(name: str, extras: set[str]) -> list[Requirement]:
    """What a package with these extras requires on this platform."""
    if name == OURS:
        # As the project says now: an editable install keeps what it said when it was made.
        project = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text())["project"]
        more = [line for extra in sorted(extras) for line in project["optional-dependencies"][extra]]
        return [Requirement(line) for line in (*project["dependencies"], *more)]
    found = [Requirement(line) for line in distribution(name).requires or []]
    wanted = [{"extra": extra} for extra in ("", *extras)]
    return [r for r in found if r.marker is None or any(r.marker.evaluate(environment) for environment in wanted)]


def closure() -> dict[str, str]:
    """Every package that is needed, with the first that needs it."""
    needed, waiting = dict[str, str](), [(OURS, frozenset(EXTRAS))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop(0)
        for requirement in requirements(name, set(extras)):
            found = canonicalize_name(requirement.name)
            needed.setdefault(found, name)
            if (step := (found, frozenset(requirement.extras))) not in seen:
                seen.add(step)
                waiting.append(step)
    return needed


def licence(name: str) -> str:
    """As the metadata state it: the expression, else the classifiers, else the first line of the old field."""
    metadata = distribution(name).metadata
    if expression := metadata.get("License-Expression"):
        return expression
    if families := [c.removeprefix(FAMILY) for c in metadata.get_all("Classifier") or [] if c.startswith(FAMILY)]:
        return ", ".join(families)
    return (metadata.get("License") or "not stated").splitlines()[0]


def rows() -> list[str]:
    """A line for each package.

    Raises:
        SystemExit: If a package is needed and not installed.
    """
    try:
        return [
            f"| {name} | {distribution(name).version.split('+')[0]} | {licence(name)} | {by} |"
            for name, by in sorted(closure().items())
        ]
    except PackageNotFoundError as error:
        raise SystemExit(
            f"{error.name} is needed and not installed: run this in the environment that make sets up"
        ) from None


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(rows()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
