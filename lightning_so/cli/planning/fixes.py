"""What to change where a training does not fit, the least change first."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial

from lightning_so.cli.planning.forecast import Asked, Forecast, forecast, holds
from lightning_so.cli.planning.rehearsal import on_device
from lightning_so.cli.planning.steps import Pace
from lightning_so.contract.known import KNOWN
from lightning_so.contract.memory import Memory
from lightning_so.contract.method import Method
from lightning_so.core.options import Options
from lightning_so.core.plan.mixture import Mixture
from lightning_so.errors import ConfigError

#: The smallest cap that is proposed.
SMALLEST = 128
#: Above this many times the training's own step another method is looked at; and to which share of what is above one
#: it must come down.
DEAR, GAIN = 1.5, 0.7
#: Of how many times as many ranks it is asked whether they are enough.
MORE = (2, 4, 8)


def fix(asked: Asked, found: Forecast, limit: float) -> tuple[str, int] | None:
    """The first change after which a training fits.

    Args:
        asked: What the plan is for.
        found: What it holds as it is.
        limit: Bytes of a rank's device.

    Returns:
        What to say, and the bytes that are held then; None if no change helps.
    """
    for words, other in _changes(asked, found, limit):
        try:
            most = holds(other)
        except ConfigError:
            continue  # A method that cannot be put before this optimizer is no way out.
        if most <= limit:
            return words, most
    return None


def cheaper(asked: Asked, pace: Pace) -> Pace | None:
    """The pace with Muon, if it is well below that of a plan, in the same unit of the model.

    Args:
        asked: What the plan is for.
        pace: As it is, by the model.

    Returns:
        The pace; None if it is no way out.
    """
    try:
        found = forecast(_muon(asked)).modelled()
    except ConfigError:
        return None
    return found if found is not None and found.mean - 1 < GAIN * (pace.mean - 1) else None


def _muon(asked: Asked) -> Asked:
    memory = asked.options.memory and Memory()  # It has no bases that others' modes are of.
    return replace(asked, options=replace(asked.options, mixture=Mixture.of(KNOWN["muon"]()), memory=memory))


def _changes(asked: Asked, found: Forecast, limit: float) -> Iterator[tuple[str, Asked]]:
    muon = _muon(asked)
    if asked.options.memory is None:
        yield "memory=Memory()", replace(asked, options=replace(asked.options, memory=Memory()))
        yield "memory=Memory(half=True)", replace(asked, options=replace(asked.options, memory=Memory(half=True)))
    if asked.world.ranks > 1 and not asked.world.sharded:
        for share in (0.5, 0.0):
            memory = replace(asked.options.memory or Memory(), share=share)
            yield f"memory=Memory(share={share:g})", replace(asked, options=replace(asked.options, memory=memory))
    held = found.memory[found.heaviest]
    # Tiles change these alone.
    if found.most - sum(held[part] for part in ("factors", "bases and roots", "temporary")) <= limit:
        for cap, options in _caps(asked):
            yield f"cap={cap}", replace(asked, options=options)
        yield "Muon in its place (--method=muon)", muon
    ranks = asked.world.ranks
    if ranks > 1 and asked.world.strategy != "fsdp":
        sharded = asked.world.under("fsdp")
        yield "pieces of parameters (--strategy=fsdp)", replace(asked, world=sharded)
    if ranks > 1:
        yield "Muon and --strategy=fsdp", replace(muon, world=asked.world.under("fsdp"))
    for more in MORE:
        world = replace(asked.world, gpus=asked.world.gpus * more, strategy="fsdp")
        yield f"--strategy=fsdp over {world.ranks} ranks (--gpus={world.gpus})", replace(asked, world=world)


def _caps(asked: Asked) -> Iterator[tuple[int, Options]]:
    """Smaller tiles, by halves."""
    if asked.options.mixture is None:
        return
    mixture = on_device(asked.options.mixture, asked.device)
    sizes = [_cap(method) for method in mixture.rules.values() if not isinstance(method, str)]
    cap = max((size for size in sizes if size is not None), default=0) // 2
    while cap >= SMALLEST:
        yield cap, replace(asked.options, mixture=mixture.each(partial(_capped, cap)))
        cap //= 2


def _cap(method: Method) -> int | None:
    return getattr(method, "cap", None)


def _capped(cap: int, method: Method) -> Method:
    has = is_dataclass(method) and "cap" in {each.name for each in fields(method)}
    return replace(method, cap=cap) if has else method  # type: ignore[type-var]
