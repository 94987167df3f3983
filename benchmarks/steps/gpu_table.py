"""The table of steps on a GPU in benchmarks/README.md, from the lines of the last run: `make bench-gpu`.

python -m benchmarks.steps.gpu_table     # writes it anew
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "steps" / "results"
LINES = RESULTS / "one_process_gpu.jsonl"
PAGE = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- python -m benchmarks.steps.gpu_table -->", "<!-- end of the table -->"
METHODS = {
    "torch_muon": "torch Muon",
    "muon": "Muon",
    "soap": "SOAP",
    "kfac": "K-FAC",
    "ekfac": "EKFAC",
    "shampoo": "Shampoo",
}
#: Of the problems on bytes: the context, and the usual batch; of the others the usual batch alone.
BYTES = {"byte_lm": (64, 16), "byte_lm_8k": (64, 128), "byte_lm_large": (256, 32)}
IMAGES = {"autoencoder": 256, "cnn": 128}
#: Options that have rows of their own.
ROWS = ("max_overhead", "padding")


def read(path: Path = LINES) -> list[dict[str, Any]]:
    """The lines of the last run; where there is none that has a name, those of before."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("run") == lines[-1].get("run")]


def size(line: dict[str, Any]) -> str:
    """Tokens, or images, of a step."""
    if line["problem"] in BYTES:
        context, usual = BYTES[line["problem"]]
        return f"{context * (line.get('batch_size') or usual):,} tokens"
    return f"{line.get('batch_size') or IMAGES[line['problem']]} images"


def rendered(lines: Sequence[dict[str, Any]]) -> str:
    """The table, and what it is of.

    Args:
        lines: Those of one run, as `one_process` writes them.

    Returns:
        Markdown between `BEGIN` and `END`.
    """
    rows: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for line in lines:
        method, *options = line["variant"].split(":")
        asked = next((option for option in options if option.startswith(ROWS)), "")
        rows.setdefault((line["problem"], size(line), asked), {})[method] = line
    heads = ["problem", "a step", "AdamW", *METHODS.values()]
    text = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (problem, of_step, asked), found in rows.items():
        base = rows[problem, of_step, ""].get("adamw")
        if base is None or "failed" in base:
            continue
        own = "" if asked else f"{_mean(base):.1f} ms, {_jitter(base)}{_loss(base)}"
        cells = [problem, f"{of_step}{f', `{asked}`' if asked else ''}", own]
        text.append(f"| {' | '.join([*cells, *(_cell(found.get(method), base) for method in METHODS)])} |")
    first = lines[0]
    when = f"run of {first['run']}" if "run" in first else "lines of before there was `make bench-gpu`, of older code"
    caption = f"{first['device']}, torch {first['torch']}; {when}."
    return "\n".join([BEGIN, "", *text, "", caption, "", END])


def _later(line: dict[str, Any]) -> list[float]:
    """Milliseconds of the steps after the first, in which a device loads its kernels."""
    return line["step_ms"][1:]


def _mean(line: dict[str, Any]) -> float:
    return mean(_later(line))


def _jitter(line: dict[str, Any]) -> str:
    return f"{max(_later(line)) / median(_later(line)):.2f}"


def _loss(line: dict[str, Any]) -> str:
    return "" if line.get("loss") is None else f", {line['loss']:.4g}"


def _cell(line: dict[str, Any] | None, base: dict[str, Any]) -> str:
    if line is None:
        return "-"
    if "failed" in line:
        return "failed"
    return f"{_mean(line) / _mean(base):.2f}x, {_jitter(line)}{_loss(line)}"


def write(page: Path = PAGE, path: Path = LINES) -> None:
    """Write it into the page, in the place of the last one."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + rendered(read(path)) + rest.partition(END)[2])
    print(f"table: {page}")


if __name__ == "__main__":
    write()
