"""Claims of README and of the pages that conclude: lessons, when not to use it, the tutorials."""

from statistics import mean

from examples.byte_lm import ByteTransformer
from lightning_so.actions.stretch import GROWTH
from lightning_so.contract.spread import Staggered
from tests.house.claims.methods import NAMES, SMALL, STEPS, gpu, longer_by, mean_step
from tests.support.results import beside, damped, lines, loss, lower, on_gpu, step, whitened, worst

GRID = "grid_byte_lm"
WIDE = "one_process_autoencoder_wide_mnist"


def wins(problem: str, *rates: float) -> list[float]:
    """Percent by which whitened factors of SOAP end lower, on the seed where that is least and where it is most."""
    found = [lower(problem, rate, seed, run=1, whiten=True) for rate in rates for seed in range(3)]
    return [min(found), max(found)]


def labels(fisher: str) -> float:
    """Mean final loss of the byte LM under K-FAC with labels at hand or drawn."""
    found = [one for one in lines("whose_labels") if (one["problem"], one["options"]["fisher"]) == ("byte_lm", fisher)]
    return mean(one["final_loss"] for one in found)


def single(side: int) -> list[float]:
    """How many times as fast 64 solves are in one call, by what is solved."""
    return [one["speedup"] for one in lines("solves") if (one["count"], one["side"]) == (64, side)]


CLAIMS = {
    "README.md": {
        "A byte language model of {} million parameters": [
            sum(weight.numel() for weight in ByteTransformer().parameters()) / 1e6
        ],
        "a step of AdamW takes {} ms on a GPU, one of Muon takes {} times as long and one of SOAP {} times": [
            on_gpu("byte_lm_8k", "adamw"),
            gpu("muon", "byte_lm_8k"),
            gpu("soap", "byte_lm_8k"),
        ],
        "On a policy gradient SOAP ends {} times as high": [beside("soap", "policy_gradient")],
    },
    "docs/lessons.md": {
        "The budget of a step is {}** times the dearest phase. With 1.2 SOAP ends {} lower": [
            Staggered().headroom,
            loss("soap_byte_lm", "soap") - loss(GRID, "soap"),
        ],
        "within {} % of the best of [a sweep]": [100 * (damped("kfac") - 1)],
        "They grow by {} a sample": [GROWTH],
        "On a language model it ends {} % lower": [100 * (1 - labels("empirical") / labels("sampled"))],
        "It wins {} % (byte language model) and {} to {} % (autoencoder) at power 2": [
            whitened("byte_lm", 0.01),
            *(of(whitened("autoencoder", 0.01, seed) for seed in range(3)) for of in (min, max)),
        ],
        "ends the byte language model {} % lower at equal steps, each at its best rate": [
            lower("byte_lm", 0.01, of=0.005, polish=True)
        ],
        "language model {} to {} % and the autoencoder {} to {} % lower at equal steps, for {} and {} times the time": [
            *wins("byte_lm", 0.005, 0.01),
            *wins("autoencoder", 0.01),
            *(longer_by("whiten", problem, run=1) for problem in ("byte_lm", "autoencoder")),
        ],
        "From 25 on the byte language model ends {} % higher; from 100 on {} % lower, and the autoencoder {} %": [
            -lower("byte_lm", 0.005, start=25),
            lower("byte_lm", 0.005, start=100),
            -lower("autoencoder", 0.01, start=100),
        ],
        "Tiles of 256 make K-FAC's step on SGD {}x instead of {}x": [
            mean_step(WIDE, f"kfac_sgd{tiles}", "sgd", steps=200) for tiles in (":cap=256", "")
        ],
        "So {}x at 1,024 tokens is {}x at 8,192": [step(STEPS, "soap"), mean_step("one_process_byte_lm_8k", "soap")],
        "most of the step: {}x on the autoencoder": [mean_step(SMALL, "soap")],
        "much cheaper: {}x SGD's": [mean_step(WIDE, "kfac_sgd", "sgd", steps=200)],
        "is {} times as fast and more at sides of 16": [min(single(16))],
    },
    "docs/when-not.md": {
        "end {} (SOAP, Muon, EKFAC) to {} times (Shampoo) as high as AdamW, three seeds; K-FAC ends at {} of": [
            mean(beside(method, "policy_gradient") for method in ("soap", "muon", "ekfac")),
            beside("shampoo", "policy_gradient"),
            beside("kfac", "policy_gradient"),
        ],
        "they end {} times as high as AdamW, at three times its rate Muon {} times": [
            beside("muon", "rare_features"),
            worst("muon", "rare_features", 3.0),
        ],
        "[between {} and {}]": [of(beside(method, "fine_tuning") for method in NAMES) for of in (min, max)],
    },
}
#: What is set, and not measured.
GIVEN = {
    "docs/lessons.md": ["With 1.2 SOAP", "with 1.05 a little higher"],
    "docs/tutorials/from-adamw.md": [".9 and .95 were used in", "where .999 ended higher", "1.5 to 3 times it"],
}
