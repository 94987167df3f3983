"""A forecast in words: the verdict first, then what it rests on."""

from collections.abc import Iterator, Mapping, Sequence

from lightning_so.cli.planning.forecast import Asked, Forecast
from lightning_so.cli.planning.steps import Pace
from lightning_so.core.checkpoint.checkpoint import KINDS
from lightning_so.core.plan.table import amount


def verdict(asked: Asked, found: Forecast, limit: float | None, pace: Pace | None) -> str:
    """The first line.

    Args:
        asked: What the plan is for.
        found: The forecast.
        limit: Bytes of a rank's device; None where they are not known.
        pace: Lengths of steps; None where they are not known.

    Returns:
        Whether it fits, and how long a step is.
    """
    least = amount(found.most)
    if limit is None:
        fits = f"needs {least} a rank (give --gpu_mem to have it compared)"
    elif found.most <= limit:
        fits = f"fits: {least} of {amount(limit)} a rank"
    else:
        fits = f"does not fit: at least {least} a rank, of {amount(limit)}"
    return f"{fits}; {said(pace)}. {asked.what}, {_ranks(asked)}, activations apart."


def said(pace: Pace | None) -> str:
    """How long a step is against the training's own."""
    if pace is None:
        return "the length of a step is not known (give --tokens, or --measure with data)"
    return f"the mean step takes {pace.mean:.2f}x the training's own, the largest {pace.largest:.2f}x"


def _ranks(asked: Asked) -> str:
    world = asked.world
    where = "CPU" if asked.device.type == "cpu" else "GPU"
    if world.ranks == 1:
        return f"one {where}"
    return f"{world.nodes} x {world.gpus} {where}s, {world.strategy}"


def remedy(words: str, most: float, limit: float) -> str:
    """The line of what to change."""
    return f"  -> fits with {words}: {amount(most)} of {amount(limit)} a rank"


def cheaper(method: str, pace: Pace) -> str:
    """The line of another method, by its pace."""
    return f"  -> cheaper with {method}: the mean step takes {pace.mean:.2f}x"


def refused(why: str) -> str:
    """The line of why a training was not timed itself."""
    return f"  -> single products and solves are timed, not steps of the training: {why.removeprefix('--measure: ')}"


#: What to do where steps are dear and no method is cheaper.
SHORT = (
    "  -> steps are short for the work on matrices: give more rows a step, or max_overhead=0.2, a share to keep within"
)


def report(asked: Asked, found: Forecast, pace: Pace | None, how: str) -> Iterator[str]:
    """Everything below the verdict.

    Args:
        asked: What the plan is for.
        found: The forecast.
        pace: Lengths of steps; None where they are not known.
        how: How they were found out.

    Yields:
        Lines.
    """
    yield ""
    yield from _memory(found)
    yield from _sent(asked, found)
    yield from _steps(pace, how)
    if asked.options.overhead is not None:
        yield f"max_overhead={asked.options.overhead.share:g} will change this: told is the schedule without it."
    yield from _balance(found.balance())
    yield ""
    yield "Size of a checkpoint, by SecondOrder(state=...):"
    yield from _rows({f'"{kind}"': amount(found.checkpoints[kind]) for kind in KINDS})
    for plan in found.plans:
        yield ""
        yield str(plan)


def _memory(found: Forecast) -> Iterator[str]:
    """Bytes by part of the rank that holds most, and what others hold."""
    whole = [sum(parts.values()) for parts in found.memory.values()]
    yield f"Memory of a rank{f' (rank {found.heaviest}; another has {amount(min(whole))})' * (len(whole) > 1)}:"
    parts = {part: held for part, held in found.memory[found.heaviest].items() if held}
    yield from _rows({part: amount(held) for part, held in parts.items()} | {"all": amount(found.most)})


def _sent(asked: Asked, found: Forecast) -> Iterator[str]:
    if asked.world.ranks == 1:
        return
    yield ""
    yield "Sent by a rank at a mean step:"
    yield from _rows({what: amount(sent) for what, sent in found.sent.items()})


def _steps(pace: Pace | None, how: str) -> Iterator[str]:
    yield ""
    if pace is None:
        yield "Step: not known without --tokens, or --measure with data."
        return
    own = f"{1e3 * pace.own:.1f} ms" if pace.unit == "s" else f"{pace.own:.3g} multiply-adds"
    yield f"Step, {how}: {own} of the training's own, then"
    times = {"mean": pace.mean, "median": pace.median, "largest": pace.largest}
    told = {
        name: f"{each:.3f}x" + f", {1e3 * pace.own * each:.1f} ms" * (pace.unit == "s") for name, each in times.items()
    }
    yield from _rows(told | {"largest": f"{told['largest']}, {pace.largest / pace.median:.2f} of the median step"})


def _balance(costs: Sequence[float]) -> Iterator[str]:
    if len(costs) == 1 or not sum(costs):
        return
    mean = sum(costs) / len(costs)
    yield ""
    most, least = max(costs) / mean, min(costs) / mean
    yield f"Solves over ranks: the most laden has {most:.2f} of the mean, the least {least:.2f}."


def _rows(cells: Mapping[str, str]) -> Iterator[str]:
    width = max(map(len, cells))
    yield from (f"  {name:<{width}}  {value}" for name, value in cells.items())
