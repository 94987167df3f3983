"""A proof that a resumed training is the one that did not stop, and what it is without the curvature.

    python -m examples.gallery.resume

Three runs each: without a stop; to the stop, where a checkpoint is saved; on from there. With the callback's state the
losses and the final weights are the same bit for bit. `SecondOrder(state="rebuild")` leaves the curvature out of
checkpoints: bases start cold, and the run is another one.
"""

from typing import Any

from matplotlib import pyplot as plt
from torch import Tensor
from torch.utils.data import DataLoader

from examples.byte_lm import ByteLM, Windows, corpus
from examples.gallery.compare import arguments, finish
from lightning_so import SOAP, ResumableLoader, SecondOrder, resume_check
from lightning_so.callbacks.resume.launch import this_process

#: What stands for no difference on an axis of logarithms.
NONE = 1e-9


class Noted(ByteLM):
    """The byte LM; losses are kept by step."""

    def __init__(self, losses: dict[int, float], **given: Any) -> None:
        super().__init__(**given)
        self.kept = losses

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Keep it."""
        loss = super().training_step(batch, batch_idx)
        self.kept[self.trainer.global_step + 1] = float(loss.detach())
        return loss


def main() -> None:
    """Check both ways, draw."""
    args = arguments(__doc__, "resume", steps=120, stop=60)
    start = min(20, args.stop // 2)

    def recipe(runs: list[dict[int, float]], state: str) -> tuple[Noted, DataLoader, dict[str, Any]]:
        runs.append({})
        module = Noted(runs[-1], d=64, layers=1, total_steps=args.steps)
        loader = ResumableLoader(Windows(corpus()[0], 64, 20_000, seed=0), 16)
        ours = SecondOrder(SOAP(start=start, period=10), state=state, print_plan=False, recorder=False)
        return module, loader, {"accelerator": "cpu", "devices": 1, "callbacks": [ours]}

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, state in {"with the curvature": "full", "without it": "rebuild"}.items():
        runs: list[dict[int, float]] = []
        found = resume_check(
            lambda runs=runs, state=state: recipe(runs, state),
            steps=args.steps,
            stop=args.stop,
            launch=this_process,
        )
        whole, _, resumed = runs
        apart = {step: abs(loss - whole[step]) for step, loss in resumed.items()}
        print(
            f"resumed {name}: largest difference of a loss {max(apart.values()):.2g}; weights "
            f"{'the same bit for bit' if not found.weights.differing else f'differ by {found.weights.largest:.2g}'}"
        )
        axis.semilogy(list(apart), [max(value, NONE) for value in apart.values()], label=f"resumed {name}")
    axis.axvline(args.stop, color="grey", linestyle=":", linewidth=1)
    axis.set(xlabel="step", ylabel="difference of the loss (nats)", xlim=(0, args.steps))
    axis.set_yticks([NONE, 1e-6, 1e-4, 1e-2], ["0", "$10^{-6}$", "$10^{-4}$", "$10^{-2}$"])
    finish(figure, axis, args.out)


if __name__ == "__main__":
    main()
