"""Claims of benchmarks/README.md: the suite's rates, what differs there, and the seconds of other packages."""

from math import isinf
from statistics import mean

from benchmarks.anywhere import shares
from benchmarks.peers.run import TIMES
from benchmarks.peers.table import ADAMW, MUONS, targets
from benchmarks.training.table import finite
from tests.support.results import beside, line, peers, suite

PAGE = "benchmarks/README.md"


def rates(problem: str) -> dict[str, list[float]]:
    """A row of tuned rates: steps, rate and loss of AdamW and SGD, AdamW's CPU seconds."""
    adamw, sgd = (line("tuned", problem=problem, method=method) for method in ("adamw", "sgd"))
    row = [adamw["steps"], *(value for one in (adamw, sgd) for value in (one["rate"], min(one["losses"], key=finite)))]
    return {f"| `{problem}` | {{}} | {{}}, {{}} | {{}}, {{}} | {{}} |": [*row, adamw["cpu_seconds"]]}


def diverged(method: str, times: float) -> int:
    """On how many problems of the suite a method's loss is not finite."""
    found = [shares.losses(suite().at(problem, method, times)) for problem in suite().problems]
    return sum(any(map(isinf, losses)) for losses in found)


def over(problem: str) -> tuple[float, float]:
    """Heavyball's SOAP beside ours: its loss and its step, over ours."""
    theirs, ours = (peers(problem)[name] for name in ("heavyball_soap", "soap"))
    assert theirs.over_adamw is not None
    assert ours.over_adamw is not None
    return theirs.best.loss / ours.best.loss, theirs.over_adamw / ours.over_adamw


def to_muon(problem: str, *names: str) -> list[float]:
    """CPU seconds to torch Muon's final loss, over those of its whole training."""
    found = peers(problem)
    muon = min((found[name] for name in MUONS), key=lambda sweep: sweep.best.loss)
    whole = mean(run["curve"]["seconds"][-1] for run in muon.best.runs)
    goal = targets(found)["torch Muon"]
    return [mean(found[name].best.reached("seconds", goal)) / whole for name in names]


def lowest_of_seed_0() -> float:
    """Of all contenders and rates on the CNN: AdamW's at 3e-2."""
    found = {
        (name, rate.lr): finite(run["final_loss"])
        for name, sweep in peers("cnn").items()
        for rate in sweep.rates
        for run in rate.runs
        if run["seed"] == 0 and "final_loss" in run
    }
    assert min(found, key=found.__getitem__) == (ADAMW, 0.03)
    return found[ADAMW, 0.03]


POLICY = [beside(method, "policy_gradient") for method in ("soap", "muon", "ekfac", "shampoo")]
BYTES, CODE = over("byte_lm"), over("autoencoder")
CLAIMS = {
    PAGE: {
        **{text: row for problem in suite().problems for text, row in rates(problem).items()},
        "bold is worse than {}": [1 + shares.EQUAL],
        "the others end {} to {} times as high. Its data": [min(POLICY), max(POLICY)],
        "SGD at x3 of its rate diverges on {} problems": [diverged("sgd", 3.0)],
        "heavyball's SOAP ends {} % below ours, at {} times its step": [100 * (1 - BYTES[0]), BYTES[1]],
        "heavyball's SOAP {} % behind at {} times its step": [100 * (CODE[0] - 1), CODE[1]],
        "the edge of its sweep, ended lowest of all ({})": [lowest_of_seed_0()],
        "takes {}, K-FAC {}, Shampoo {}, SOAP {}, EKFAC {}, heavyball's Muon {}; on the autoencoder": to_muon(
            "byte_lm", "muon", "kfac", "shampoo", "soap", "ekfac", "heavyball_muon"
        ),
        "on the autoencoder K-FAC {}, SOAP {}, EKFAC {};": to_muon("autoencoder", "kfac", "soap", "ekfac"),
        "on the CNN Shampoo {}, SOAP {}, heavyball's Muon {}.": to_muon("cnn", "shampoo", "soap", "heavyball_muon"),
        "for everyone: {}, {}, {}, {} and {} times a middle": sorted(TIMES),
    }
}
#: What is set, and not measured.
GIVEN = {PAGE: ["AdamW's betas are .9 and .95, its decay .01"]}
