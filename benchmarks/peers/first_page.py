"""The table and the figure of the project's README, from the lines of other scripts.

    python -m benchmarks.peers.first_page     # writes README.md's table and docs/curves.png anew

Of `peers_byte_lm.jsonl`: of each contender the best rate of its sweep, means over seeds; the median step over AdamW's;
bytes of state over those of the parameters. Steps of a GPU are of the last `make bench-gpu` (`one_process_gpu.jsonl`).
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.peers.run import read
from benchmarks.peers.table import ADAMW, Sweep, draw, sweeps, targets
from benchmarks.steps import gpu_table

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers" / "results" / "peers_byte_lm.jsonl"
PAGE, PICTURE = ROOT / "README.md", ROOT / "docs" / "curves.png"
BEGIN, END = "<!-- python -m benchmarks.peers.first_page -->", "<!-- end of the table -->"
#: The problem of which steps on a GPU are told.
ON_GPU = "byte_lm_large"
#: What is in the table, by name: what it is called, and when it is the one to take.
ROWS = {
    "adamw": ("AdamW alone", "steps must stay as cheap as they are"),
    "torch_muon": ("`torch.optim.Muon` and AdamW", "you may set rates for two optimizers"),
    "soap": ("`SOAP()`", "**first**: AdamW's own rate, no tuning"),
    "muon": ("`Muon()`", "memory is short: no state but a copy of the weights"),
    "kfac": ("`KFAC()`", "the optimizer is SGD, or steps count more than seconds"),
    "ekfac": ("`EKFAC()`", "the same, with fresher curvature"),
    "shampoo": ("`Shampoo()`", "SOAP's factors without its second moments"),
}
DRAWN = {"adamw": "AdamW", "torch_muon": "torch Muon", "muon": "Muon", "soap": "SOAP", "kfac": "K-FAC"}


def rows(found: Mapping[str, Sweep], gpu: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    """The rows of the table: the method, when to take it, loss, steps to AdamW's, its step on a CPU and a GPU, state.

    Args:
        found: Sweeps of the contenders.
        gpu: Lines of steps on a GPU, by variant.
    """
    goal, out = targets(dict(found))["AdamW"], []
    for name, (called, when) in ROWS.items():
        best = found[name].best
        steps = [step for step in best.reached("steps", goal) if step is not None]
        to_adamw = f"{mean(steps):.0f}" if len(steps) == len(best.runs) else "-"
        out.append(
            [
                called,
                when,
                f"{best.loss:.3f}",
                str(best.runs[0]["steps"]) if name == ADAMW else to_adamw,
                f"{found[name].over_adamw:.2f}x",
                f"{of_gpu(gpu[name]) / of_gpu(gpu[ADAMW]):.2f}x" if name in gpu else "-",
                f"{found[name].of_best('state'):.1f}",
            ]
        )
    return out


def of_gpu(line: dict[str, Any]) -> float:
    """Milliseconds of the mean step; the first is left out, in which the device loads its kernels."""
    return mean(line["step_ms"][1:])


def rendered() -> str:
    """The table."""
    gpu = {line["variant"]: line for line in gpu_table.read() if line["problem"] == ON_GPU}
    heads = ["method", "take it when", "nats", "steps to AdamW's loss", "step on a CPU", "step on a GPU", "state"]
    text = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    text += [f"| {' | '.join(row)} |" for row in rows(sweeps(read(PEERS).values()), gpu)]
    return "\n".join([BEGIN, "", *text, "", END])


def write() -> None:
    """Write the table into the page, and draw."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + rendered() + rest.partition(END)[2])
    found = sweeps(read(PEERS).values())
    drawn = {name: found[name] for name in DRAWN}
    draw({"Byte language model": drawn}, {"Byte language model": "validation, nats per byte"}, PICTURE, DRAWN)
    print(f"table: {PAGE}")


if __name__ == "__main__":
    write()
