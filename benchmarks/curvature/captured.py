"""What few directions out of many hold of a gradient, and what a step inside them achieves: byte LM and CNN, AdamW.

    python -m benchmarks.curvature.captured --problems byte_lm cnn --steps 300 --seeds 0 1

FewDirections of every k watches one training by AdamW, and `--take 5` lets it train with the steps of k = 5 instead.
Every so many steps the share |V g|^2 / |g|^2 of its frame V is taken, g of the batch that the step is of, of fresh ones
and of all these together, and steps of several kinds are tried from the same weights: losses of the step's own batch,
and of the fresh ones. Beside it the Krylov directions of the same gradient, which cost k products at every step, and
the extreme curvatures by 20 products of Lanczos. Writes docs/captured.png and docs/tracked.png from all lines.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.curvature.captured_plots import KS, draw, table
from benchmarks.shared.methods import Settings, build
from benchmarks.shared.problems import Problem, load
from lightning_so import FewDirections, attach
from lightning_so.contract.vector_method import Owned, Step, VectorState
from lightning_so.linalg.lanczos import lanczos
from lightning_so.linalg.parabola import strides
from lightning_so.linalg.products import FiniteDifference
from lightning_so.probe.parameters import ParameterVector
from lightning_so.probe.side_effects import undone

RATES = {"byte_lm": 2e-3, "cnn": 2e-2}  # AdamW's best of the grids.
LANCZOS = 20
#: Curvatures below this share of the largest say nothing: rows that were never measured have none.
NONE = 1e-6


class Watching:
    """FewDirections of several k that see every step of the base, and take none or those of one k."""

    owns: ClassVar[Owned] = "nothing"

    def __init__(self, look: Callable[[Step], None], every: int, take: int) -> None:
        """Make them."""
        self.methods, self.look, self.every, self.take = {k: FewDirections(k=k) for k in KS}, look, every, take
        self.states: dict[int, VectorState] = {}

    def refuse(self, space: Any, groups: Any) -> None:
        """It works everywhere."""

    def init(self, space: Any) -> VectorState:
        """Of each k its own."""
        self.states = {k: method.init(space) for k, method in self.methods.items()}
        return VectorState()

    def probes(self, number: int) -> bool:
        """All k probe at the same steps."""
        return number % self.methods[KS[0]].every == 0

    def update(self, state: VectorState, step: Step) -> Tensor | None:
        """Let all see the step, and look."""
        # Of each its own update, which it may change in place.
        found = {
            k: method.update(self.states[k], replace(step, moves=step.moves.clone()))
            for k, method in self.methods.items()
        }
        if step.number % self.every == 0:
            self.look(step)
        return found.get(self.take)

    def scalars(self, state: VectorState) -> dict[str, float]:
        """Nothing is logged."""
        return {}


class Looks:
    """The measurements of one training."""

    def __init__(self, problem: Problem, model: Any, seed: int, fresh: int, hessian: int) -> None:
        """Draw the fresh batches: the same at every look."""
        self.problem, self.model = problem, model
        generator = torch.Generator().manual_seed(1000 + seed)
        self.fresh = [problem.batch(generator) for _ in range(fresh)]
        self.hessian = self.fresh[:hessian]
        self.own: Any = None
        self.lines: list[dict[str, Any]] = []
        self.vector: ParameterVector
        self.watching: Watching

    def __call__(self, step: Step) -> None:
        """Measure at the weights before a step."""
        with undone(self.model, self.vector.params), placed(self.vector, step.weights):
            grads = torch.stack([self.gradient(batch) for batch in self.fresh])
            mine = lanczos(lambda v: step.oracle.products(v[None])[0], step.gradient, LANCZOS, step.space)
            large = self.spectrum(step, grads[: len(self.hessian)].mean(0))
        gradients = torch.cat([step.gradient[None], grads, grads.mean(0)[None]])
        before = self.losses(step, None)
        tried = {"adamw": step.update}
        line: dict[str, Any] = {"step": step.number, "loss": float(before[1:].mean()), "k": {}}
        for k, state in self.watching.states.items():
            V, M = state.vectors["V"], state.numbers["M"]
            small = torch.diag(mine.diagonal) + torch.diag(mine.beside, 1) + torch.diag(mine.beside, -1)
            slopes = step.space.along(V, torch.stack([step.gradient, grads.mean(0), step.update]))
            line["k"][k] = {
                "share": shares(V, gradients),
                "share_krylov": shares(mine.basis[:k], gradients),
                "predicted": half(M, slopes[:, 0]),
                "predicted_clean": half(M, slopes[:, 1]),
                "predicted_krylov": half(small[:k, :k], step.space.along(mine.basis[:k], step.gradient[None])[:, 0]),
                **self.used(k, step, slopes[:, 0], tried),
                "curvatures": torch.linalg.eigvalsh(M).tolist(),
                "top_in_frame": float(step.space.along(V, large.vector(-1)[None]).square().sum()),
                "age": step.number - int(state.numbers["measured"][state.numbers["measured"] >= 0].min()),
            }
            tried[f"frame {k}"] = newton(M, slopes[:, 0]).to(V) @ V
            tried[f"clean {k}"] = newton(M, slopes[:, 1]).to(V) @ V
            c = step.space.along(mine.basis[:k], step.gradient[None])[:, 0]
            tried[f"krylov {k}"] = newton(small[:k, :k], c).to(V) @ mine.basis[:k]
            used = tried[f"used {k}"]
            tried[f"method {k}"] = step.update - slopes[:, 2].to(V) @ V + used
        line["decrease"] = {name: self.decrease(step, before, change) for name, change in tried.items()}
        line["lanczos"] = {"large": ends(large.ritz()[0]), "own": ends(mine.ritz()[0])}
        self.lines.append(line)
        print(f"step {step.number}: loss {line['loss']:.4f}", flush=True)

    def used(self, k: int, step: Step, c: Tensor, tried: dict[str, Tensor]) -> dict[str, float]:
        """The step inside the frame as the method takes it, and what its parabola says of that."""
        method, state = self.watching.methods[k], self.watching.states[k]
        V, M = state.vectors["V"], state.numbers["M"]
        curvatures, U = torch.linalg.eigh(M)
        a = -method.share * (U @ (strides(curvatures, method.cap * step.rate) * (U.mT @ c)))
        tried[f"used {k}"] = a.to(V) @ V
        capped = (curvatures.abs() * method.cap * step.rate < 1).double().mean()
        return {"predicted_used": float(-(c @ a) - a @ M @ a / 2), "capped": float(capped)}

    def spectrum(self, step: Step, here: Tensor) -> Any:
        """Lanczos on several batches together."""

        def gradient() -> Tensor:
            return torch.stack([self.gradient(batch) for batch in self.hessian]).mean(0)

        product = FiniteDifference(self.vector.weights, gradient, step.space, here=here)
        return lanczos(product, step.space.normal(7), LANCZOS, step.space)

    def gradient(self, batch: Any) -> Tensor:
        """The gradient of a batch at the weights as they are."""
        with torch.enable_grad():
            return self.vector.gradient(lambda: self.problem.loss(self.model, batch)).clone()

    def losses(self, step: Step, change: Tensor | None) -> Tensor:
        """Of the step's own batch first, then of the fresh ones."""
        weights = step.weights if change is None else step.weights + change
        with undone(self.model, self.vector.params), placed(self.vector, weights):
            found = [self.problem.loss(self.model, batch).item() for batch in (self.own, *self.fresh)]
        return torch.tensor(found, dtype=torch.float64)

    def decrease(self, step: Step, before: Tensor, change: Tensor) -> dict[str, float]:
        """How far the losses fall."""
        fallen = before - self.losses(step, change)
        error = fallen[1:].std() / (len(fallen) - 1) ** 0.5
        return {"own": float(fallen[0]), "fresh": float(fallen[1:].mean()), "error": float(error)}


@contextmanager
def placed(whole: ParameterVector, vector: Tensor) -> Iterator[None]:
    """Have the weights elsewhere for a while."""
    kept = whole.values()
    for numbers in (vector, kept):
        for weight, part in zip(whole.weights, whole.space.split(numbers), strict=True):
            weight.copy_(part.view(weight.shape))
        if numbers is vector:
            yield


def shares(V: Tensor, gradients: Tensor) -> dict[str, float]:
    """|V g|^2 / |g|^2: of the own batch, the mean over fresh ones, and of all of these together."""
    found = (V @ gradients.mT).square().sum(0) / gradients.square().sum(1)
    return {"own": float(found[0]), "fresh": float(found[1:-1].mean()), "large": float(found[-1])}


def newton(M: Tensor, c: Tensor) -> Tensor:
    """-|M|^-1 c where there is curvature."""
    curvatures, U = torch.linalg.eigh(M)
    sizes = curvatures.abs()
    inverse = torch.where(sizes > NONE * sizes.max(), 1 / sizes, 0.0)
    return -(U @ (inverse * (U.mT @ c)))


def half(M: Tensor, c: Tensor) -> float:
    """1/2 c' |M|^-1 c."""
    return float(-(c @ newton(M, c)) / 2)


def ends(values: Tensor) -> list[float]:
    """The smallest and the largest."""
    return [float(values[0]), float(values[-1])]


def measure(problem: Problem, seed: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One training with its looks."""
    model = problem.model(seed)
    contender = build("adamw", model, Settings(RATES[problem.name], steps=args.steps))
    optimizer = contender.optimizers[0]
    looks = Looks(problem, model, seed, args.fresh, args.hessian)
    looks.watching = Watching(looks, args.every, args.take)
    looks.whole = attach(model, optimizer, looks.watching).whole
    generator = torch.Generator().manual_seed(seed)
    for _ in range(args.steps):
        looks.own = batch = problem.batch(generator)

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        contender.advance()
    facts = {"problem": problem.name, "seed": seed, "steps": args.steps, "lr": RATES[problem.name], "take": args.take}
    facts |= {"numbers": looks.whole.space.dimension, "fresh": args.fresh, "hessian": args.hessian}
    return [{**facts, **line} for line in looks.lines]


def main() -> None:
    """Measure, append JSON lines, print a table a problem, draw what is in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problems", nargs="*", default=list(RATES), choices=list(RATES), help="none: draw what is there")
    add("--steps", type=int, default=300)
    add("--every", type=int, default=30, help="steps between two looks; not a multiple of 50: rows take turns")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--fresh", type=int, default=16, help="fresh batches, the same at all looks")
    add("--hessian", type=int, default=4, help="of these, for Lanczos on a large batch")
    add("--take", type=int, default=0, choices=(0, *KS), help="train with the steps of this k")
    add("--out", type=Path, default=Path("benchmarks/curvature/results/captured.jsonl"), help="lines are appended")
    args = parser.parse_args()

    torch.set_num_threads(1)
    for name in args.problems:
        for seed in args.seeds:
            lines = measure(load(name), seed, args)
            with args.out.open("a") as file:
                for line in lines:
                    print(json.dumps(line), file=file)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()]
    for name, take in dict.fromkeys((line["problem"], line["take"]) for line in lines):
        print(f"{name}, {'steps of k = ' + str(take) if take else 'AdamW'}")
        table([line for line in lines if line["problem"] == name and line["take"] == take])
    draw(lines)


if __name__ == "__main__":
    main()
