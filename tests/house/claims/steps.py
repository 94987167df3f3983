"""Claims of benchmarks/README.md: what steps cost, and what a share of their time comes to."""

from tests.house.claims.benchmarks import FAMILY, PAGE
from tests.house.claims.methods import SMALL, STEPS, early, mean_step
from tests.support.results import best, line, lines, loss, middle, spike, step

TIMED, TRAINED, WIDE = "one_process_max_overhead", "max_overhead_byte_lm", "one_process_autoencoder_wide_mnist"
#: A row of "Step cost", and its file: with torch's Muon, or without.
COSTS = {
    "byte LM, 1,024 tokens": "byte_lm",
    "autoencoder on digits, batch 256": "autoencoder",
    "CNN on digits, batch 128": "cnn",
}
OURS = ("soap", "muon")
WITH_TORCH = (*OURS, "torch_muon_fp32")


def cost(file: str, methods: tuple[str, ...]) -> list[float]:
    """Mean steps over AdamW's, then the largest over the median step of all."""
    return [
        *(mean_step(file, method) for method in methods),
        *(spike(file, method) for method in ("adamw", *methods)),
    ]


def later(method: str, since: int = 320) -> float:
    """The largest step from there on, over the median of all."""
    one = line(STEPS, variant=method)
    return max(one["step_ms"][since:]) / one["median_ms"]


def p99(name: str, variant: str, **of: str) -> float:
    """The 99th percentile of steps over the median."""
    one = line(name, variant=variant, **of)
    return one["p99_ms"] / one["median_ms"]


def shared(problem: str, method: str, asked: str) -> list[float]:
    """A step's mean, what is largest, AdamW's largest."""
    variant, of = f"{method}:max_overhead={asked}", {"problem": problem}
    return [mean_step(TIMED, variant, **of), spike(TIMED, variant, **of), spike(TIMED, "adamw", **of)]


def trained(problem: str, method: str, asked: str) -> list[float]:
    """Loss at the end, AdamW's at the same rate, steps to it, and all steps."""
    ours, theirs = (
        best(TRAINED, label, 0.003, problem=problem) for label in (f"{method} max_overhead={asked}", "adamw")
    )
    return [ours.loss, theirs.loss, middle(ours.reached("steps", theirs.loss)), ours.runs[0]["steps"]]


def unsolved(method: str, base: str) -> float:
    """A mean step without what solves take, over the base's."""
    one = line(WIDE, variant=method, steps=200)
    return (one["mean_ms"] - one["parts_ms"]["solve"]) / line(WIDE, variant=base, steps=200)["mean_ms"]


def of_host(layers: str) -> list[float]:
    """Microseconds a step and block."""
    return [line("host_time", layers=layers, variant=method)["block_us"] for method in FAMILY]


def hooks() -> list[float]:
    """Microseconds a block in the forward and backward pass, the least and the most of K-FAC and EKFAC."""
    found = [one["parts_us"]["forward_backward"] for one in lines("host_time") if "kfac" in one["variant"]]
    return [min(found), max(found)]


CLAIMS = {
    PAGE: {
        **{
            f"| {head} | {'{}x | ' * 3}{{}}, {{}}, {{}}, {{}} |": cost(f"one_process_{file}", WITH_TORCH)
            for head, file in COSTS.items()
        },
        "| byte LM, 8,192 tokens (2 repeats) | {}x | {}x | - | {}, {}, {}, - |": cost("one_process_byte_lm_8k", OURS),
        "| byte LM, median step | {} ms | {}x | {}x | {}x | {}x | {}x |": [
            line(STEPS, variant="adamw")["median_ms"],
            *(step(STEPS, method) for method in FAMILY),
        ],
        "| largest/median | {} | {} | {} | {} | {} | {} |": [spike(STEPS, method) for method in ("adamw", *FAMILY)],
        "| 99th percentile/median | {} | {} | {} | {} | {} | {} |": [
            p99(STEPS, method) for method in ("adamw", *FAMILY)
        ],
        "| autoencoder, mean step | {} ms | {}x | {}x | {}x | {}x | - |": [
            line(SMALL, variant="adamw")["mean_ms"],
            *(mean_step(SMALL, method) for method in FAMILY[:-1]),
        ],
        "loss after 2,000 steps, one seed | {} | {} | {} | {} | {} | {} |": [
            line(STEPS, variant=method)["loss"] for method in ("adamw", *FAMILY)
        ],
        "from step 320 on the largest is {} and {}": [later("kfac"), later("ekfac")],
        "In the first 260 steps K-FAC is {}x and EKFAC {}x.": [early("kfac"), early("ekfac")],
        "Half of SOAP's {} ms": [line(STEPS, variant="soap")["median_ms"] - line(STEPS, variant="adamw")["median_ms"]],
        **{
            f"| {tokens}, {asked[1:]} | {called} | {{}}x | {{}} ({{}}) | {{}} ({{}}) | {{}} of {{}} |": [
                *shared(problem, method, asked),
                *trained(problem, method, asked),
            ]
            for tokens, problem, asked, method, called in (
                ("2,048", "byte_lm_2k", "0.3", "soap", "SOAP"),
                ("2,048", "byte_lm_2k", "0.3", "kfac", "K-FAC"),
                ("8,192", "byte_lm_8k", "0.1", "soap", "SOAP"),
            )
        },
        "| 8,192, .1 | K-FAC | {}x | {} ({}) |": shared("byte_lm_8k", "kfac", "0.1"),
        "Without a share SOAP's step is {}x": [mean_step(TIMED, "soap", problem="byte_lm_2k")],
        "is one of {} ms at step {}, beside a 99th percentile of {} medians. AdamW at 2e-3 ends at {}.": [
            *(line(TIMED, variant="kfac:max_overhead=0.1")[part] for part in ("largest_ms", "largest_step")),
            p99(TIMED, "kfac:max_overhead=0.1"),
            loss(TRAINED, "adamw", 0.002, problem="byte_lm_2k"),
        ],
        "whitened: {}x AdamW's instead of {}x (": [
            mean_step("one_process_byte_lm_shampoo", f"shampoo:power=2{option}") for option in (":whiten=true", "")
        ],
        "{}x SGD's, {}x without what solves take, and {}x with tiles of 256": [
            mean_step(WIDE, "kfac_sgd", "sgd", steps=200),
            unsolved("kfac_sgd", "sgd"),
            mean_step(WIDE, "kfac_sgd:cap=256", "sgd", steps=200),
        ],
        "is {} over the first 120 steps (five repeats; SGD beside it {}, its first step), {} over 200 (SGD {})": [
            spike(WIDE, method, steps=steps) for steps in (120, 200) for method in ("kfac_sgd", "sgd")
        ],
        "K-FAC on AdamW {}x AdamW's, on SGD {}x SGD's": [
            mean_step("one_process_resnet20", "kfac"),
            mean_step("one_process_resnet20", "kfac_sgd", "sgd"),
        ],
        "| all alike, 4 x 4 | {} | {} | {} | {} | {} |": of_host("alike"),
        "| of 100 shapes | {} | {} | {} | {} | {} |": of_host("different"),
        "Of K-FAC's and EKFAC's, {} to {} a block": hooks(),
    }
}
