"""Claims of benchmarks/README.md: trainings at equal rates, of the family, and by what was set."""

from itertools import product
from statistics import mean
from typing import Any

from lightning_so.actions import stretch
from lightning_so.contract.spread import Staggered
from tests.house.claims.benchmarks import GRID, PAGE
from tests.house.claims.methods import TORCH_MUON
from tests.support.results import best, dampings, lines, loss, steps_to

MNIST, PIXELS, BETAS = "grid_autoencoder_mnist", "grid_autoencoder_bernoulli_mnist", "grid_byte_lm_default_betas"
LENGTHS = ("base", "measured")
LARGER = {"AdamW": "adamw", "torch's Muon": "torch_muon", "Muon in bf16": "muon_bf16", "SOAP": "soap", "K-FAC": "kfac"}
LATE = "betas=(0.9, 0.999)"


def finals(file: str, label: str, lr: float, **of: str) -> list[float]:
    """Final losses, by seed."""
    return best(file, label, lr, **of).finals


def seconds(file: str, label: str, lr: float, **of: str) -> float:
    """CPU seconds of a training, the mean of seeds."""
    return mean(run["cpu_seconds"] for run in best(file, label, lr, **of).runs)


def powers(problem: str, head: str, rate: str) -> dict[str, list[float]]:
    """A row of Shampoo's powers: by power, plain and whitened; losses by seed."""
    found: dict[tuple[int, bool], list[float]] = {(power, whiten): [] for power in (4, 2) for whiten in (False, True)}
    for one in lines("shampoo_whitened"):
        if (one["problem"], one["lr"]) == (problem, float(rate)):
            options = {"power": 4, "whiten": False} | one["options"]
            found[options["power"], options["whiten"]].append(one["final_loss"])
    cells = [" / ".join(["{}"] * len(losses)) or "-" for losses in found.values()]
    return {f"| {head} | {rate} | {' | '.join(cells)} |": [loss for losses in found.values() for loss in losses]}


def labelled(problem: str, head: str, rate: str) -> dict[str, list[float]]:
    """A row of labels at hand and drawn, bold where these or those end lower on each seed; CPU seconds."""
    file, labels = "whose_labels", [f"kfac fisher={fisher}" for fisher in ("empirical", "sampled")]
    hand, drawn = (finals(file, label, float(rate), problem=problem) for label in labels)
    cells = [", ".join(["{}"] * len(hand))] * 2
    less = [ours < theirs for ours, theirs in zip(hand, drawn, strict=True)]
    if all(less) or not any(less):
        cells[less[0] is False] = f"**{cells[0]}**"
    times = [seconds(file, label, float(rate), problem=problem) for label in labels]
    return {f"| {head} | {rate} | {cells[0]} | {cells[1]} | {{}}, {{}} |": [*hand, *drawn, *times]}


def lengthened(problem: str, head: str, rate: str) -> dict[str, list[float]]:
    """A row of lengths as the base's and as measured; not all methods were run everywhere."""
    cells, values = [], []
    for setting in product(("muon", "kfac", "soap"), LENGTHS):
        found = [
            one["final_loss"]
            for one in lines("lengths")
            if (one["problem"], one["lr"]) == (problem, float(rate))
            and (one["method"], one["options"]["lengths"]) == setting
        ]
        cells.append("{}" if found else "-")
        values += found
    return {f"| {head}, {rate} | {' | '.join(cells)} |": values}


def taken(method: str, lengths: str) -> float:
    """CPU seconds of the byte LM, the mean of both rates."""
    return mean(seconds("lengths", f"{method} lengths={lengths}", lr, problem="byte_lm") for lr in (0.003, 0.01))


def against_sweep(problem: str, head: str) -> dict[str, list[float]]:
    """A row of the default damping over the best of its sweep, by batch."""
    found = [
        [ratio for (name, _), ratio in sorted(dampings(method).items()) if name == problem]
        for method in ("kfac", "kfac_sgd")
    ]
    cells = [", ".join(["{}"] * len(each)) for each in found]
    return {f"| {head} | {cells[0]} | {cells[1]} |": [ratio for each in found for ratio in each]}


def from_any_rate(problem: str, method: str) -> dict[str, list[float]]:
    """A row of losses by rate, under AdamW and SGD; a dash where one is not finite."""
    found = [
        [
            one["loss"]
            for one in lines("auto_step")
            if (one["problem"], one["base"], one["method"]) == (problem, base, method)
        ]
        for base in ("adamw", "sgd")
    ]
    cells = [" / ".join("-" if each is None else "{}" for each in row) for row in found]
    return {f"| {method} | {cells[0]} | {cells[1]} |": [each for row in found for each in row if each is not None]}


def longer(head: str, label: str, *rates: float) -> dict[str, list[float]]:
    """A row of 1,200 steps: losses by rate, the lowest of all bold, and CPU seconds."""
    losses, least = [loss("longer", label, rate) for rate in rates], min(one["final_loss"] for one in lines("longer"))
    cells = ["**{}**" if each == least else "{}" for each in losses] + [""] * (2 - len(rates))
    times = [seconds("longer", label, rate) for rate in rates]
    return {f"| {head} | {' | '.join(cells)} | {', '.join(['{}'] * len(rates))} |": [*losses, *times]}


def larger() -> dict[str, list[float]]:
    """The rows of the model of 8.8 million parameters: a method at its best rate, with the ends of its other rates."""
    found = {}
    for head, method in LARGER.items():
        runs = sorted((one for one in lines("medium") if one["method"] == method), key=lambda one: one["final_loss"])
        losses = dict(zip(runs[0]["curve"]["steps"], runs[0]["curve"]["losses"], strict=True))
        others = ", ".join(f"{{}} ({rate(one)})" for one in runs[1:])
        row = f"| {head}, {rate(runs[0])} | {'{} | ' * 5}{others} | {{}} |"
        found[row] = [
            *(losses[step] for step in range(400, 2001, 400)),
            *(one["final_loss"] for one in runs[1:]),
            runs[0]["cpu_seconds"],
        ]
    return found


def larger_run(method: str) -> dict[str, Any]:
    """The run of the larger model that ends lowest."""
    return min((one for one in lines("medium") if one["method"] == method), key=lambda one: one["final_loss"])


def below(method: str) -> int:
    """The first validated step at which the larger model is at AdamW's last loss."""
    curve, last = larger_run(method)["curve"], larger_run("adamw")["final_loss"]
    return next(step for step, each in zip(curve["steps"], curve["losses"], strict=True) if each <= last)


def same(one: int, other: int) -> int:
    """A number that two things have."""
    assert one == other
    return one


def rate(run: dict[str, Any]) -> str:
    """The rate of a run as the page has it, and that of the AdamW part where it is another."""
    short = [f"{lr:.0e}".replace("e-0", "e-") for lr in (run["lr"], run["adam_lr"] or run["lr"])]
    return short[0] if short[0] == short[1] else f"{short[0]} and {short[1]}"


CLAIMS = {
    PAGE: {
        **larger(),
        "At AdamW's last loss they are after {} (K-FAC), {} (both Muons) and {} (SOAP) of the 2,000 steps": [
            below("kfac"),
            same(below("muon_bf16"), below("torch_muon")),
            below("soap"),
        ],
        "to 5e-2 | {} (2e-3); {} at 3e-3 | {} (2e-2) | {} (5e-3); {} at 3e-3, {} at 2e-3 | **{}** (1e-2) |": [
            loss(GRID, "adamw"),
            loss(GRID, "adamw", 0.003),
            loss(GRID, TORCH_MUON),
            *(loss(GRID, "soap", lr) for lr in (0.005, 0.003, 0.002)),
            loss(GRID, "muon"),
        ],
        "| byte LM, betas .9/.999 | 3e-3, 1e-2 | {} (3e-3) | {} (1e-2) | {} (1e-2); {} at 3e-3 | **{}** (1e-2) |": [
            loss(BETAS, f"adamw {LATE}"),
            loss(BETAS, f"torch_muon_fp32 {LATE} adam_lr=0.01"),
            loss(BETAS, f"soap {LATE}"),
            loss(BETAS, f"soap {LATE}", 0.003),
            loss(BETAS, f"muon {LATE}"),
        ],
        "| 2e-3, 5e-3, 1e-2 | {} (5e-3) | - | **{}** (5e-3, the last one run) |": [
            loss("grid_cnn_fashion", method) for method in ("adamw", "soap")
        ],
        "ends the byte LM at **{}** (1e-2; {} at 5e-3, {} at 2e-2)": [
            loss(GRID, "kfac"),
            loss(GRID, "kfac", 0.005),
            loss(GRID, "kfac", 0.02),
        ],
        "after {} of 400 steps by SOAP at AdamW's 3e-3 ({} at 2e-3), after {} by Muon at 1e-2, after {} by torch": [
            steps_to("soap", 0.003),
            steps_to("soap", 0.002),
            steps_to("muon", 0.01),
            steps_to(TORCH_MUON, 0.02),
        ],
        "With the present {} SOAP ends at {} (5e-3) and {} (3e-3)": [
            Staggered().headroom,
            loss("soap_byte_lm", "soap"),
            loss("soap_byte_lm", "soap", 0.003),
        ],
        "ends at **{}** (1e-2), AdamW at {} (5e-3). K-FAC on SGD ended at {} (.1)": [
            loss(MNIST, method) for method in ("kfac", "adamw", "kfac_sgd")
        ],
        "In 40 steps instead of 200 K-FAC ends at {}": [loss("autoencoder_mnist_40_steps", "kfac")],
        "ends at {} on AdamW (5e-3), and at {} on SGD (1e-3); at 5e-3 it diverges there, where SGD ends at {}": [
            loss("shampoo_autoencoder_mnist", label) for label in ("shampoo", "shampoo_sgd", "sgd")
        ],
        "{} (1e-2) and {} (5e-3) in bf16, {} and {} in fp32; AdamW alone {} and {}.": [
            loss("muon_precision_autoencoder_mnist", label, lr)
            for label in ("muon precision=bf16", "muon precision=fp32", "adamw")
            for lr in (0.01, 0.005)
        ],
        "Muon {} and {} in fp32, {} and {} in bf16; AdamW {} and {}.": [
            loss(PIXELS, label, lr) for label in ("muon", "muon_bf16", "adamw") for lr in (0.003, 0.01)
        ],
        "In fp16 it ends at {} (3e-3) as in fp32, in {} times the CPU seconds": [
            loss(PIXELS, "muon precision=fp16", 0.003),
            seconds(PIXELS, "muon precision=fp16", 0.003) / seconds(PIXELS, "muon", 0.003),
        ],
        "it ends higher; the CNN at {} (two seeds)": [loss("family_cnn", "shampoo")],
        "{} and {} on two seeds (`kfac_norms.jsonl`), {} and {} without": [
            *finals("kfac_norms", "kfac", 0.01, problem="byte_lm"),
            *finals(GRID, "kfac", 0.01)[:2],
        ],
        **powers("byte_lm", "byte LM", "5e-3"),
        **powers("byte_lm", "byte LM", "1e-2"),
        **powers("autoencoder", "autoencoder on digits", "5e-3"),
        **powers("autoencoder", "autoencoder on digits, seeds 0 / 1 / 2 where there are three", "1e-2"),
        **powers("autoencoder", "autoencoder on digits", "2e-2"),
        **lengthened("byte_lm", "byte LM", "3e-3"),
        **lengthened("byte_lm", "byte LM", "1e-2"),
        **lengthened("autoencoder", "autoencoder", "3e-3"),
        **lengthened("autoencoder", "autoencoder", "1e-2"),
        "take {} CPU seconds without and {} with it under Muon, {} and {} under K-FAC": [
            taken(method, lengths) for method in ("muon", "kfac") for lengths in LENGTHS
        ],
        "(a mean of {} samples, {} times the base's promise, growth by {}, at most {})": [
            1 / (1 - stretch.DECAY),
            stretch.REACH,
            stretch.GROWTH,
            stretch.MOST,
        ],
        **labelled("byte_lm", "byte LM, classes", "1e-2"),
        **labelled("cnn", "CNN, classes", "1e-2"),
        **labelled("autoencoder", "autoencoder, squares", "1e-2"),
        **labelled("autoencoder_mnist", "autoencoder on MNIST, squares", "1e-2"),
        **labelled("autoencoder_bernoulli_mnist", "the same, pixels on or off", "3e-3"),
        **labelled("autoencoder_bernoulli_mnist", "the same, pixels on or off", "1e-2"),
        **against_sweep("autoencoder", "autoencoder on digits"),
        **against_sweep("cnn_fashion", "CNN on Fashion-MNIST"),
        **against_sweep("byte_lm", "byte LM"),
        **against_sweep("regression", "regression, half a digit from the other"),
        **from_any_rate("cnn", "alone"),
        **from_any_rate("cnn", "AutoStep"),
        **from_any_rate("cnn", "constant"),
        **from_any_rate("autoencoder", "alone"),
        **from_any_rate("autoencoder", "AutoStep"),
        **from_any_rate("autoencoder", "constant"),
        **longer("EKFAC", "ekfac", 0.005, 0.01),
        **longer("K-FAC", "kfac", 0.005, 0.01),
        **longer("SOAP, `polish=True`", "soap polish=True", 0.005, 0.01),
        **longer("Muon", "muon", 0.005, 0.01),
        **longer("SOAP", "soap", 0.005),
        **longer("torch's Muon, at 2e-2 and 4e-2", TORCH_MUON, 0.02, 0.04),
        **longer("AdamW, at 3e-3 and 5e-3", "adamw", 0.003, 0.005),
    }
}
