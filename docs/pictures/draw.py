"""Draws the pictures of the explanation pages: python -m docs.pictures.draw [NAME ...].

The charts are drawn by matplotlib, from the package's own code where there is one. Flows are drawn by graphviz' `dot`
(apt-get install graphviz) from the mermaid text of their page, so that text and picture are one; each notes of which
text it was made, and a test compares (tests/house/test_pictures.py).
"""

import hashlib
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch

from lightning_so import SOAP, Staggered, Synchronous, attach
from lightning_so.contract.spread import Spread

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "scale" / "results" / "scale.jsonl"
#: Page and picture of each flow.
FLOWS = {
    "step": HERE.parent / "explanation" / "one-step.md",
    "house": HERE.parent / "explanation" / "house.md",
    "ownership": HERE.parent / "explanation" / "ownership.md",
}
BLUE, ORANGE, GREY = "#3f51b5", "#e8710a", "#777777"
plt.rcParams.update(
    {
        "svg.hashsalt": "lightning_so",
        "svg.fonttype": "path",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure, the same bytes each time."""
    figure.savefig(HERE / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def actions() -> None:
    """One step of each action on a loss of a 2 x 2 matrix of which two numbers are seen."""
    turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    hessian = turn @ np.diag([8.0, 0.6]) @ turn.T
    start = np.array([-1.0, 0.9])
    gradient = hessian @ start
    adam = -0.55 * np.sign(gradient)  # Adam's first step: as far along each coordinate.
    rotated = -0.55 * turn @ np.sign(turn.T @ gradient)
    newton = -np.linalg.solve(hessian, gradient)
    bent = newton / np.linalg.norm(newton) * np.linalg.norm(adam)
    damped = -np.linalg.solve(hessian + 0.5 * np.eye(2), gradient)
    sgd = -gradient * 0.12
    panels = [
        ("rotate", "Adam's step, along the axes of curvature", adam, "AdamW", rotated, "SOAP"),
        ("bend", "AdamW's length, another direction", adam, "AdamW", bent, "K-FAC on AdamW"),
        ("precondition", "gradient times inverse curvature", sgd, "SGD", damped, "K-FAC on SGD"),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4))
    x, y = np.meshgrid(np.linspace(-1.9, 0.7, 50), np.linspace(-0.6, 1.5, 50))
    grid = np.stack([x, y], -1)
    height = 0.5 * np.einsum("xyi,ij,xyj->xy", grid, hessian, grid)
    for axis, (title, says, base, base_name, ours, name) in zip(axes, panels, strict=True):
        axis.contour(x, y, height, levels=np.geomspace(0.02, 12, 12), colors="#c5cae9", linewidths=1)
        for step, colour, label in ((base, GREY, base_name), (ours, ORANGE, name)):
            axis.annotate("", start + step, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.4})
            axis.plot([], [], color=colour, lw=2.4, label=label)
        if title == "rotate":
            for column in turn.T:
                axis.plot(*np.stack([start - 0.5 * column, start + 0.5 * column]).T, color=BLUE, lw=1, ls=":")
        axis.plot(*start, "o", color="black", ms=5)
        axis.plot(0, 0, "+", color="black", ms=9)
        axis.set_title(f"{title}\n", fontweight="bold")
        axis.text(0.5, 1.02, says, transform=axis.transAxes, ha="center", fontsize=10)
        axis.set(aspect="equal", xticks=[], yticks=[])
        axis.legend(loc="lower right", frameon=False)
    save(figure, "actions")


def work(schedule: Spread, steps: int = 150) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Modelled work of the solves of each step of a small network, and (step, unit) of every solve."""
    torch.manual_seed(0)
    widths = [64, 192, 128, 96, 64]
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters())
    engine = attach(model, optimizer, SOAP(period=16, start=1, schedule=schedule))
    units, costs, seen = engine.parts.units, np.zeros(steps), list[tuple[int, int]]()
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(32, 64)).square().mean().backward()
        optimizer.step()
        for number, unit in enumerate(units):
            if units.schedule.tried[number] == step:
                costs[step - 1] += unit.cost
                seen.append((step, number))
    engine.detach()
    return costs, seen


def schedule() -> None:
    """The same solves, staggered and all at once."""
    staggered, where = work(Staggered())
    burst, together = work(Synchronous())
    scale = staggered[100:].mean()
    figure, axes = plt.subplots(2, 2, figsize=(11, 5), sharex=True, height_ratios=[3, 2])
    for column, (costs, seen, title, colour) in enumerate(
        [
            (burst, together, "all at once: Synchronous()", GREY),
            (staggered, where, "spread: Staggered(), the default", ORANGE),
        ]
    ):
        above, below = axes[:, column]
        above.scatter(*zip(*seen, strict=True), s=9, color=colour)
        above.set_title(title)
        below.bar(range(1, len(costs) + 1), costs / scale, width=1.0, color=colour)
        below.set(xlabel="step", ylim=(0, burst.max() / scale * 1.05))
    axes[0, 0].set_ylabel("unit that is solved")
    axes[1, 0].set_ylabel("work of the step's\nsolves, over the mean")
    figure.tight_layout()
    save(figure, "schedule")
    print(f"largest over mean work of solves, steps 101 to 150: {burst[100:].max() / scale:.1f} at once, "
          f"{staggered[100:].max() / scale:.1f} spread")  # fmt: skip


def mermaid(page: Path) -> str:
    """The flow of a page."""
    return re.search(r"^```mermaid\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)[1]


def scale() -> None:
    """Steps, waiting and memory over ranks, from the lines of `python -m benchmarks.scale`."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    models = list(dict.fromkeys(line["model"] for line in lines))
    rows = {
        "mean step over AdamW's": lambda line: line["mean_ms"] / line["own_ms"],
        "exchanges, ms a step": lambda line: line["exchange_ms"],
        "solves, ms a step": lambda line: line["solves_ms"],
        "memory of a rank, GB": lambda line: 1e-9 * sum(line["memory"].values()),
    }
    colors = {"soap": BLUE, "kfac": ORANGE, "muon": GREY}
    styles = {"ddp": "-", "fsdp": "--", "hsdp": ":"}
    figure, axes = plt.subplots(len(rows), len(models), figsize=(3.4 * len(models), 11), sharex=True)
    for column, model in enumerate(models):
        for (label, value), axis in zip(rows.items(), axes[:, column], strict=True):
            for method, strategy in ((m, s) for m in colors for s in styles):
                of = [
                    line
                    for line in lines
                    if (line["model"], line["method"], line["strategy"]) == (model, method, strategy)
                ]
                seen = sorted((line["ranks"], value(line)) for line in of if value(line) > 1e-3)
                if seen:
                    axis.plot(*zip(*seen, strict=True), color=colors[method], ls=styles[strategy], lw=1.6)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            if not column:
                axis.set_ylabel(label)
        axes[0, column].set_title(model.replace("_", " "))
        axes[-1, column].set_xlabel("ranks")
    named = {"soap": "SOAP", "kfac": "K-FAC", "muon": "Muon", "ddp": "DDP", "fsdp": "FSDP2", "hsdp": "HSDP"}
    handles = [plt.Line2D([], [], color=color, label=named[name]) for name, color in colors.items()]
    handles += [plt.Line2D([], [], color="black", ls=style, label=named[name]) for name, style in styles.items()]
    figure.legend(handles=handles, loc="lower center", ncols=6, frameon=False, bbox_to_anchor=(0.5, -0.02))
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    save(figure, "scale")


def mark(text: str) -> str:
    """What a picture says of the text that it was made of."""
    return f"<!-- of {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def dot(text: str) -> str:
    """A mermaid flow in graphviz' language."""
    lines = ['rankdir="TB"', 'bgcolor="white"', 'pad="0.2"', 'nodesep="0.35"', 'ranksep="0.38"',
             'node [shape="box", style="rounded,filled", fillcolor="#eef0fb", color="#3f51b5"]',
             'node [fontname="Helvetica", fontsize=13]',
             'edge [color="#555555", fontname="Helvetica", fontsize=12]']  # fmt: skip
    names = set[str]()
    node = r'(\w+)(?:\(\["([^"]*)"\]\)|\["([^"]*)"\])?'
    for line in text.splitlines()[1:]:
        found = re.match(rf"\s*{node}\s*(-->|-\.->)(?:\|([^|]*)\|)?\s*{node}\s*$", line)
        for name, user, label in (
            [found.group(1, 2, 3), found.group(6, 7, 8)] if found else [re.match(rf"\s*{node}", line).group(1, 2, 3)]
        ):
            said = (user or label or "").replace("<br/>", "\\n")
            if said or name not in names:
                fill = ', fillcolor="#fff3e0", color="#e8710a"' if user else ""
                lines.append(f'{name} [label="{said or name}"{fill}]')
            names.add(name)
        if found:
            style = 'style="dashed", constraint=false, ' if found[4] == "-.->" else ""
            lines.append(f'{found[1]} -> {found[6]} [{style}label="{" " + found[5] if found[5] else ""}"]')
    return "digraph { " + ";\n".join(lines) + " }"


def flow(name: str) -> None:
    """The flow of a page as a picture."""
    text = mermaid(FLOWS[name])
    svg = subprocess.run(["dot", "-Tsvg"], input=dot(text), capture_output=True, text=True, check=True).stdout
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.S)
    (HERE / f"{name}.svg").write_text(svg.rstrip() + "\n" + mark(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["actions", "schedule", "scale", *FLOWS]:
        {"actions": actions, "schedule": schedule, "scale": scale}.get(name, lambda name=name: flow(name))()
