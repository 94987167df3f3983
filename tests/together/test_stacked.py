"""Parameters of several matrices on ranks and in files: their matrices have owners of their own, and moments there."""

import functools
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_so import SOAP, ConfigError, Muon, Shampoo, attach
from lightning_so.core.trust.traffic import traffic
from tests.support.peers import needs_deepspeed
from tests.support.stacked import SPLIT, batch, made, with_experts
from tests.support.trainings import Save, train

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
METHODS = {
    "soap": (SOAP(start=2, period=8), ADAMW),
    "muon": (Muon(), ADAMW),
    # Roots of nearly singular factors magnify rounding.
    "shampoo sgd": (Shampoo(period=4, epsilon=1e-3), SGD),
}
#: The attention's output projection in three: one of 15 rows, which ranks hold in uneven pieces.
ROUTE = {"split": {"*.join.weight": 3}}
STEPS = 12
EVERYDAY = [("ddp", "soap"), ("fsdp2", "soap")]
ZERO = [pytest.param(f"zero{stage}", "soap", marks=[pytest.mark.slow, needs_deepspeed]) for stage in (1, 2, 3)]
ROWS = [
    *(
        pytest.param(strategy, method, marks=() if (strategy, method) in EVERYDAY else pytest.mark.slow)
        for strategy in ("ddp", "fsdp2", "fsdp1")
        for method in METHODS
    ),
    *ZERO,
]


def trained(strategy, method, **named):
    return train(strategy, *METHODS[method], **{"steps": STEPS, "prepare": with_experts, "route": ROUTE, **named})


@functools.cache
def one(method):
    return trained("one", method, accumulate=2, clip=0.3)


@pytest.mark.parametrize(("strategy", "method"), ROWS)
def test_two_ranks_equal_one_process(two, strategy, method):
    """torchtitan#2494, Megatron-LM#5533: ranks hold pieces of matrices, cut through as FSDP1 and ZeRO cut them."""
    found, alone = two.run(trained, strategy, method, accumulate=2, clip=0.3), one(method)
    for name, value in alone.weights.items():
        assert torch.equal(found[0].weights[name], found[1].weights[name]), f"ranks differ in {name}"
        torch.testing.assert_close(found[0].weights[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    facts = ("step", "solves", "rotated", "bent", "preconditioned", "skipped", "failures", "cooled")
    assert [getattr(found[0].report, f) for f in facts] == [getattr(alone.report, f) for f in facts]
    assert method == "muon" or all(rank.report.solved_here > 0 for rank in found)


#: A stop at which some matrices of a parameter rotate and others do not, and one at which all do.
@pytest.mark.parametrize("stop", [5, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one", "one"),
        ("fsdp2", "fsdp2"),
        pytest.param("fsdp1", "fsdp1", marks=pytest.mark.slow),
        pytest.param("ddp", "one", marks=pytest.mark.slow),
        pytest.param("one", "fsdp2", marks=pytest.mark.slow),
        pytest.param("fsdp2", "one", marks=pytest.mark.slow),
    ],
)
def test_files_resume_and_travel(two, tmp_path, before, after, stop):
    path = tmp_path / "stopped.ckpt"
    whole = {"whole_files": True} if (before, after) != ("fsdp1", "fsdp1") else {}

    def run(form, *arguments, **named):
        if form == "one":
            return trained(form, *arguments, **named)
        return two.run(trained, form, *arguments, **named, **whole)[0]

    alone = run(before, "soap", callbacks=[Save(path, stop)])
    again = run(after, "soap", resume=str(path))
    for name, value in alone.weights.items():
        exact = before == after
        torch.testing.assert_close(again.weights[name], value, rtol=0, atol=0 if exact else 1e-5)


@pytest.mark.parametrize("state", ["compact", "rebuild"])
def test_lighter_files_go_on(tmp_path, state):
    path = tmp_path / "stopped.ckpt"
    trained("one", "soap", callbacks=[Save(path, 10)], state=state)
    again = trained("one", "soap", resume=str(path), state=state, steps=20)
    assert again.report.step == 20
    assert again.report.rotated > 10
    assert all(weight.isfinite().all() for weight in again.weights.values())


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_files_hold_plain_moments_of_all_parts_whoever_wrote_them(two, tmp_path, strategy):
    """Some experts rotate at the stop and others do not."""
    trained("one", "soap", callbacks=[Save(tmp_path / "one.ckpt", 5)], steps=5)
    files = {"callbacks": [Save(tmp_path / "two.ckpt", 5)], "whole_files": True}
    two.run(trained, strategy, "soap", steps=5, **files)
    one, many = (torch.load(tmp_path / name, weights_only=True) for name in ("one.ckpt", "two.ckpt"))
    # By number or by name, in the optimizer's order.
    of_one, of_many = ([*file["optimizer_states"][0]["state"].values()] for file in (one, many))
    assert sum(state["exp_avg"].ndim == 3 for state in of_one) == 4
    for mine, theirs in zip(of_one, of_many, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(theirs[key], mine[key], rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------- what ranks send, rows of ranks


def sharded(method=None, sharding="exact", steps=14, route=SPLIT, lengths="measured"):
    """A plain loop under FSDP2; what was sent a step, what is predicted, owners, verdicts, whether all is finite."""
    model = made()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))
    for layer in (model.experts, model.third, model):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    engine = attach(
        model, optimizer, method or SOAP(start=2, period=2), sharding=sharding, route=route, lengths=lengths
    )
    sent = []
    for step in range(steps):
        x, y = batch(step)
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sent.append(engine.host.world.sent)
    predicted = traffic(engine.parts.units, engine.host, engine.parts.matrices)
    owners = [block.owner for block in engine.plan.blocks]
    rows = {row.name: row.verdict for row in engine.plan.rows}
    numbers = [p.full_tensor().isfinite().all().item() for p in model.parameters()]
    return sent, predicted, owners, rows, all(numbers)


def test_each_matrix_has_an_owner_of_its_own_and_what_travels_is_what_the_plan_says(two):
    for sent, predicted, owners, _, finite in two.run(sharded, Muon(), lengths="base"):
        assert finite
        assert set(owners[:5]) == {0, 1}
        assert [now - before for before, now in pairwise(sent)] == [predicted] * 13


@pytest.mark.slow
def test_slopes_along_updates_are_in_what_the_plan_says_travels(two):
    """At every eighth step, after the first."""
    for sent, predicted, *_ in two.run(sharded, Muon(), steps=88):
        steps = [now - before for before, now in pairwise(sent)]
        assert len({*steps[-16:]}) == 2
        assert sum(steps[-16:]) == 16 * predicted


def test_where_ranks_take_their_rows_experts_stay_whole(two):
    """Of five experts the ranks have three and two, and each is a matrix: there is nothing to exchange."""
    found = two.run(sharded, sharding="local", route=None)
    verdicts = [rows["experts.w1"] for *_, rows, _ in found]
    assert verdicts[0].startswith("hidden, 3 matrices of 12x17: bend")
    assert verdicts[1].startswith("hidden, 2 matrices of 12x17: bend")
    assert all(finite for *_, finite in found)


def an_expert_a_rank():
    holder = torch.nn.Module()
    holder.w, holder.places = (torch.nn.Parameter(torch.randn(n, 12, 16)) for n in (2, 1))
    fully_shard(holder, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    engine = attach(holder, torch.optim.AdamW(holder.parameters()), Muon(), sharding="local")
    return [row.verdict for row in engine.plan.rows]


def test_one_expert_on_a_rank_is_not_taken_for_places(two):
    first, second = two.run(an_expert_a_rank)
    assert first == ["hidden, one matrix of 12x16: bend", "base: embedding: Muon bends hidden matrices only"]
    assert second == ["hidden, one matrix of 12x16: bend", "base: no rows of it on this rank"]


def refused():
    try:
        sharded(sharding="local")
    except ConfigError as error:
        return str(error)
    return "no error"


def test_parts_of_rows_are_refused(two):
    for text in two.run(refused):
        assert "third.qkv.weight" in text
        assert "sharding='local' takes a rank's rows for the matrix" in text
