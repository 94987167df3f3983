"""The Python of docs/how-to/extending.md: blocks whose first line is a file's name are modules, the others are run.

Lines of tracebacks are those of the page.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from unittest import mock

from pytorch_lightning.strategies import StrategyRegistry

from lightning_so.comm import choose
from lightning_so.contract.known import KNOWN
from lightning_so.layers import registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "extending.md"
#: Where modules of the page make themselves known.
REGISTERED = (KNOWN, registry._KNOWN, choose._REGISTERED, StrategyRegistry)


class Block(NamedTuple):
    """A block of Python."""

    #: Of the module; empty for one that has none.
    name: str
    #: Of the page, before the block.
    lines: int
    code: str

    def run(self, module: ModuleType) -> None:
        exec(compile("\n" * self.lines + self.code, str(PAGE), "exec"), module.__dict__)


def blocks(text: str | None = None) -> list[Block]:
    """The page's, in order."""
    text = PAGE.read_text(encoding="utf-8") if text is None else text
    found = []
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        named = re.match(r"# (\w+)\.py\n", match[1])
        found.append(Block(named[1] if named else "", text[: match.start(1)].count("\n"), match[1]))
    return found


@contextmanager
def modules(*names: str) -> Iterator[SimpleNamespace]:
    """Some of the page's modules, or all, imported by their names; they are unknown afterwards."""
    with ExitStack() as stack:
        for registered in REGISTERED:
            stack.enter_context(mock.patch.dict(registered))
        found = SimpleNamespace()
        for block in blocks():
            if block.name and block.name in (names or (block.name,)):
                module, before = ModuleType(block.name), sys.modules.get(block.name)
                stack.callback(_put, block.name, before)
                _put(block.name, module)
                block.run(module)
                setattr(found, block.name, module)
        yield found


def _put(name: str, module: ModuleType | None) -> None:
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module
