"""Claims of the pages of methods on layers: docs/methods/."""

from statistics import mean

from tests.support.results import beside, field, held, line, loss, lower, on_gpu, spike, state, step, worst

STEPS, SMALL = "one_process_byte_lm_2000", "one_process_autoencoder_all"
TORCH_MUON = "torch_muon_fp32 adam_lr=0.01"
NAMES = {"soap": "SOAP", "muon": "Muon", "kfac": "K-FAC", "ekfac": "EKFAC", "shampoo": "Shampoo"}
#: Files in which methods were trained at several rates, by problem; others are in the family's.
GRIDS = {
    (method, problem): f"grid_{problem}"
    for method in ("adamw", TORCH_MUON, "muon", "soap")
    for problem in ("byte_lm", "autoencoder", "cnn")
}
GRIDS |= {("soap", "byte_lm"): "soap_byte_lm", ("kfac", "byte_lm"): "grid_byte_lm"}
#: Shampoo's power is its default: as many as a tensor has dimensions.
POWERS = {"byte_lm": 2, "autoencoder": 2, "cnn": 4}


def ends(method: str, problem: str) -> float:
    """Mean final loss at the best rate."""
    label = f"shampoo power={POWERS[problem]}" if method == "shampoo" else method
    return loss(GRIDS.get((method, problem), f"family_{problem}"), label)


def all_end(problem: str, *methods: str) -> list[float]:
    """The same of several, in a table's columns."""
    return [ends(method, problem) for method in methods]


def early(method: str, steps: int = 260) -> float:
    """The mean of the first steps over that of AdamW's."""
    ours, theirs = (mean(line(STEPS, variant=name)["step_ms"][:steps]) for name in (method, "adamw"))
    return ours / theirs


def mean_step(file: str, method: str, base: str = "adamw", **of: object) -> float:
    """Mean step over that of the base."""
    return step(file, method, base, part="mean_ms", **of)


def gpu(method: str, problem: str = "byte_lm") -> float:
    """Mean step over AdamW's on a GPU."""
    return on_gpu(problem, method) / on_gpu(problem, "adamw")


def longer_by(option: str, problem: str, run: int) -> float:
    """CPU seconds of trainings with an option of SOAP over those beside them without."""
    ours, theirs = (
        sum(sum(field(problem, rate, part="cpu_seconds", **of).values()) for rate in (0.005, 0.01))
        for of in ({option: True}, {"run": run})
    )
    return ours / theirs


def shared(method: str) -> dict[str, list[float]]:
    """What every page of a method tells in the same words."""
    return {
        "step, byte LM, 1,024 tokens | {}x AdamW's; largest/median {}": [step(STEPS, method), spike(STEPS, method)],
        "AdamW's {} included | {} |": [state("adamw"), state(method)],
        "CNN on digits ends at {}, a tuned AdamW at **{}**": all_end("cnn", method, "adamw"),
    }


def losses(*methods: str, base: str = "") -> dict[str, list[float]]:
    """The rows of losses."""
    more = " | {}" * (len(methods) - 1)
    return {
        f"| byte LM, 400 steps, nats per byte |{base} {{}}{more} |": all_end("byte_lm", *methods),
        f"| autoencoder on digits |{base} {{}}{more} |": all_end("autoencoder", *methods),
        f"| CNN on digits |{base} **{{}}**{more} |": all_end("cnn", *methods),
    }


CLAIMS = {
    "docs/methods/README.md": {
        "loss (AdamW {}) | median step, over AdamW's | largest/median (AdamW {}) | state over parameters (AdamW {})": [
            ends("adamw", "byte_lm"),
            spike(STEPS, "adamw"),
            state("adamw"),
        ],
        **{
            f"| {name} | {{}} | {{}}x | {{}} | {{}} |": [
                *all_end("byte_lm", method),
                *(of(STEPS, method) for of in (step, spike)),
                state(method),
            ]
            for method, name in NAMES.items()
        },
    },
    "docs/methods/soap.md": {
        **shared("soap"),
        **losses("adamw", "soap"),
        "ends {} times as high as AdamW at the tuned rate, {} times at .3 of it (its worst of {} cells)": [
            beside("soap", "policy_gradient"),
            worst("soap", "policy_gradient", 0.3),
            held("soap")[1],
        ],
        "8,192 tokens, 16 cores | {}x": [mean_step("one_process_byte_lm_8k", "soap")],
        "autoencoder, batch 256 | {}x": [mean_step(SMALL, "soap")],
        "H100, byte LM, 1,024 tokens, older code | {}x": [gpu("soap")],
        "2,000 steps, one seed | {} | {} |": [loss("medium", "adamw"), loss("medium", "soap")],
        "at most equal in {} % of {} cells, {} in the median": held("soap"),
        "Half of its {} ms a step": [
            line(STEPS, variant="soap")["median_ms"] - line(STEPS, variant="adamw")["median_ms"]
        ],
        "{} % lower at SOAP's best rate, and {} % lower at twice that, its own best, at {} times the CPU time": [
            lower("byte_lm", 0.005, polish=True),
            lower("byte_lm", 0.01, of=0.005, polish=True),
            longer_by("polish", "byte_lm", run=0),
        ],
        "ends up to {} % lower at equal steps and the autoencoder {} to {} %, for {} and {} times the CPU time": [
            max(lower("byte_lm", rate, seed, run=1, whiten=True) for rate in (0.005, 0.01) for seed in range(3)),
            *(f(lower("autoencoder", 0.01, seed, run=1, whiten=True) for seed in range(3)) for f in (min, max)),
            longer_by("whiten", "byte_lm", run=1),
            longer_by("whiten", "autoencoder", run=1),
        ],
    },
    "docs/methods/muon.md": {
        **shared("muon"),
        **losses("adamw", TORCH_MUON, "muon"),
        "a table of names ends {} times as high as AdamW, at three times its rate {} times": [
            beside("muon", "rare_features"),
            worst("muon", "rare_features", 3.0),
        ],
        "The policy gradient ends {} times as high": [beside("muon", "policy_gradient")],
        "2,000 steps, one seed, in bf16 | {} | {} | {} |": [
            loss("medium", label) for label in ("adamw", "torch_muon adam_lr=0.002", "muon_bf16")
        ],
        "8,192 tokens, 16 cores | {}x": [mean_step("one_process_byte_lm_8k", "muon")],
        "autoencoder, batch 256 | {}x": [mean_step(SMALL, "muon")],
        "older code | {}x (torch's Muon {}x)": [gpu("muon"), gpu("torch_muon")],
        "| 1 | {} % of {} cells, median {} | at most equal in {} % of {} cells, median {} |": [
            *held("torch_muon_adamw"),
            *held("muon"),
        ],
    },
    "docs/methods/kfac.md": {
        **shared("kfac"),
        **losses("adamw", "kfac", base=" AdamW |"),
        "a table of names ends {} times as high as AdamW": [beside("kfac", "rare_features")],
        "Poisson's equation ends {} times as high": [worst("kfac", "poisson", 3.0)],
        "first 260 steps | {}x": [early("kfac")],
        "autoencoder, batch 256 | {}x": [mean_step(SMALL, "kfac")],
        "on SGD, autoencoder of MNIST | {}x": [
            mean_step("one_process_autoencoder_wide_mnist", "kfac_sgd", "sgd", steps=200)
        ],
        "ResNet-20 | {}x AdamW's; on SGD {}x": [
            mean_step("one_process_resnet20", "kfac"),
            mean_step("one_process_resnet20", "kfac_sgd", "sgd"),
        ],
        "autoencoder on MNIST | AdamW | {} | {} |": [
            loss("grid_autoencoder_mnist", name) for name in ("adamw", "kfac")
        ],
        "AdamW | 1 | at most equal in {} % of {} cells, median {}": held("kfac"),
        "SGD | 1 | at most equal in {} % of {} cells, median {}; worst {}, a policy gradient": [
            *held("kfac_sgd"),
            worst("kfac_sgd", "policy_gradient", 0.3),
        ],
    },
    "docs/methods/ekfac.md": {
        **shared("ekfac"),
        **losses("adamw", "ekfac"),
        "ends {} times as high as AdamW ({} times at .3 of its rate), rare features {} times": [
            beside("ekfac", "policy_gradient"),
            worst("ekfac", "policy_gradient", 0.3),
            beside("ekfac", "rare_features"),
        ],
        "first 260 steps | {}x": [early("ekfac")],
        "autoencoder, batch 256 | {}x": [mean_step(SMALL, "ekfac")],
        "byte LM, 1,200 steps, one seed | {} | {} |": [loss("longer", name) for name in ("adamw", "ekfac")],
        "at most equal in {} % of {} cells, median {}": held("ekfac"),
    },
    "docs/methods/shampoo.md": {
        **shared("shampoo"),
        **losses("adamw", "shampoo"),
        "ends {} times as high as AdamW, rare features {} times": [
            beside("shampoo", "policy_gradient"),
            beside("shampoo", "rare_features"),
        ],
        "at power 2, whitened | {}x, where it was {}x": [
            mean_step("one_process_byte_lm_shampoo", f"shampoo:power=2{option}") for option in (":whiten=true", "")
        ],
        "at most equal in {} % of {} cells, median {}": held("shampoo"),
    },
}
#: What is set, and not measured.
GIVEN = {
    "docs/methods/kfac.md": ["`OfRate(0.01)`, 0.01 over the largest", "more than 100 times as far as SGD would"],
}
