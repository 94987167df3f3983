"""After the base's step: turn its updates, write the parameters back."""

from functools import partial

import torch
from torch import Tensor

from lightning_so.actions import hide
from lightning_so.contract.method import Action
from lightning_so.contract.ways import Ways
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import Matrices, MatrixWork, Work
from lightning_so.core.stacks.cohort import Cohort
from lightning_so.core.step import lending, slopes
from lightning_so.core.step.bending import bending
from lightning_so.core.step.turning import turning
from lightning_so.linalg.precision import Uncast
from lightning_so.linalg.unseen import maybe


@Uncast()
def finish(hidden: list[Cohort], call: int, host: Host, matrices: Matrices, ways: Ways, *, measured: bool) -> None:
    """Turn the updates that the base left in the hidden parameters, and write the parameters back.

    Args:
        hidden: The cohorts whose parameters are hidden; those that are written back leave the list.
        call: Which call of the base's step has ended.
        host: The training.
        matrices: Where they are whole.
        ways: How rotations and polar factors are computed.
        measured: Whether slopes along the step are measured.
    """
    ended = [cohort for cohort in hidden[::-1] if cohort.blocks[0].call == call]
    bend = [cohort for cohort in ended if cohort.action is Action.BEND]
    lengths = _lengths(bend, matrices)
    promised = slopes.promised(bend, lengths, matrices) if measured else {}
    works = bending(bend, slopes.lengthen(bend, lengths), matrices, ways.padding)
    rest = hidden, host, matrices, ways
    matrices.transform([_last(c, works.get(id(c)), promised.get(id(c)), *rest) for c in ended])


def _last(
    cohort: Cohort,
    bend: Work | None,
    promised: Tensor | None,
    hidden: list[Cohort],
    host: Host,
    matrices: Matrices,
    ways: Ways,
) -> MatrixWork:
    """The work that turns or bends the updates of a cohort, writes its new weights, and may measure what they are."""
    weights = matrices.weights(cohort)
    update = partial(matrices.fill, cohort, weights, 0)

    def write(buffer: Tensor) -> None:
        if bend is not None and maybe(lost := matrices.lost(buffer)):
            # An update without a direction stays as it is.
            buffer = torch.where(lost, update(), buffer)
        factors = cohort.of_blocks(host, lambda group: hide.shrink(group, decoupled=host.base.decoupled(group)))
        room, per_block = matrices.room(cohort, 1), partial(matrices.per_block, cohort)
        matrices.write(cohort, weights, hide.combine(matrices.saved(cohort), buffer, factors, room, per_block))
        lending.stay(cohort, host)
        if promised is not None:
            slopes.begin(cohort, promised, matrices)
        lending.take_back([cohort], host)
        hidden.remove(cohort)
        cohort.applied += 1

    if bend is None:
        return MatrixWork(cohort, update, turning(cohort, ways.rotation, leave=True), write)
    return MatrixWork(cohort, partial(_lookahead, cohort, host, matrices), bend, write)


def _lengths(cohorts: list[Cohort], matrices: Matrices) -> dict[int, Tensor]:
    """Lengths of the updates in the hidden parameters, (k,) of every cohort."""
    if not cohorts:
        return {}
    squares = matrices.squares([(cohort, matrices.weights(cohort)) for cohort in cohorts])
    total = matrices.total(torch.cat([part.to(squares[0]) for part in squares])).sqrt()
    parts = total.split([len(cohort.blocks) for cohort in cohorts])
    return {id(cohort): part.to(own) for cohort, part, own in zip(cohorts, parts, squares, strict=True)}


def _lookahead(cohort: Cohort, host: Host, matrices: Matrices) -> Tensor:
    """The look-ahead first moment of a cohort, in the second work space."""
    moment = matrices.fill(cohort, matrices.moments(cohort, host.base.first[0]), 1)
    gradients = matrices.gradients(cohort)
    weights = cohort.of_blocks(host, host.base.lookahead)
    if len(cohort.groups) == 1:
        a, b = weights[0]
        torch._foreach_add_(matrices.parts(cohort, moment.mul_(a)), gradients, alpha=b)
        return moment
    gradient = matrices.fill(cohort, gradients, 2)
    each_a, each_b = (matrices.per_block(cohort, torch.tensor(w).to(moment)) for w in zip(*weights, strict=True))
    return moment.mul_(each_a).add_(gradient.mul_(each_b))
