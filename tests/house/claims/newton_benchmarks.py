"""Claims of benchmarks/README.md: Newton's methods, by their lines."""

from itertools import pairwise
from math import inf
from statistics import mean, median
from typing import Any

from benchmarks.newton.nystrom import SETTINGS
from benchmarks.newton.whole_batch import tuned
from tests.house.claims.benchmarks import PAGE
from tests.house.claims.newton import ADAM, DIAGONAL, needs, row, sketched
from tests.support.results import line, lines, loss, trained

WHOLE = "whole_batch_150"
#: Of K-FAC with products, by what the page calls it.
PRODUCTS = {
    "`KFAC()` + `QuadraticModel()`": "K-FAC + model, l adapts",
    "damping from 1": "K-FAC + model, l adapts, from 1",
    "damping 1, not adapted": "K-FAC + model, l fixed at 1",
    "`QuadraticModel()` alone, from 1": "quadratic model alone",
    "constant curvature, from 1": "K-FAC + model, constant curvature, from 1",
}
ADAHESSIAN = {
    "AdamW": "AdamW",
    "`AdaHessian()`": "AdaHessian()",
    "`AdaHessian(every=4)`": "AdaHessian(every=4)",
    '`AdaHessian("diagonal")`': "AdaHessian('diagonal')",
    '`AdaHessian(curvature="constant")`': "AdaHessian(curvature='constant')",
    "`Sophia()`": "Sophia()",
}
BEST, MEANS, ENDS = tuned(lines(WHOLE))
BELOW, ABOVE = max(rate for rate in MEANS if rate < BEST), min(rate for rate in MEANS if rate > BEST)


def with_products(variant: str) -> list[float]:
    """Losses by seed, gradients, mean seconds."""
    ends = [line("levenberg", variant=variant, seed=seed)["curve"][-1] for seed in range(3)]
    return [*(end[3] for end in ends), ends[0][1], mean(end[2] for end in ends)]


def ranged(method: str) -> list[float]:
    """A row with the range of evaluations over seeds."""
    steps, evaluations, seconds, spike = row(method)
    found = evaluated(method)
    return [steps, evaluations, min(found), max(found), seconds, spike]


def evaluated(method: str, seeds: int = 3) -> list[float]:
    """Evaluations, by seed."""
    return [needs(WHOLE, method, [seed])[1] for seed in range(seeds)]


def spikes(part: str) -> list[float]:
    """Largest over median of whole solves, by run: of seconds, or of evaluations of a step."""
    found = []
    for one in lines(WHOLE):
        if one["method"] == "NewtonCG()" and "losses" in one:
            values = one[part]
            if part == "evaluations":
                values = [after - before for before, after in pairwise(values)]
            found.append(max(values) / median(values))
    return found


def nystrom(setting: str, method: str, seeds: int = 3) -> list[list[float]]:
    """The best rate with steps by seed, and evaluations."""
    runs = [one for one in lines("nystrom") if (one["setting"], one["method"]) == (setting, method)]
    by_rate = {
        rate: [one["steps"] or inf for one in runs if one["rate"] == rate] for rate in {one["rate"] for one in runs}
    }
    rate = min(by_rate, key=lambda rate: median(by_rate[rate]))
    return [
        [rate, *sketched(setting, method, rate)[:seeds]],
        sketched(setting, method, rate, "evaluations")[:seeds],
    ]


def both(method: str) -> list[float]:
    """A row of Nystrom: all images, and batches."""
    return [one for setting in ("all images", "100 images") for part in nystrom(setting, method) for one in part]


def tuned_alike(variant: str) -> list[float]:
    """A row of AdaHessian: rates, the best of those with all seeds, losses, gradients besides, milliseconds."""
    runs = [one for one in lines("adahessian") if one["variant"] == variant]
    by_rate: dict[float, dict[int, dict[str, Any]]] = {}
    for one in runs:
        by_rate.setdefault(one["rate"], {})[one["seed"]] = one
    losses = {rate: [of[seed]["loss"] for seed in range(3)] for rate, of in by_rate.items() if len(of) == 3}
    best = min(losses, key=lambda rate: median(losses[rate]))
    return [
        len(by_rate),
        min(by_rate),
        max(by_rate),
        best,
        *losses[best],
        mean(losses[best]),
        by_rate[best][0]["scalars"].get("curv/evaluations", 0),
        1e3 * median(one["seconds_a_step"] for one in runs),
    ]


(ALONE_MNIST,) = [cell for cell in trained("grid_autoencoder_mnist") if cell.label == "kfac_sgd"]
ZERO, ZERO_SGD, ZERO_HUNDRED, ZERO_HUNDRED_SGD = (
    nystrom(f"{images} images from zero", method, seeds)
    for images, seeds in (("all", 1), ("100", 3))
    for method in ("Nystrom()", "alone")
)
CLAIMS = {
    PAGE: {
        "K-FAC on SGD ends at {} to {}, K-FAC on AdamW at {}, both": [
            min(ALONE_MNIST.finals),
            max(ALONE_MNIST.finals),
            loss("grid_autoencoder_mnist", "kfac"),
        ],
        **{f"| {said} | {{}}, {{}}, {{}} | {{}} | {{}} |": with_products(name) for said, name in PRODUCTS.items()},
        "best of six rates ({}, {}, {} at {}; {} at {}, {} at {})": [
            *ENDS.values(),
            BEST,
            MEANS[BELOW],
            BELOW,
            MEANS[ABOVE],
            ABOVE,
        ],
        "over a whole run of them {} to {}, in evaluations {} to {})": [
            of(spikes(part)) for part in ("seconds", "evaluations") for of in (min, max)
        ],
        "| Adam at {} | {} | {} | {} | {} |": [BEST, *row(ADAM[WHOLE])],
        **{
            f"| `{method}` | {{}} | {{}} ({{}} to {{}}) | {{}} | {{}} |": ranged(method)
            for method in (
                "NewtonCG()",
                "NewtonCG(slice=5)",
                "NewtonCG(slice=10)",
                "NewtonCG(slice=10, damping=0.1)",
                "SaddleFreeKrylov()",
            )
        },
        "One iteration a step: {} and {} evaluations, two seeds": evaluated("NewtonCG(slice=1)", 2),
        "(`iterations=10`): {} on seed 0, where {} are enough": [
            evaluated(f"NewtonCG(slice=10{option})", 1)[0] for option in (", iterations=10", "")
        ],
        "the last `NewtonCG` row is {} ({} to {})": [of(evaluated(DIAGONAL)) for of in (mean, min, max)],
        "Steps to {} times the least loss of all images, {} times with batches of 100": [
            1 + share for _, share in list(SETTINGS.values())[:2]
        ],
        "torch's start (budget 4,000; 1,000) | {}: {}, {}, {} | the same | {}: {}, {}, {} | the same |": [
            *nystrom("all images", "alone")[0],
            *nystrom("100 images", "alone")[0],
        ],
        **{
            f"| `{method}` |{' {}: {}, {}, {} | {}, {}, {} |' * 2}": both(method)
            for method in ("Nystrom()", "Nystrom(every=20)", "Nystrom(every=10)")
        },
        "| `Nystrom(rank=20)` | {}: {}, {}, {} | {}, {}, {} | not run |": [
            one for part in nystrom("all images", "Nystrom(rank=20)") for one in part
        ],
        "| SGD from zero | {}: {} (nothing is random) | the same | {}: {}, {}, {} | the same |": [
            *ZERO_SGD[0],
            *ZERO_HUNDRED_SGD[0],
        ],
        "| `Nystrom()` from zero | {}: {}; at 1: {} | {}; {} | {}: {}, {}, {} | {}, {}, {} |": [
            *ZERO[0],
            *(
                sketched("all images from zero", "Nystrom()", rate, part)[0]
                for rate, part in ((1.0, "steps"), (3.0, "evaluations"), (1.0, "evaluations"))
            ),
            *ZERO_HUNDRED[0],
            *ZERO_HUNDRED[1],
        ],
        **{
            f"| {said} | {{}}, {{}} to {{}} | {{}} | {{}}, {{}}, {{}} | {{}} | {{}} | {{}} |": tuned_alike(name)
            for said, name in ADAHESSIAN.items()
        },
    }
}
#: What is set, and not measured.
GIVEN = {
    PAGE: [
        "SGD's rates: .003, .01, .03 (from zero .01 alone on all images; .003 to .1 in batches)",
        "Batches from torch's start: .01, .03, .1, where .01 is best for all",
    ]
}
