"""What a test has trained, noted by the recipes where a training ends, and what was refused.

`tests.support.compatibility` makes a table of it. Ranks of a pool send their notes along with their answers
(`tests.support.world`). Plain Python: any process can import it.
"""

import re
from typing import Any, NamedTuple

TRAINER, LOOP = "Trainer", "plain loop"
#: Strategies by their name in `tests.support.trainings`.
STRATEGIES = {
    "one": "one process",
    "ddp": "DDP",
    "ddp_so": "DDP (ddp_so)",
    "fsdp2": "FSDP2",
    "hsdp": "FSDP2 with replicas",
    "fsdp1": "FSDP1",
    "fsdp1 by hand": "FSDP1",
    "hsdp1": "FSDP1 with replicas",
    **{f"zero{stage}": f"DeepSpeed ZeRO-{stage}" for stage in range(4)},
}


class Ran(NamedTuple):
    """A training that has come to its end."""

    #: The method's class, or Mixture.
    method: str
    #: The base optimizer's class.
    base: str
    #: One of the values of `STRATEGIES`.
    strategy: str
    #: As the Trainer calls it; 64-true where the parameters are in float64.
    precision: str
    #: What came on top, in order of the alphabet.
    options: tuple[str, ...]
    #: `TRAINER` or `LOOP`.
    loop: str


class Refused(NamedTuple):
    """What cannot be; an empty field is any."""

    method: str
    base: str
    strategy: str
    precision: str
    #: An option of the training, of the strategy or of the model.
    option: str
    #: The first sentence of the error.
    reason: str


#: What was noted since it was last taken, in order.
NOTES: dict[Ran | Refused, None] = {}
_used: set[str] = set()


def ran(engines, strategy: str, loop: str = TRAINER, precision: str | None = None, **options: Any) -> None:
    """Note a training, at its end.

    Args:
        engines: The engines that took part.
        strategy: A key of `STRATEGIES`.
        loop: Who has trained.
        precision: The Trainer's; what the parameters say by default.
        options: Names of options, with underscores, and whether (or how) they were on.
    """
    for engine in engines:
        dtypes = {str(p.dtype) for p in engine.host.params}
        exact = "64-true" if "torch.float64" in dtypes else "bf16-true" if "torch.bfloat16" in dtypes else "32-true"
        more = {
            "parameter groups": len(engine.host.groups) > 1,
            "lag=1": engine.options.lag,
            "sharding='local'": engine.host.access.local,
            "compile": any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in engine.host.model.modules()),
            **{name.replace("_", " "): on for name, on in options.items()},
            **dict.fromkeys(_used, True),
        }
        methods = {type(method).__name__ for method in engine.parts.methods}
        names = [cls.__name__ for cls in type(engine.optimizer).__mro__ if cls.__module__.startswith("torch.optim.")]
        NOTES[
            Ran(
                methods.pop() if len(methods) == 1 else "Mixture",
                names[0],
                STRATEGIES[strategy],
                exact if exact == "64-true" else precision or exact,
                tuple(sorted(name for name, on in more.items() if on)),
                loop,
            )
        ] = None
    _used.clear()


def trained(trainer, engines, strategy: str) -> None:
    """Note a training of a Trainer, at its end.

    Args:
        trainer: The Trainer.
        engines: SecondOrder's.
        strategy: A key of `STRATEGIES`.
    """
    clip, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    by_value = getattr(algorithm, "value", algorithm) == "value"
    on = {
        "accumulation": trainer.accumulate_grad_batches > 1,
        "clipping": clip and not by_value,
        "clipping_by_value": clip and by_value,
        "resume": trainer.ckpt_path,
    }
    ran(engines, strategy, TRAINER, str(trainer.precision), **on)


def refused(error, *, method="", base="", strategy="", precision="", option="") -> None:
    """Note a refusal.

    Args:
        error: What was raised: the error, pytest's word of it, or its text.
        method: The method's class, where others are not refused.
        base: The base optimizer, likewise.
        strategy: The beginning of a value of `STRATEGIES`, or another strategy, likewise.
        precision: The Trainer's, likewise.
        option: What was asked for besides.
    """
    first = re.split(r"(?<=\.)\s+(?=[A-Z])|\n", str(getattr(error, "value", error)))[0]
    NOTES[Refused(method, base, strategy, precision, option, first)] = None


def checkpoint(*arguments, **named):
    """Torch's activation checkpointing, noted for the training that ends next."""
    from torch.utils import checkpoint as torchs

    _used.add("activation checkpointing")
    return torchs.checkpoint(*arguments, **named)


def taken() -> list[Ran | Refused]:
    """All notes; they are gone then."""
    found = list(NOTES)
    NOTES.clear()
    _used.clear()
    return found


def add(notes) -> None:
    """Add what another process has noted."""
    NOTES.update(dict.fromkeys(notes))
