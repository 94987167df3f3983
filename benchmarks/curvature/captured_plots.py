"""The table and the plots of `captured.py`, from its lines."""

from collections import defaultdict
from statistics import mean, median
from typing import Any

import matplotlib

KS = (1, 2, 5, 10)
#: Steps that are tried, and what their parabola says of each: to the model's extremes (of the frame, of the Krylov
#: directions), as the method goes, to the extremes with the gradient of all fresh batches, and the method's whole step.
GUESSES = {
    "frame": "predicted",
    "used": "predicted_used",
    "clean": "predicted_clean",
    "krylov": "predicted_krylov",
    "method": None,
}


def table(lines: list[dict[str, Any]]) -> None:
    """Medians over looks and seeds."""

    def of(*path: str) -> float:
        return median(at(line, path) for line in lines)

    def tried(name: str, guess: tuple[str, ...] | None) -> str:
        rises = sum(line["decrease"][name]["fresh"] < 0 for line in lines)
        told = "      -" if guess is None else f"{1e3 * of(*guess):7.2f}"
        seen = [f"{1e3 * of('decrease', name, where):8.2f}" for where in ("own", "fresh")]
        return f"  {name:<10} {told} {seen[0]} {seen[1]}   {rises} of {len(lines)}"

    print("  k   share of own, fresh, large gradients; of Krylov's directions: fresh, large (medians over looks)")
    for k in map(str, KS):
        found = [of("k", k, "share", what) for what in ("own", "fresh", "large")]
        found += [of("k", k, "share_krylov", what) for what in ("fresh", "large")]
        print(f" {k:>2} ", " ".join(f"{100 * share:6.2f} %" for share in found))
    print("  a step of   predicted, decrease in 1e-3 of own batch, of fresh batches; of these the loss rises")
    print(tried("adamw", None))
    for k in map(str, KS):
        for kind, guess in GUESSES.items():
            print(tried(f"{kind} {k}", ("k", k, guess) if guess else None))


def at(line: Any, path: tuple[str, ...]) -> float:
    """What is there."""
    for name in path:
        line = line[name]
    return line


def mean_over_seeds(lines: list[dict[str, Any]], *path: Any) -> tuple[list[int], list[float]]:
    """Steps, and the mean of a value at each."""
    found = defaultdict(list)
    for line in lines:
        found[line["step"]].append(at(line, path))
    return list(found), [mean(values) for values in found.values()]


def draw(lines: list[dict[str, Any]]) -> None:
    """Both plots."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    def curve(axis: Any, lines: list[dict[str, Any]], path: tuple[Any, ...], style: str, label: str) -> None:
        axis.plot(*mean_over_seeds(lines, *path), style, label=label)

    watched = [line for line in lines if not line["take"]]
    problems = list(dict.fromkeys(line["problem"] for line in watched))
    figure, axes = plt.subplots(3, len(problems), figsize=(5 * len(problems), 9), layout="constrained", squeeze=False)
    for column, name in zip(axes.T, problems, strict=True):
        mine = [line for line in watched if line["problem"] == name]
        for k, color in (("5", "C0"), ("10", "C1")):
            for what, style in (("own", ":"), ("fresh", "-"), ("large", "--")):
                curve(column[0], mine, ("k", k, "share", what), color + style, f"k = {k}, {what}")
        curve(column[0], mine, ("k", "5", "share_krylov", "fresh"), "C2-", "5 Krylov, fresh")
        column[0].set(title=f"{name}: {mine[0]['numbers']:,} numbers", ylabel="share of the gradient", ylim=(0, 1))
        for axis, where in ((column[1], "own"), (column[2], "fresh")):
            curve(axis, mine, ("decrease", "adamw", where), "k-", "AdamW's step")
            for kind, color in (("frame", "C0"), ("used", "C1"), ("krylov", "C2")):
                curve(axis, mine, ("decrease", f"{kind} 5", where), color + "-", f"{kind}, k = 5")
                curve(axis, mine, ("k", "5", GUESSES[kind]), color + ":", "its prediction")
            axis.set_yscale("symlog", linthresh=1e-3)
            axis.axhline(0, color="gray", linewidth=0.5)
            axis.set(ylabel=f"decrease of the loss, {where} batch")
        column[2].set_xlabel("step")
    axes[0][0].legend(fontsize=7)
    axes[1][-1].legend(fontsize=6, loc="lower right", framealpha=0.4)
    figure.savefig("docs/captured.png", dpi=90)

    mine = [line for line in lines if line["problem"] == "byte_lm"]
    takes = sorted({line["take"] for line in mine})
    figure, axes = plt.subplots(2, len(takes), figsize=(4.5 * len(takes), 6), layout="constrained", squeeze=False)
    for column, take in zip(axes.T, takes, strict=True):
        those = [line for line in mine if line["take"] == take]
        for number, end in ((-1, "top"), (0, "bottom")):
            curve(column[0], those, ("lanczos", "large", number), "k--", f"{end} by Lanczos, large batch")
            curve(column[0], those, ("lanczos", "own", number), "k:", f"{end} by Lanczos, own batch")
            curve(column[0], those, ("k", "5", "curvatures", number), "-", f"{end} of the frame")
        column[0].set(title=f"FewDirections(k={take})'s steps" if take else "AdamW's steps", ylabel="curvature")
        column[0].set_yscale("symlog", linthresh=1)
        curve(column[1], those, ("k", "5", "top_in_frame"), "C0-", "of the top eigenvector in the frame")
        column[1].set(xlabel="step", ylabel="share", ylim=(0, 1))
    axes[0][0].legend(fontsize=6, loc="center right", framealpha=0.4)
    axes[1][0].legend(fontsize=7)
    figure.savefig("docs/tracked.png", dpi=90)
