"""Trainings of which it is known that second order disappoints: told once, at the start, with the page to read."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_so.callbacks.batches import tensors
from lightning_so.contract.block import Block

PAGE = "docs/when-not.md#what-a-training-is-told-at-its-start"
#: Share of the parameters that are trained above which fine-tuning is one of the whole model.
WHOLE = 0.5
#: Two matrices that follow each other are factors of a low rank if that is at most `LOW`, and at most one of so many
#: parts of what goes in and of what comes out.
LOW, PARTS = 32, 8
#: Samples, or tokens, a step below which a batch is tiny.
TINY = 4
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def of_model(model: nn.Module, blocks: Sequence[Block], step: int) -> list[str]:
    """What is to be said of a model before its first step.

    Args:
        model: The model.
        blocks: What methods work on.
        step: Steps that were made before, in a training that goes on.

    Returns:
        One line each.
    """
    said = []
    if step == 0 and (how := pretrained(model)) and trained_share(model) > WHOLE:
        said.append(
            f"the whole of a pretrained model is trained ({how}). Weights that AdamW has found do not always gain from "
            f"another geometry, and the best learning rate is smaller than from scratch: compare with AdamW first. "
            f"See {PAGE}."
        )
    factors = [pair for pair in pairwise(blocks) if are_factors(*pair)]
    if 4 * len(factors) > len(blocks):
        first, second = factors[0]
        said.append(
            f"most matrices are pairs of factors of a low rank, as LoRA's ({first.name}: {first.rows}x{first.cols}, "
            f"{second.name}: {second.rows}x{second.cols}): the curvature of either is not that of their product, and "
            f'there is little to gain. route={{"base": ["*.lora_*"]}} leaves them to the optimizer. See {PAGE}.'
        )
    return said


def of_batch(batch: Any, times: int) -> list[str]:
    """What is to be said of the first batch.

    Args:
        batch: The batch.
        times: Such batches a step, over micro-batches and ranks.

    Returns:
        One line, or none.
    """
    found = samples(batch)
    if found is None or found * times >= TINY:
        return []
    return [
        f"a step sees {found * times} samples: curvature of so few is mostly noise, and what a step costs more is not "
        f"spread over many. Raise the batch size or accumulate_grad_batches. See {PAGE}."
    ]


def pretrained(model: nn.Module) -> str:
    """By what it shows that weights are not fresh.

    Fresh layers of normalisation have scales that are all equal, and statistics of no batch.

    Args:
        model: The model.

    Returns:
        That, in words; "" where nothing shows it.
    """
    for name, module in model.named_modules():
        path = getattr(getattr(module, "config", None), "_name_or_path", "")
        if isinstance(path, str) and path:
            return f"{path!r} was loaded" + (f" into {name}" if name else "")
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, NORMS)]
    used = [name for name, module in norms if _used(module)]
    return f"{used[0]} is not as it begins" if 2 * len(used) > len(norms) else ""


def _used(norm: nn.Module) -> bool:
    scale, batches = getattr(norm, "weight", None), getattr(norm, "num_batches_tracked", None)
    if isinstance(batches, Tensor) and not batches.is_meta and int(batches) > 0:
        return True
    if not isinstance(scale, Tensor) or scale.is_meta:
        return False
    numbers = getattr(scale, "_local_tensor", scale).detach()
    return numbers.numel() > 1 and bool((numbers != numbers.flatten()[0]).any())


def trained_share(model: nn.Module) -> float:
    """Share of the model's parameters that are trained."""
    params = list(model.parameters())
    return sum(p.numel() for p in params if p.requires_grad) / max(1, sum(p.numel() for p in params))


def are_factors(first: Block, second: Block) -> bool:
    """Whether two matrices are the factors of one of low rank, in the order in which they are applied."""
    rank = first.rows
    return rank == second.cols and rank <= LOW and PARTS * rank <= min(first.cols, second.rows)


def samples(batch: Any) -> int | None:
    """Samples of a batch, or tokens where it has rows of whole numbers; None where that is not to be seen."""
    found = [tensor for tensor in tensors(batch) if tensor.ndim]
    if not found:
        return None
    tokens = (t for t in found if t.ndim > 1 and not (t.is_floating_point() or t.dtype == torch.bool))
    return max([found[0].shape[0], *(t.shape[0] * t.shape[1] for t in tokens)])
