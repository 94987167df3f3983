"""A policy gradient: the pole on a cart (Barto, Sutton and Anderson 1983) by REINFORCE, many carts at once."""

import math

import torch
from torch import Tensor, nn

from benchmarks.anywhere.drawing import generator
from benchmarks.shared.problems import Problem, seeded

GRAVITY, CART, POLE, HALF, FORCE, TICK = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
#: Where a try is over: the cart's place, the pole's angle.
PLACE, ANGLE = 2.4, 12 * math.pi / 180
#: Deviations of the starts, wide: not every one can be saved.
START = torch.tensor([0.5, 0.5, 0.1, 0.8])
DISCOUNT = 0.97

Starts = tuple[Tensor, Tensor]


def moved(state: Tensor, right: Tensor) -> Tensor:
    """The state (place, speed, angle, its speed) after a tick under a push to the right or left, (B, 4) -> (B, 4)."""
    x, v, angle, turn = state.unbind(-1)
    force = FORCE * (2 * right - 1)
    sine, cosine = angle.sin(), angle.cos()
    pull = (force + POLE * HALF * turn.square() * sine) / (CART + POLE)
    twist = (GRAVITY * sine - cosine * pull) / (HALF * (4 / 3 - POLE * cosine.square() / (CART + POLE)))
    push = pull - POLE * HALF * twist * cosine / (CART + POLE)
    return torch.stack([x + TICK * v, v + TICK * push, angle + TICK * turn, turn + TICK * twist], -1)


@torch.no_grad()
def tried(policy: nn.Module, batch: Starts) -> tuple[Tensor, Tensor, Tensor]:
    """States, actions and whether the pole still stood, (T, B, 4), (T, B) and (T, B), of tries with given chances."""
    state, chances = batch
    standing = torch.ones(len(state))
    states, actions, stood = [], [], []
    for chance in chances:
        right = (chance < policy(state).squeeze(-1).sigmoid()).float()
        states.append(state)
        actions.append(right)
        stood.append(standing)
        state = torch.where(standing.bool().unsqueeze(-1), moved(state, right), state)
        # One that has fallen is not moved any more, and stays out of bounds.
        standing = ((state[:, 0].abs() < PLACE) & (state[:, 2].abs() < ANGLE)).float()
    return torch.stack(states), torch.stack(actions), torch.stack(stood)


def reinforce(policy: nn.Module, batch: Starts, reduction: str = "mean") -> Tensor:
    """Minus log-probabilities times what came after, less its mean over the carts and over its deviation.

    Of the ticks at which the pole stood, all carts' in one batch of transitions.
    """
    states, actions, stood = tried(policy, batch)
    left, after = torch.zeros_like(stood[0]), []
    for alive in stood.flip(0):
        left = alive * (1 + DISCOUNT * left)
        after.append(left)
    gains = torch.stack(after[::-1])
    usual = (gains * stood).sum(1, keepdim=True) / stood.sum(1, keepdim=True).clamp(min=1)
    kept = stood.bool()
    advantage = (gains - usual)[kept]
    advantage = advantage / advantage.square().mean().sqrt().clamp(min=1e-6)
    logits = policy(states[kept]).squeeze(1)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, actions[kept], reduction="none") * advantage
    return losses.mean() if reduction == "mean" else losses.sum()


def lost(policy: nn.Module, batch: Starts) -> Tensor:
    """Share of the ticks after the pole has fallen, of the same tries for every policy."""
    return 1 - tried(policy, batch)[2].mean()


def starts(size: int, ticks: int, generator: torch.Generator) -> Starts:
    """Where carts start, (B, 4), and the chances that their pushes are drawn with, (T, B)."""
    return torch.randn(size, 4, generator=generator) * START, torch.rand(ticks, size, generator=generator)


def network() -> nn.Module:
    """Two hidden layers of 64, tanh: the logit of a push to the right."""
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def policy_gradient() -> Problem:
    """64 carts a step, 150 ticks each; scored by 1,024 carts over 200."""
    held = [starts(1024, 200, generator())]
    return Problem(
        "policy_gradient",
        seeded(network),
        lambda generator: starts(64, 150, generator),
        reinforce,
        held,
        150,
        "share of ticks lost",
        score=lost,
    )
