"""Claims of docs/how-to/: thresholds are those of the code."""

from inspect import signature
from statistics import mean

from lightning_so import SaddleEscape
from lightning_so.monitor.health import ALWAYS, SIGMOID_END, TANH_END
from lightning_so.recording.levels import COLLAPSED, DEAD, EXPLODING, SATURATED
from lightning_so.report.verdict.curvature import EDGE, FALLS, OVER
from lightning_so.report.verdict.ranks import SHARE, SLOW
from tests.support.results import line, lines


def product(backend: str, part: str) -> float:
    """What a product in a plain model comes to, by how it is taken."""
    return line("products", setting="eager", backend=backend)[part]


def mode(problem: str, **options: object) -> float:
    """The mean final loss of SOAP over seeds where curvature holds less."""
    wanted = {"problem": problem, "method": "soap", "options": options}
    return mean(one["final_loss"] for one in lines("memory_modes") if wanted.items() <= one.items())


def modes(**options: object) -> list[float]:
    """The same on both problems."""
    return [mode(problem, **options) for problem in ("byte_lm", "autoencoder")]


def beside_adamw(method: str, text: str) -> float:
    """Bytes a byte of the parameters between steps, AdamW's moments apart."""
    return line("memory_held", method=method, mode=text)["between"] - 2


LEAN, HALF, BOTH = "Memory()", "Memory(half=True)", "Memory(half=True, sides='short')"

CLAIMS = {
    "docs/how-to/memory.md": {
        "SOAP with `half=True` comes to {} bytes a byte of the parameters, and to {} in full": [
            line("memory_held", method="soap", mode=mode)["inside"] for mode in (HALF, "in full")
        ],
        "| SOAP | + {} | + {} | + {} | + {} |": [beside_adamw("soap", each) for each in ("in full", LEAN, HALF, BOTH)],
        "| K-FAC, Shampoo | + {} | + {} |": [beside_adamw("kfac", each) for each in ("in full", LEAN)],
        "| Muon | + {} | {} |": [beside_adamw("muon", each) for each in ("in full", LEAN)],
        "| in full | {} | {} |": modes(),
        "| `half=True` | {} | {} |": modes(half=True),
        '| `sides="short"` | {} | {} |': modes(sides="short"),
        "| both | {} | {} |": modes(half=True, sides="short"),
    },
    "docs/how-to/report.md": {
        "| {} % of its units are zero for every sample": [100 * DEAD],
        "the same of {} % at the ends": [100 * SATURATED],
        "an effective rank below {} of 8 units or more": [COLLAPSED],
        "a root mean square above {}:": [EXPLODING],
        "takes one rank {} times what it takes the others, and {} % of a step": [SLOW, 100 * SHARE],
        "more than {} times `max_overhead`; ten times the usual age; more than {} % of solves": [OVER, 100 * FALLS],
        "the largest eigenvalue {} times above 2": [EDGE],
    },
    "docs/how-to/watching-curvature.md": {
        "more than {} % of the units of a layer": [100 * DEAD],
        "more than {} % of them are above {} in a tanh, or outside {} to {} in a sigmoid, for {} % of the samples": [
            100 * SATURATED,
            TANH_END,
            SIGMOID_END,
            1 - SIGMOID_END,
            100 * ALWAYS,
        ],
        "vary in less than {} directions": [COLLAPSED],
        "An exact product costs {} gradients, a forward difference {} (": [
            product("double backward", "gradients"),
            product("forward difference", "gradients"),
        ],
        "right to {} along a random vector": [product("forward difference", "error")],
        "differ by less than {} % are products taken": [100 * signature(SaddleEscape).parameters["flat"].default],
    },
}
