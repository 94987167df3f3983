"""What the scripts print and write: tables on a terminal, lines of JSON in a file, and facts of the machine."""

import json
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def headed(heads: Sequence[str], title: str, caption: str | None = None, left: int = 1) -> Table:
    """A table without rows: the first columns are flush left, the others hold numbers."""
    table = Table(title=title, caption=caption)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < left else "right")
    return table


def show(*tables: Table, width: int = 140) -> None:
    """Print them, as wide as the terminal is, or `width` where there is none."""
    console = Console(width=None if sys.stdout.isatty() else width)
    for table in tables:
        console.print(table)


def append(out: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a JSON line each, and say where."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        for line in lines:
            print(json.dumps(line), file=file)
    print(f"results: {out}")


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "cpu": model or platform.processor(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "bf16_units": "bf16" in flags,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
