"""The arrows between the rooms of the package: who may import whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "lightning_so"
ROOT = Path(__file__).parents[2] / PACKAGE
MAX_LINES = 300
STILL_LONG = {"engine.py", "second_order.py"}  # Shrinks with the engine.

BELOW = {"core", "layers", "losses", "linalg", "methods", "actions", "comm", "monitor", "contract", "probe"}
ALLOWED = {
    "linalg": set(),
    "comm": set(),
    "layers": {"linalg"},
    "losses": {"linalg"},
    "actions": {"linalg"},
    "probe": {"comm", "linalg", "losses"},
    "contract": {"actions", "layers", "linalg"},
    "core": {"contract", "probe", "actions", "linalg", "layers", "losses", "comm"},
    "methods": {"contract", "linalg", "layers", "actions"},
    "monitor": {"probe", "linalg"},
    "strategies": {"comm"},
    "callbacks": BELOW | {"strategies"},
    "cli": BELOW | {"strategies", "callbacks"},
}
FOR_ALL = f"{PACKAGE}.errors"
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"}
LIGHTNING_ROOMS = {"callbacks", "strategies", "cli"}
DISTRIBUTED = "torch.distributed"
DISTRIBUTED_ROOMS = {"comm"}


def inside(name: str, module: str) -> bool:
    """Whether `name` is the module, or something in it."""
    return name == module or name.startswith(module + ".")


def parts_of(path: str) -> list[str]:
    """Dotted parts of a file of the package, "lightning_so/core/block.py" -> ["lightning_so", "core", "block"]."""
    return list(Path(path).with_suffix("").parts)


def imported(parts: list[str], tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all that a module imports or reaches as an attribute of torch."""
    torches = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torches |= {alias.asname for alias in node.names if alias.name == "torch" and alias.asname}
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package that holds the module; an __init__ has its own name as a last part too.
            origin = parts[: len(parts) - node.level] if node.level else []
            origin = [*origin, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*origin, alias.name])) for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in torches:
            yield node.lineno, f"torch.{node.attr}"


def complaint(parts: list[str], name: str) -> str | None:
    """What is wrong with the module `parts` importing `name`; None if it may."""
    room = parts[1]
    if name.split(".")[0] in LIGHTNING and room not in LIGHTNING_ROOMS:
        return f"{room} may not import Lightning"
    if inside(name, DISTRIBUTED) and room not in DISTRIBUTED_ROOMS:
        return f"{room} may not use torch.distributed"
    if not inside(name, PACKAGE) or inside(name, FOR_ALL):
        return None
    target = name.split(".")[1:]
    if not target or target[0] not in ALLOWED:
        return f"{room} may not import the package's own front door"
    if target[0] != room:
        return None if target[0] in ALLOWED[room] else f"{room} may not import {target[0]}"
    if room == "methods" and parts[2] != "__init__" and target[1:2] != parts[2:3]:
        return "a method may not import its sibling"
    return None


def violations(path: str, source: str) -> list[str]:
    """Every arrow of one file that points the wrong way.

    Args:
        path: The file, relative to the repository's root.
        source: Its text.

    Returns:
        One line of text for each; nothing for the package's front door, which may import anything.
    """
    parts = parts_of(path)
    if parts == [PACKAGE, "__init__"] or parts[1:] == ["errors"]:
        return []
    if parts[1] not in ALLOWED:
        return [f"{path}: {parts[1]} is not a room"]
    found = ((line, name, complaint(parts, name)) for line, name in imported(parts, ast.parse(source)))
    return [f"{path}:{line}: {why} ({name})" for line, name, why in found if why]


FILES = sorted(ROOT.rglob("*.py"))
assert FILES, f"no source in {ROOT}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_file(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert violations(file.relative_to(ROOT.parent).as_posix(), source) == []
    assert len(source.splitlines()) <= MAX_LINES or file.name in STILL_LONG


@pytest.mark.parametrize(
    ("file", "source"),
    [
        # Rooms.
        ("linalg/a.py", "import lightning_so.layers.fold"),
        ("linalg/a.py", "from lightning_so import core, errors"),
        ("comm/a.py", "from lightning_so.linalg import polar"),
        ("layers/a.py", "from lightning_so.actions.bend import bend"),
        ("actions/a.py", "from lightning_so import core"),
        ("core/a.py", "from lightning_so.methods.soap import SOAP"),
        ("core/a.py", "def f():\n    from ..methods import soap"),
        ("core/a.py", "if TYPE_CHECKING:\n    from lightning_so.methods.soap import SOAP"),
        ("core/__init__.py", "from ..methods import soap"),
        ("core/deep/a.py", "from ...monitor import log"),
        ("methods/a.py", "from lightning_so.comm import mesh"),
        ("monitor/a.py", "from lightning_so.methods import soap"),
        ("monitor.py", "from .methods import soap"),
        ("strategies/a.py", "from lightning_so.callbacks.second_order import SecondOrder"),
        ("callbacks/a.py", "from lightning_so.cli import main"),
        # Nobody inside comes in by the front door.
        ("cli.py", "import lightning_so"),
        ("callbacks/a.py", "from lightning_so import SOAP"),
        ("callbacks/a.py", "from .. import SOAP"),
        # Siblings.
        ("methods/muon.py", "from lightning_so.methods.soap import SOAP"),
        ("methods/muon.py", "from lightning_so.methods import soap"),
        ("methods/muon.py", "from .soap import SOAP"),
        ("methods/muon.py", "from . import soap"),
        # Lightning.
        ("core/a.py", "import pytorch_lightning as pl"),
        ("core/a.py", "from lightning.pytorch import Trainer"),
        ("monitor/a.py", "from lightning_utilities.core.rank_zero import rank_zero_only"),
        # torch.distributed.
        ("core/a.py", "import torch.distributed"),
        ("core/a.py", "import torch.distributed as dist"),
        ("callbacks/a.py", "from torch import distributed"),
        ("strategies/a.py", "from torch.distributed.tensor import DTensor"),
        ("core/a.py", "import torch\ntorch.distributed.barrier()"),
        ("core/a.py", "import torch as t\nt.distributed.barrier()"),
        # A new room has to be drawn in first.
        ("attic/a.py", ""),
    ],
)
def test_checker_catches(file: str, source: str) -> None:
    assert len(violations(f"{PACKAGE}/{file}", source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "import pytorch_lightning, torch.distributed, lightning_so.methods.soap"),
        ("linalg/a.py", "from lightning_so.errors import ConfigError"),
        ("linalg/a.py", "from .. import errors"),
        ("linalg/a.py", "from . import result\nfrom .result import Result\nimport torch"),
        (
            "core/a.py",
            "from lightning_so.actions import bend\nfrom ..linalg.polar import polar\nfrom . import block",
        ),
        ("comm/a.py", "import torch.distributed as dist\nfrom torch import distributed"),
        ("core/a.py", "import torch\ntorch.linalg.eigh\nself.distributed\ntorchvision.distributed"),
        ("core/a.py", "import lightning_soap\nimport lightnings"),
        ("methods/__init__.py", "from .soap import SOAP\nfrom lightning_so.methods.muon import Muon"),
        ("methods/soap.py", "from lightning_so.contract.method import Action"),
        ("callbacks/a.py", "import lightning.pytorch\nfrom lightning_so.core.engine import Engine"),
        ("cli.py", "from lightning_so.callbacks.second_order import SecondOrder"),
    ],
)
def test_checker_lets_pass(file: str, source: str) -> None:
    assert violations(f"{PACKAGE}/{file}", source) == []
