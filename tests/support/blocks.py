"""The fenced blocks of README and of the pages of docs/, and how those of Python are run.

The Python of a page is run from top to bottom in one namespace, which begins with what short examples take for granted
(`GIVEN`). Three kinds are read and not run, each to be seen on the page: a block with a line that is "..." alone (it is
compiled), one marked as text (it needs a cluster), and a page that has a test of its own (`ELSEWHERE`).
A text block with a title that stands behind one of Python is what that one prints, line by line, "..." for anything.
"""

import re
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytorch_lightning as pl
import torch
from torch import nn

import lightning_so

ROOT = Path(__file__).parents[2]
#: Pages whose blocks another test runs.
ELSEWHERE = {"docs/how-to/extending.md": "tests/contract/test_extending.py"}
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Fence(NamedTuple):
    """A fenced block."""

    #: What stands behind the fence: "python", 'text title="It prints"', or nothing.
    kind: str
    #: Of the page, before the block.
    lines: int
    text: str

    @property
    def elided(self) -> bool:
        """Whether something is left out."""
        return re.search(r"^\s*\.\.\.$", self.text, re.MULTILINE) is not None


def pages() -> list[Path]:
    """README and all pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Fence(found[1], text[: found.start(2)].count("\n"), found[2]) for found in FENCE.finditer(text)]


class Small(pl.LightningModule):
    """A module that is quickly trained."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW, **arguments: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.made = optimizer, arguments

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        cls, arguments = self.made
        return cls(self.parameters(), **arguments)


def given() -> dict:
    """What a page's examples begin with: the package's names, torch, a model, its data, and an engine."""
    torch.manual_seed(0)
    dataset = torch.utils.data.TensorDataset(torch.randn(256, 8), torch.randn(256, 4))
    model, other = Small(), Small()
    return {
        **{name: getattr(lightning_so, name) for name in lightning_so.__all__},
        "__name__": "page",
        "pl": pl,
        "Trainer": pl.Trainer,
        "torch": torch,
        "dataset": dataset,
        "data": torch.utils.data.DataLoader(dataset, batch_size=32),
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "engine": lightning_so.attach(other, torch.optim.AdamW(other.parameters()), lightning_so.SOAP()),
    }


class ShortTrainer:
    """Trainers of a page are on a CPU, and end after eight steps where the page does not say when."""

    def __enter__(self) -> None:
        made = pl.Trainer.__init__

        def short(self: pl.Trainer, **arguments: object) -> None:
            made(self, **{"accelerator": "cpu", "max_steps": 8, "enable_progress_bar": False, **arguments})

        self._patch = mock.patch.object(pl.Trainer, "__init__", short)
        self._patch.start()

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def run(block: Fence, page: Path, names: dict) -> None:
    """Run a block of Python; lines of tracebacks are those of the page."""
    code = compile("\n" * block.lines + block.text, str(page), "exec")
    if not block.elided:
        exec(code, names)


def unprinted(expected: str, printed: str) -> str | None:
    """The first line of a text that was not printed, in its order; None if all were."""
    rest = printed.splitlines()
    for line in expected.splitlines():
        pattern = ".*".join(re.escape(part) for part in line.rstrip().split("..."))
        place = next((index for index, said in enumerate(rest) if re.fullmatch(pattern, said.rstrip())), None)
        if place is None:
            return line
        rest = rest[place + 1 :]
    return None
