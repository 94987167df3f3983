"""Claims of docs/explanation/."""

from operator import truediv
from statistics import mean, median
from typing import Any

from lightning_so.actions.stretch import REACH
from lightning_so.contract.spread import Staggered
from lightning_so.core.balance import slowness
from lightning_so.core.device.choose import LEAST
from lightning_so.core.overhead.choice import PEAK
from lightning_so.core.overhead.controller import STEADY
from tests.house.claims.methods import NAMES, SMALL, STEPS, gpu, mean_step
from tests.support.results import best, damped, gradients, held, line, lines, loss, state, step, steps_to, worst

MEGABYTE, GRID = 1e6, "grid_byte_lm"
MANIFEST = line("manifest")


def waits(*overlapped: str, part: str = "mean_wait_ms") -> list[float]:
    """Of the first of two runs, ms a step."""
    first = lines("overlap")[:4]
    return [one[part] for name in overlapped for one in first if one["overlapped"] == name]


def ways(problem: str, *names: str) -> list[float]:
    """Final losses by way and seed."""
    return [line("ways", problem=problem, way=way, seed=seed)["final_loss"] for way in names for seed in range(3)]


def spikes(variant: str) -> list[float]:
    """Largest over median step, of the least of three runs and of the largest."""
    found = [one["largest_over_median"] for one in lines("staggered_1gbit") if one["variant"] == variant]
    return [min(found), max(found)]


def medians(variant: str) -> list[float]:
    """Median step of each of three runs."""
    return [one["median_ms"] for one in lines("staggered_1gbit") if one["variant"] == variant]


def is_escape(run: dict[str, Any], base: str) -> bool:
    """Whether it starts on the ridge, with products, and arrives with every seed."""
    return (run["start"], run["base"], run["products"]) == ("ridge", base, 16) and None not in run["evaluations"]["0.5"]


def sharded(part: str, method: str = "soap") -> list[float]:
    """Megabytes on one, two and four ranks."""
    return [line("sharded_memory", method=method, ranks=ranks)[part] / MEGABYTE for ranks in (1, 2, 4)]


def apart(problem: str) -> float:
    """What the losses of three seeds are apart."""
    found = ways(problem, "fp32")
    return max(found) - min(found)


CLAIMS = {
    "docs/explanation/checkpoints.md": {
        "waits {} s for the disk instead of {} s, after {} s of `torch.save`; comparing takes {} s, loading {} s": [
            MANIFEST[part] for part in ("flushed, with manifest", "flushed", "torch.save", "compared", "torch.load")
        ],
    },
    "docs/explanation/devices.md": {
        "must come down to {} of its time": [LEAST],
        "| byte LM, 400 steps, nats per byte | {}, {}, {} | {}, {}, {} | {}, {}, {} |": ways(
            "byte_lm", "fp32", "tf32", "bf16"
        ),
        "200 steps, squared error | {}, {}, {} | {}, {}, {} | {}, {}, {} |": ways(
            "autoencoder_mnist", "fp32", "tf32", "bf16"
        ),
        "The means differ by {} at most, seeds by {} and {}": [
            max(
                abs(mean(ways(problem, way)) - mean(ways(problem, "fp32")))
                for problem in ("byte_lm", "autoencoder_mnist")
                for way in ("tf32", "bf16")
            ),
            apart("byte_lm"),
            apart("autoencoder_mnist"),
        ],
        "the byte LM ends at {}, {} and {};": ways("byte_lm", "cholesky"),
        "50 steps) at {}, {} and {}, on the mean {} above fp32's": [
            *ways("byte_lm", "fp16"),
            mean(ways("byte_lm", "fp16")) - mean(ways("byte_lm", "fp32")),
        ],
    },
    "docs/explanation/ownership.md": {
        "| neither | {} ms | {} ms |": [*waits("neither"), *waits("neither", part="mean_step_ms")],
        "| one of the two | {} ms | {} to {} ms |": [
            mean(waits("statistics", "solves")),
            *waits("solves", "statistics", part="mean_step_ms"),
        ],
        "| both | {} ms | {} ms |": [*waits("both"), *waits("both", part="mean_step_ms")],
    },
    "docs/how-to/ddp.md": {"wait {} ms a step instead of {} at 1 Gbit/s": waits("both", "neither")},
    "docs/explanation/schedule.md": {
        "a budget: {} times the modelled work": [Staggered().headroom],
        "[why {}](": [Staggered().headroom],
        "take it to {} times the median step": [PEAK],
        "differs by more than {} % between two rounds": [100 * STEADY],
        "find a rank off by more than {} from what is in force": [slowness.STEADY],
    },
    "docs/explanation/three-actions.md": {"until it promises {} times what the base's own update does": [REACH]},
    "docs/explanation/second-order.md": {
        "at .3, 1 and 3 times AdamW's tuned rate, SOAP ends at most equal to AdamW in {} % of {} cells.": held("soap")[
            :2
        ],
        "Its worst is {} times AdamW's loss": [worst("soap", "policy_gradient", 0.3)],
        "fall as 1 / W over W ranks: {}, {} and {} MB on 1, 2 and 4": sharded("curvature"),
        "SOAP sends {} bytes a step in the byte LM on two ranks, beside {} of gradients": [
            line("ddp", variant="soap")["predicted_bytes"],
            line("ddp", variant="soap")["gradient_bytes"],
        ],
        "K-FAC waits {} ms a step for its exchanges, and {} ms with": waits("neither", "both"),
        "| byte LM, 1,024 tokens, CPU | {}x | {}x | {}x |": [step(STEPS, name) for name in ("soap", "muon", "kfac")],
        "CPU of 16 cores | {}x | {}x | - |": [mean_step("one_process_byte_lm_8k", name) for name in ("soap", "muon")],
        "batch 256, CPU | {}x | {}x | {}x |": [mean_step(SMALL, name) for name in ("soap", "muon", "kfac")],
        "H100, older code | {}x | {}x | - |": [gpu(name, "byte_lm_8k") for name in ("soap", "muon")],
        "{} of its {} steps with Muon, {} with SOAP, {} with K-FAC, whose CPU time is 1 / {} of AdamW's": [
            steps_to("muon", 0.01),
            best(GRID, "adamw").runs[0]["steps"],
            steps_to("soap", 0.003),
            steps_to("kfac", 0.01),
            mean(run["cpu_seconds"] for run in best(GRID, "adamw").runs) / steps_to("kfac", 0.01, part="seconds"),
        ],
        "State is {} (Muon) to {} (EKFAC) times the parameters' bytes, AdamW's {}": [
            *map(state, ("muon", "ekfac", "adamw"))
        ],
        "{} to {} times the median with staggered solves, {} to {} with all on one step, {} to {} with AdamW": [
            *spikes("staggered"),
            *spikes("burst"),
            *spikes("AdamW"),
        ],
        "the median step of staggered solves is {} % longer": [
            100 * (mean(map(truediv, medians("staggered"), medians("burst"))) - 1)
        ],
        "At a saddle of 100 dimensions SGD needs {} gradients to the target, Adam {}, `OGR(k=5)` behind Adam {} (": [
            gradients("saddle of 100", base, method)
            for base, method in (("SGD 0.99", "alone"), ("Adam", "alone"), ("Adam", "OGR(k=5)"))
        ],
        "with `SaddleEscape` both do, after {} and {} gradients to half of the height": [
            min(median(one["evaluations"]["0.5"]) for one in lines("saddle_escape") if is_escape(one, base))
            for base in ("SGD", "Adam")
        ],
        "most equal to AdamW in {} to {} % of the cells of the suite": [
            of(held(method)[0] for method in NAMES) for of in (min, max)
        ],
        "default damping ends within {} % of the best of a sweep": [
            100 * (max(damped("kfac"), damped("kfac_sgd")) - 1)
        ],
        "two best rates, 2e-3 and 3e-3, SOAP ends at {} and {}, AdamW at {} and {}": [
            loss(GRID, method, rate) for method in ("soap", "adamw") for rate in (0.002, 0.003)
        ],
        "asked for .3 of a step SOAP and K-FAC took {}": [
            mean(
                mean_step("one_process_max_overhead", f"{method}:max_overhead=0.3", problem="byte_lm_2k") - 1
                for method in ("soap", "kfac")
            )
        ],
        "found the fault in all of {} trainings that had one, and none in {} healthy ones": [
            sum(one["fault"] is not None and one["found"] for one in lines("verdicts")),
            sum(one["fault"] is None and one["others"] == [] for one in lines("verdicts")),
        ],
        "the steps that SOAP needs within {} %": [
            max(100 * abs(one["shares"]["0.25"]["steps_share"] / one["truth"] - 1) for one in lines("shadow"))
        ],
    },
}
#: What is set, and not measured.
GIVEN = {
    "docs/explanation/devices.md": ["whose factor has moved by 5 %"],
    "docs/explanation/schedule.md": [
        "max_overhead=0.1)`: all of ours may take 10 % of",
        "equal ranks with 10 % of noise",
    ],
    "docs/explanation/second-order.md": ["at .3, 1 and 3 times AdamW's tuned rate"],
}
