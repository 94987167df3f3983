"""Claims of benchmarks/README.md: trainings at equal rates, of the family, and by what was set."""

from statistics import mean

from lightning_so.contract.spread import Staggered
from tests.house.claims.benchmarks import GRID, PAGE
from tests.house.claims.methods import TORCH_MUON
from tests.support.results import best, lines, loss, steps_to

MNIST, PIXELS, BETAS = "grid_autoencoder_mnist", "grid_autoencoder_bernoulli_mnist", "grid_byte_lm_default_betas"
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


CLAIMS = {
    PAGE: {
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
    }
}
