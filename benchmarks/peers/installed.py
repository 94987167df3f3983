"""How each package's optimizers are built: from a model and settings to the parts of a `Contender`.

As the package ships them, but for the rate, AdamW's betas and weight decay where they are named so, and for what cannot
run otherwise. Muons have hidden matrices alone; what is left has AdamW at `adam_lr`, as beside torch's Muon. Heavyball
runs as it is written, without its own compilation, whose minutes of a CPU would be most of a short run.
"""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.methods import WEIGHT_DECAY, Settings, hidden_weights


def heavyball() -> Any:
    """The package, its functions not compiled."""
    import heavyball
    from heavyball import utils

    utils.compile_mode = None
    return heavyball


def heavyball_soap(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Its SOAP; its first step only looks."""
    made = heavyball().SOAP(
        model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=WEIGHT_DECAY, warmup_steps=0
    )
    return {"optimizers": [made]}


def heavyball_psgd(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Its PSGD with Kronecker factors."""
    made = heavyball().PSGDKron(model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY, warmup_steps=0)
    return {"optimizers": [made]}


def heavyball_muon(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Its Muon on hidden matrices, torch's AdamW on the rest."""
    hidden, rest = halves(model)
    made = heavyball().Muon(hidden, lr=settings.lr, weight_decay=WEIGHT_DECAY, warmup_steps=0)
    return {"optimizers": [made, *beside(rest, settings)]}


def pytorch_optimizer_soap(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Its SOAP, with betas of its own; its first step only looks."""
    from pytorch_optimizer import SOAP

    return {"optimizers": [SOAP(model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)]}


def pytorch_optimizer_shampoo(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Its blocked Shampoo; roots every 10 steps from the 10th on, since its 1,000 are more than a run has."""
    from pytorch_optimizer import ScalableShampoo

    made = ScalableShampoo(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=WEIGHT_DECAY,
        decoupled_weight_decay=True,
        start_preconditioning_step=10,
        preconditioning_compute_steps=10,
    )
    return {"optimizers": [made]}


def pytorch_optimizer_muon(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Its Muon on hidden matrices, its own AdamW on the rest."""
    from pytorch_optimizer import Muon

    hidden, rest = halves(model)
    groups = [
        {"params": hidden, "use_muon": True, "lr": settings.lr, "weight_decay": WEIGHT_DECAY},
        {
            "params": rest,
            "use_muon": False,
            "lr": settings.adam_lr,
            "betas": settings.betas,
            "weight_decay": WEIGHT_DECAY,
        },
    ]
    return {"optimizers": [Muon([group for group in groups if group["params"]])]}


def pytorch_optimizer_adahessian(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Its AdaHessian, with betas of its own: it differentiates the gradients, so that they need their graph."""
    from pytorch_optimizer import AdaHessian

    return {"optimizers": [AdaHessian(model.parameters(), lr=settings.lr, weight_decay=WEIGHT_DECAY)]}


def distributed_shampoo(model: nn.Module, settings: Settings) -> dict[str, Any]:
    """Meta's Shampoo with the lengths of Adam's updates, as its page says for those who come from AdamW."""
    from distributed_shampoo import AdamPreconditionerConfig, DistributedShampoo

    made = DistributedShampoo(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=WEIGHT_DECAY,
        precondition_frequency=10,
        grafting_config=AdamPreconditionerConfig(beta2=settings.betas[1], epsilon=1e-8),
    )
    return {"optimizers": [made]}


def halves(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden weights, and all other parameters."""
    hidden = hidden_weights(model)
    return hidden, [p for p in model.parameters() if all(p is not h for h in hidden)]


def beside(rest: list[Tensor], settings: Settings) -> list[torch.optim.Optimizer]:
    """AdamW for what a Muon leaves."""
    if not rest:
        return []
    return [torch.optim.AdamW(rest, lr=settings.adam_lr, betas=settings.betas, weight_decay=WEIGHT_DECAY)]
