"""Claims of docs/methods/few-directions.md."""

from collections.abc import Callable
from statistics import mean, median
from typing import Any

from benchmarks.curvature.captured_plots import GUESSES, KS, at
from tests.support.results import gradients, line, lines, loss

#: What a step is called on the page.
CALLED = {
    "frame": "to the extremes in the frame, k = {k}",
    "used": "as FewDirections goes in the frame, k = {k}",
    "clean": "to the extremes, gradient of all 16 batches, k = {k}",
    "krylov": "to the extremes in {k} Krylov directions",
    "method": "FewDirections(k={k}) whole, AdamW's outside the frame included",
}


def looks(problem: str, take: int = 0, since: int = 0) -> list[dict[str, Any]]:
    """Looks of both seeds."""
    wanted = {"problem": problem, "take": take}
    return [one for one in lines("captured") if wanted.items() <= one.items() and one["step"] >= since]


def middle(problem: str, *path: str) -> float:
    """The median over looks."""
    return median(at(one, path) for one in looks(problem))


def share(problem: str, k: int, of: str, *what: str) -> list[float]:
    """Percent of gradients inside."""
    return [100 * middle(problem, "k", str(k), of, one) for one in what]


def inside(k: int) -> list[float]:
    """A row of the first table."""
    return [
        percent
        for problem in ("byte_lm", "cnn")
        for percent in (
            *share(problem, k, "share", "own", "fresh", "large"),
            *share(problem, k, "share_krylov", "fresh", "large"),
        )
    ]


def rises(name: str, problem: str = "byte_lm") -> list[int]:
    """Looks after which the loss of fresh batches is higher, and looks."""
    found = [one["decrease"][name]["fresh"] < 0 for one in looks(problem)]
    return [sum(found), len(found)]


def step(kind: str, k: int) -> list[float]:
    """A row of the second table, in 1e-3 nats."""
    guess = [1e3 * middle("byte_lm", "k", str(k), GUESSES[kind])] if GUESSES[kind] else []
    name = f"{kind} {k}"
    return [*guess, *(1e3 * middle("byte_lm", "decrease", name, what) for what in ("own", "fresh")), *rises(name)]


def steps() -> dict[str, list[float]]:
    """The second table."""
    rows = {}
    for kind, called in CALLED.items():
        guess = "{}" if GUESSES[kind] else "-"
        for k in (1, 5, 10):
            rows[f"| {called.replace('{k}', str(k))} | {guess} | {{}} | {{}} | {{}} of {{}} |"] = step(kind, k)
    return rows


def biased(size: int, eta: float, *columns: str) -> list[float]:
    """What is reported for a curvature of 1."""
    return [line("bias", size=size, eta=eta)[column] for column in columns]


def reported(eta: float) -> list[float]:
    """A row of the table of biases."""
    one = biased(1, eta, "theory", "secant", "OGR(k=1)")
    return [*one, *biased(20, eta, "OGR(k=1)", "OGR(k=4)", "FewDirections(k=1)")]


def followed(take: int, k: int = 5, of: Callable[[list[float]], float] = max, end: int = 1) -> list[float]:
    """The frame's largest curvature over that of Lanczos on the large batch, or the smallest, from step 60 on."""
    seen = looks("byte_lm", take, 60)
    return [of(one["k"][str(k)]["curvatures"]) / one["lanczos"]["large"][end] for one in seen]


def top(problem: str, take: int = 0, k: int = 5) -> float:
    """How much of the top eigenvector is in the frame."""
    return median(one["k"][str(k)]["top_in_frame"] for one in looks(problem, take, 60))


def ended(take: int, seed: int = 0) -> float:
    """Loss at the last look on the byte LM."""
    return line("captured", problem="byte_lm", take=take, seed=seed, step=300)["loss"]


def probe(problem: str) -> list[float]:
    """AdamW's step in ms; what is added in percent: whole, gradients, passes; medians of ours, all and probing."""
    ours, adamw = (line("probes", problem=problem, variant=name) for name in (PROBED, "adamw"))
    added = [ours["mean_ms"] - adamw["mean_ms"], ours["besides_ms"], ours["own_ms"] - adamw["own_ms"]]
    percents = [100 * one / adamw["mean_ms"] for one in added]
    return [adamw["mean_ms"], *percents, ours["median_ms"], ours["median_of_probing_ms"]]


def passes(problem: str) -> float:
    """Percent of AdamW's step that passes add to steps that do not probe."""
    ours, adamw = (line("probes", problem=problem, variant=name) for name in (PROBED, "adamw"))
    return 100 * (ours["own_median_ms"] - adamw["own_median_ms"]) / adamw["mean_ms"]


def steps_alone(method: str) -> list[float]:
    """The largest and the least loss of AdamW from any rate on the CNN."""
    of = {"problem": "cnn", "base": "adamw", "method": method}
    found = [one["loss"] for one in lines("auto_step") if of.items() <= one.items()]
    return [max(found), min(found)]


def saved(method: str, base: str, problem: str, alone: str) -> float:
    """Gradients of the base alone over those of a method on it."""
    return gradients(problem, alone, "alone") / gradients(problem, base, method)


def damped() -> list[dict[str, Any]]:
    """K-FAC on SGD with the model, its default, by seed."""
    return [one for one in lines("levenberg") if one["variant"] == "K-FAC + model, l adapts"]


SADDLE, LINEAR, VALLEY, NOISY = "saddle of 100", "deep linear", "Rosenbrock", "noisy least squares"
PROBED = "FewDirections(k=5, every=10)"
PROBES = {
    "(40 steps, 2 repeats)": "byte_lm_8k",
    "byte LM, 1,024 tokens (80 steps, 3 repeats)": "byte_lm",
    "CNN, batch 128 (80 steps, 3 repeats)": "cnn",
}


CLAIMS = {
    "docs/methods/few-directions.md": {
        **{
            f"| {k} | {{}} % | {{}} % | {{}} % | {{}} %, {{}} % | {{}} % | {{}} % | {{}} % | {{}} %, {{}} % |": inside(
                k
            )
            for k in KS
        },
        "| AdamW | - | {} | {} | {} of {} |": [
            *(1e3 * middle("byte_lm", "decrease", "adamw", what) for what in ("own", "fresh")),
            *rises("adamw"),
        ],
        **steps(),
        "k = 5 the loss of the 16 batches ends at {}, AdamW's at {}, same seed": [ended(5), ended(0)],
        "of AdamW with other batches differ by {}.": [abs(ended(0) - ended(0, seed=1))],
        "largest curvature is {} of Lanczos' on the large batch ({} to {}), {} with its own steps ({} to {});": [
            of(followed(take)) for take in (0, 5) for of in (median, min, max)
        ],
        "{} and {} of the top eigenvector are in the frame. k = 10 is nearer ({} and {}).": [
            *(top("byte_lm", take) for take in (0, 5)),
            *(median(followed(take, 10)) for take in (0, 5)),
        ],
        "The smallest is no estimate: {} and {} of Lanczos'": [median(followed(take, 5, min, 0)) for take in (0, 5)],
        "hardly any following: {} of the top eigenvector, k = 10 {}.": [top("cnn"), top("cnn", k=10)],
        "In Rosenbrock's valley Adam needs {}, FewDirections {} behind Adam and {} behind SGD": [
            gradients(VALLEY, "Adam", "alone"),
            gradients(VALLEY, "Adam", "FewDirections(k=2)"),
            gradients(VALLEY, "SGD 0.9", "FewDirections(k=2, every=1)"),
        ],
        "at every step, OGR {}, QuadraticModel {}; constant": [
            gradients(VALLEY, "Adam", "OGR(k=2)"),
            gradients(VALLEY, "SGD 0", "QuadraticModel()"),
        ],
        "SGD needs {}, FewDirections(k=5) behind it {}, OGR(k=5) {} (constant strides: never, and {})": [
            gradients(SADDLE, "SGD 0.99", "alone"),
            *(gradients(SADDLE, "SGD 0.9", f"{name}(k=5)") for name in ("FewDirections", "OGR")),
            gradients(SADDLE, "SGD 0.9", "OGR(k=5, curvature=constant)"),
        ],
        "but Adam alone {}, and OGR": [gradients(SADDLE, "Adam", "alone")],
        "OGR(k=5) behind Adam {}, which a constant stride does as well ({})": [
            gradients(SADDLE, "Adam", f"OGR(k=5{option})") for option in ("", ", curvature=constant")
        ],
        "in the valley: there {} of Adam's.": [1 / saved("OGR(k=2)", "Adam", VALLEY, "Adam")],
        "`OGR(k=5)` needs {} to {} of them": [
            of(1 / saved("OGR(k=5)", "Adam", problem, "Adam") for problem in (SADDLE, LINEAR, NOISY))
            for of in (min, max)
        ],
        "{}x (`FewDirections(k=5)`) and {}x (`OGR(k=5)`) over SGD 0.9 at the saddle of 100, but {}x and {}x in": [
            saved(f"{name}(k=5)", "SGD 0.9", problem, "SGD 0.9")
            for problem in (SADDLE, LINEAR)
            for name in ("FewDirections", "OGR")
        ],
        "(AdamW alone {} to {}, with it {} to {})": [*steps_alone("alone"), *steps_alone("AutoStep")],
        "autoencoder ends at {} (mean of three seeds)": [mean(one["curve"][-1][3] for one in damped())],
        "with all of these tuned at {}, K-FAC on AdamW at {}; but at {} gradients": [
            loss("grid_autoencoder_mnist", "kfac_sgd"),
            loss("grid_autoencoder_mnist", "kfac"),
            mean(one["curve"][-1][1] / one["curve"][-1][0] for one in damped()),
        ],
        "(two AdamW differ by {} to {} %)": [
            100 * of(abs(one["to_adamw"] - 1) for one in lines("probes") if one["variant"] == "adamw again")
            for of in (min, max)
        ],
        **{
            f"{said} | {{}} ms | **+{{}} %** | {{}} % | {{}} % | {{}}, {{}} ms |": probe(problem)
            for said, problem in PROBES.items()
        },
        "the passes at every step cost {} % by themselves": [passes("byte_lm")],
        **{
            f"| {said} | {{}} | {{}} | {{}} | {{}} | {{}} | {{}} |": reported(eta)
            for said, eta in ((".01", 0.01), (".1", 0.1), ("1", 1.0))
        },
    },
}
#: What is set, and not measured.
GIVEN = {"docs/methods/few-directions.md": ["| .01 |"]}
