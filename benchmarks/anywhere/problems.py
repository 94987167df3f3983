"""The problems of the suite by name, and the rates that AdamW and SGD were tuned to on each: `tuned.jsonl` has them."""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.anywhere.cartpole import policy_gradient
from benchmarks.anywhere.equations import deep_linear, poisson
from benchmarks.anywhere.identifiers import rare_features
from benchmarks.anywhere.images import bernoulli_pixels, classify_mean, classify_sum, residual, vision_transformer
from benchmarks.anywhere.molecules import molecular_graphs
from benchmarks.anywhere.photographs import squares_mean, squares_sum
from benchmarks.anywhere.recurrent import lstm, tanh_rnn
from benchmarks.anywhere.text import fine_tuning, transformer
from benchmarks.shared.problems import Problem

TUNED = Path(__file__).with_name("results") / "tuned.jsonl"

KINDS = (classify_mean, classify_sum, bernoulli_pixels, squares_mean, squares_sum, transformer, residual)
KINDS += (vision_transformer, lstm, tanh_rnn, molecular_graphs, poisson, deep_linear, rare_features, fine_tuning)
KINDS += (policy_gradient,)
PROBLEMS: dict[str, Callable[[], Problem]] = {make.__name__: make for make in KINDS}


def load(name: str) -> Problem:
    """Build the problem called `name`.

    Raises:
        KeyError: No such problem.
    """
    if name not in PROBLEMS:
        raise KeyError(f"no problem {name!r}; there are: {', '.join(PROBLEMS)}")
    return PROBLEMS[name]()


def base(method: str) -> str:
    """The optimizer under a method, whose rate it takes and to which it is compared."""
    return "sgd" if method.split("_")[-1] == "sgd" else "adamw"


def read_tuned(path: Path = TUNED) -> dict[tuple[str, str], float]:
    """The rates of a file by problem and optimizer; of several lines of one the last counts."""
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    return {(line["problem"], line["method"]): line["rate"] for line in lines}


def tuned(name: str, method: str, path: Path = TUNED) -> float:
    """The rate of a method's base on a problem.

    Raises:
        KeyError: It was not tuned there.
    """
    rates = read_tuned(path)
    if (name, base(method)) not in rates:
        raise KeyError(
            f"{path} has no rate of {base(method)} on {name!r}: "
            f"python -m benchmarks.anywhere.tune --problems {name} --methods {base(method)} finds one"
        )
    return rates[name, base(method)]
