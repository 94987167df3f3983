"""Claims of benchmarks/README.md: trainings that are killed and resumed."""

from tests.house.claims.benchmarks import PAGE
from tests.support.results import lines


def resumed(*methods: str, first: bool) -> list[bool]:
    """Whether they ended equal, of the first seed or of others."""
    runs = [one for one in lines("compare") if one["method"] in methods and (one["seed"] == 0) == first]
    return [one["weights_equal"] and one["state_equal"] for one in runs]


FIRST = resumed("soap", "muon", first=True)
CLAIMS = {
    PAGE: {
        "(`compare.jsonl`, with {} later ones and {} of K-FAC)": [
            len(resumed("soap", "muon", first=False)),
            len(resumed("kfac", "kfac_sgd", first=False)),
        ],
        "{} of {} runs ended with the weights and the state": [sum(FIRST), len(FIRST)],
    }
}
