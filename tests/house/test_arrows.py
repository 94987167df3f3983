"""No arrow points upward, none make a circle, and files stay short."""

from pathlib import Path

import pytest

from tests.support.arrows import FLOOR, PACKAGE, ROOT, arrows, attributes, circle, takers, violations

MAX_LINES = 300
#: Of an engine.
MAX_ATTRIBUTES = 12
FILES = sorted(ROOT.rglob("*.py"))
assert FILES, f"no source in {ROOT}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_file(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert violations(file.relative_to(ROOT.parent).as_posix(), source) == []
    assert len(source.splitlines()) <= MAX_LINES


def test_no_circle() -> None:
    sources = {file.relative_to(ROOT.parent).as_posix(): file.read_text(encoding="utf-8") for file in FILES}
    assert circle(arrows(sources)) == []


def test_an_engine_is_small_and_is_handed_around_above_it_alone() -> None:
    engine = (ROOT / "core" / "engine.py").read_text(encoding="utf-8")
    assert 0 < len(attributes(engine, "Engine")) <= MAX_ATTRIBUTES
    found = [taker for file in FILES for taker in takers(file.relative_to(ROOT.parent).as_posix(), file.read_text())]
    assert found == []


def test_every_room_of_core_is_on_a_floor() -> None:
    there = {path.stem for path in (ROOT / "core").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize(
    "sources",
    [
        {"a.py": "from lightning_so.b import f", "b.py": "from lightning_so import a"},
        {"a.py": "def f():\n    from .b import g", "b.py": "if TYPE_CHECKING:\n    from lightning_so.a import f"},
        {"a/__init__.py": "from lightning_so.a.b import f", "a/b.py": "from lightning_so.a import g"},
        {"a.py": "import lightning_so.b", "b.py": "from .c import f", "c.py": "from .a import g"},
    ],
)
def test_circles_are_found(sources: dict[str, str]) -> None:
    assert circle(arrows({f"{PACKAGE}/{path}": text for path, text in sources.items()}))


def test_what_only_looks_like_a_circle_is_none() -> None:
    sources = {
        "a/__init__.py": "from .b import f",
        "a/b.py": "from ..c import g",
        "c.py": "import torch",
        "d.py": "from . import a, c",
    }
    assert not circle(arrows({f"{PACKAGE}/{path}": text for path, text in sources.items()}))


@pytest.mark.parametrize(
    "source",
    ["def f(engine): ...", "class A:\n    def f(self, *, e: 'Engine'): ...", "def f(e: core.engine.Engine): ..."],
)
def test_functions_that_take_an_engine_are_found(source: str) -> None:
    source = source.replace("'", "")
    assert takers(f"{PACKAGE}/core/step/act.py", source)
    assert not takers(f"{PACKAGE}/core/attach/hooks.py", source)


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
        ("methods/a.py", "from lightning_so.core.engine import Engine"),
        ("strategies/a.py", "from lightning_so.core.host import Host"),
        # Floors of core.
        ("core/stacks/a.py", "from lightning_so.core.plan import route"),
        ("core/step/a.py", "from lightning_so.core.solves.basis import cool"),
        ("core/statistics/a.py", "if TYPE_CHECKING:\n    from lightning_so.core.engine import Engine"),
        ("core/engine.py", "def f():\n    from .attach import hooks"),
        ("core/host.py", "from . import report"),
        ("core/attic/a.py", "from lightning_so.core.host import Host"),
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
            "core/step/a.py",
            "from lightning_so.actions import bend\nfrom ...linalg.polar import polar\nfrom . import guard",
        ),
        ("comm/a.py", "import torch.distributed as dist\nfrom torch import distributed"),
        ("core/a.py", "import torch\ntorch.linalg.eigh\nself.distributed\ntorchvision.distributed"),
        ("core/a.py", "import lightning_soap\nimport lightnings"),
        ("methods/__init__.py", "from .soap import SOAP\nfrom lightning_so.methods.muon import Muon"),
        ("methods/soap.py", "from lightning_so.contract.method import Action"),
        ("core/step/a.py", "from lightning_so.core.matrices.matrices import Matrices\nfrom ..host import Host"),
        ("core/attach/a.py", "from lightning_so.core.vector import files\nfrom ..engine import Engine"),
        ("callbacks/a.py", "import lightning.pytorch\nfrom lightning_so.core.engine import Engine"),
        ("cli.py", "from lightning_so.callbacks.second_order import SecondOrder"),
    ],
)
def test_checker_lets_pass(file: str, source: str) -> None:
    assert violations(f"{PACKAGE}/{file}", source) == []
