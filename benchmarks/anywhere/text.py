"""The byte transformer: from scratch on Python's standard library, and from there to the English of its manual."""

import os
import pydoc_data.topics
import sys
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.anywhere.drawing import generator
from benchmarks.shared.loop import trained
from benchmarks.shared.methods import Settings, build
from benchmarks.shared.problems import Problem, byte_lm
from examples.byte_lm import ByteTransformer

#: Of the transformer that is trained first: steps, AdamW's rate.
BEFORE, RATE, SEED = 600, 3e-3, 17
CONTEXT, BATCH = 64, 16

make = partial(ByteTransformer, d=96)


def transformer() -> Problem:
    """The next byte of the standard library's source."""
    return replace(byte_lm("transformer"), steps=160)


@cache
def manual() -> Tensor:
    """The texts of Python's `help()`, as bytes."""
    topics = pydoc_data.topics.topics
    return torch.frombuffer(bytearray("".join(topics[key] for key in sorted(topics)).encode()), dtype=torch.uint8)


def folder() -> Path:
    """Where what was trained first is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lightning_so_benchmarks"


def pretrained() -> dict[str, Tensor]:
    """Weights of the transformer after AdamW on the standard library: from the cache, or trained and put there."""
    python = ".".join(map(str, sys.version_info[:2]))
    kept = folder() / f"byte_transformer_96_{BEFORE}_steps_python{python}_torch{torch.__version__}.pt"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        source = byte_lm("source", make=make)
        model = source.model(SEED)
        trained(source, model, build("adamw", model, Settings(RATE, steps=BEFORE)), SEED, BEFORE, BEFORE)
        # Renamed when it is whole: another run may look for it at the same time.
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            torch.save(model.state_dict(), file)
        Path(file.name).replace(kept)
    return torch.load(kept, weights_only=True)


def fine_tuning() -> Problem:
    """The transformer that knows Python's source, on the English of its manual; its seeds differ in batches alone."""
    text, weights = manual(), pretrained()
    held_out = len(text) // 10

    def model(_: int) -> nn.Module:
        made = make()
        made.load_state_dict(weights)
        return made

    def windows(text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH, 1), generator=generator)
        rows = text[starts + torch.arange(CONTEXT + 1)].long()
        return rows[:, :-1], rows[:, 1:]

    scored = generator()
    held = [windows(text[-held_out:], scored) for _ in range(20)]
    source = byte_lm("fine_tuning", make=make)
    return replace(source, model=model, batch=partial(windows, text[:-held_out]), held=held, steps=200)
