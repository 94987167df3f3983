"""Under DDP curvature may be with its owner alone: the same training, in less memory, at the traffic as foretold."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from lightning_so import (
    EKFAC,
    KFAC,
    SOAP,
    ConfigError,
    CurvatureMonitor,
    Memory,
    Mixture,
    Muon,
    Recorder,
    Shampoo,
    Ways,
    attach,
)
from lightning_so.cli.planning.forecast import forecast
from lightning_so.cli.planning.rehearsal import assembled
from lightning_so.cli.planning.world import World
from lightning_so.comm.supposed import Supposed
from lightning_so.contract.unit import Unit
from lightning_so.core.host import Host
from lightning_so.core.matrices.matrices import MatrixWork
from lightning_so.core.matrices.owned import OwnedMatrices
from lightning_so.core.options import Options
from lightning_so.core.schedule.schedule import Schedule
from tests.callbacks import test_shadow_ranks
from tests.cli.test_plan import Deep, asked
from tests.support import ranks, shards, shares, trainings

ADAMW = torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}
ADAM = torch.optim.Adam, {"lr": 3e-3, "weight_decay": 0.1}
SGD = torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
SOON = SOAP(start=4, period=3)
METHODS = {
    "soap": (SOON, ADAMW),
    "soap, coupled": (SOON, ADAM),
    "kfac": (KFAC(fisher="empirical", period=3), SGD),
    "kfac before adamw": (KFAC(fisher="empirical", period=3), ADAMW),
    "ekfac": (EKFAC(fisher="empirical", period=3, start=4), ADAMW),
    "ekfac on sgd": (EKFAC(fisher="empirical", period=3), SGD),
    "shampoo": (Shampoo(period=3), ADAMW),
    "shampoo on sgd": (Shampoo(period=3), SGD),
    "muon beside soap": (Mixture({"tall.*": Muon(), "*": SOON}), ADAMW),
}
DOUBLE = {"dtype": torch.float64}


def same(many, one):
    for weights, *_ in many:
        for name, value in weights.items():
            assert torch.equal(value, many[0][0][name]), f"ranks differ in {name}"
            torch.testing.assert_close(value, one[name], rtol=0, atol=1e-10)


def rows(everyday):
    cases = [("two", name, 0.0) for name in METHODS]
    cases += [("two", "soap", 0.5), ("four", "soap", 0.5), ("four", "kfac", 0.0)]
    return [pytest.param(*case, marks=() if case in everyday else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("size", "name", "share"), rows([("two", "soap", 0.0)]))
def test_weights_are_those_of_one_process(request, size, name, share):
    method, base = METHODS[name]
    one = ranks.train(method, *base, 16, shard=False, **DOUBLE)
    many = request.getfixturevalue(size).run(ranks.train, method, *base, 16, memory=Memory(share=share), **DOUBLE)
    same(many, one[0])


SITUATIONS = {
    "accumulate": {"accumulate": 2},
    "clip": {"clip": 0.1},
    "lag": {"lag": 1},
    "checked": {"verify_every": 1, "compare_every": 2},
}


@pytest.mark.parametrize("situation", [pytest.param(name, marks=pytest.mark.slow) for name in SITUATIONS])
@pytest.mark.parametrize("name", ["soap", "kfac"])
def test_situations_end_where_one_process_does(two, name, situation):
    (method, base), more = METHODS[name], SITUATIONS[situation]
    one = ranks.train(method, *base, 16, shard=False, **DOUBLE, **more)
    many = two.run(ranks.train, method, *base, 16, memory=Memory(share=0.3), **DOUBLE, **more)
    same(many, one[0])
    if situation == "checked":  # The owner looks.
        assert one[1].verified >= max(report.verified for _, report, *_ in many) > 0
        assert sum(report.verified for _, report, *_ in many) >= one[1].verified


SENT = [
    ("two", "soap", 0.0),
    ("two", "kfac", 0.0),
    ("two", "ekfac", 0.0),
    ("two", "shampoo", 0.0),
    ("four", "soap", 0.5),
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "name", "share"), SENT)
def test_bytes_are_as_predicted(request, size, name, share):
    method, base = METHODS[name]
    # Intervals are at their largest after ten of them.
    for _, report, sent, predicted in request.getfixturevalue(size).run(
        ranks.train, method, *base, 64, memory=Memory(share=share)
    ):
        assert report.step == 64
        assert (sent[-1] - sent[-25]) / 24 == pytest.approx(predicted, rel=0.01)


GO_ON = [("soap", "full"), ("soap", "compact"), ("kfac", "full"), ("kfac", "compact"), ("ekfac", "compact")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [*GO_ON, ("shampoo", "full")])
def test_a_run_goes_on_on_other_ranks_with_another_share(two, four, name, kind):
    method, base = METHODS[name]
    straight = shares.train(method, *base, range(8), kind=kind)
    ends = shares.train(method, *base, range(8, 14), given=straight.files, kind=kind)
    found = two.run(shares.train, method, *base, range(8), memory=Memory(share=0.5), kind=kind)
    same(found, straight.weights)
    for rank in found:  # The base steps on them everywhere.
        assert all(map(torch.equal, rank.moments, found[0].moments))
    for pool, share in ((four, 0.0), (two, 1.0)):
        after = pool.run(
            shares.train, method, *base, range(8, 14), memory=Memory(share=share), kind=kind, given=found[0].files
        )
        same(after, ends.weights)
    alone = shares.train(method, *base, range(8, 14), given=found[-1].files, kind=kind)
    same([alone], ends.weights)


@pytest.mark.slow
def test_curvature_is_shared_out(four):
    whole = four.run(shares.held, SOON, *ADAMW, 1.0)
    assert "all matrices" in whole[0][1]
    for share, many in ((0.0, 0), (0.5, 4), (0.6, 4)):
        found = four.run(shares.held, SOON, *ADAMW, share)
        for size, plan in found:
            assert f"curvature of {many} of 8 matrices" in plan
            # A few numbers a block are on all ranks.
            assert size == pytest.approx(whole[0][0] * (many + (8 - many) / 4) / 8, rel=0.01)


def test_traffic_decides_what_stays_everywhere():
    """Of matrices with equal traffic a number, those with least curvature a number come first: square ones."""
    sizes = {"wide": (8, 64), "square": (16, 16), "tall": (40, 8)}
    model = torch.nn.ModuleDict({name: torch.nn.Linear(*size, bias=False) for name, size in sizes.items()})
    host = Host.of(model, torch.optim.AdamW(model.parameters()), world=Supposed(1, 3))
    for share, everywhere in ((0.0, ""), (0.1, "square"), (0.4, "square tall"), (0.6, "square tall"), (1.0, "all")):
        parts = assembled(host, Options(Mixture.of(SOAP()), memory=Memory(share=share)), torch.device("cpu"))
        owners = {block.name.split(".")[0]: block.owner for block in parts.plan.blocks}
        kept = {name for name, owner in owners.items() if owner is None}
        assert kept == set(sizes if everywhere == "all" else everywhere.split()), owners
        alone = [owner for owner in owners.values() if owner is not None]
        assert len(set(alone)) == len(alone)
        for stack in parts.stacks:
            assert stack.here == (stack.owner in (None, 1))


def test_who_has_an_owner_keeps_it_whatever_the_speed_of_ranks():
    units = [Unit(stack, 0, 0, 0, cost) for stack, cost in enumerate((9.0, 5.0, 5.0, 4.0, 1.0))]
    given = [1, None, None, 1, None]
    schedule = Schedule(units, ranks=2, given=given)
    assert not schedule.stays
    assert Schedule(units, ranks=2, given=[0] * 5).stays
    for slowness in ([1.0, 1.0], [1.0, 3.0], [3.0, 1.0]):
        owners = schedule.owners(slowness)
        assert [owners[0], owners[3]] == [1, 1]
    assert schedule.owner[1:3] == [0, 0]  # What has an owner is counted first.
    assert schedule.owners([1.0, 3.0])[1:] == [0, 0, 1, 0]


def test_a_number_of_bytes_takes_a_smaller_share_after_half():
    model = torch.nn.Sequential(*(torch.nn.Linear(32, 32, bias=False) for _ in range(8)))

    def told(most, ranks):
        host = Host.of(model, torch.optim.AdamW(model.parameters()), world=Supposed(0, ranks))
        return assembled(host, Options(Mixture.of(SOAP()), memory=Memory.of(most)), torch.device("cpu")).plan.blocks

    def modes(most, ranks=4):
        blocks = told(most, ranks)
        memory = blocks[0].memory
        return memory.half, memory.share, sum(block.owner is None for block in blocks)

    # Moments 2, factors in strips 1.5, bases 2, in float16 1; of n matrices that are with owners a rank has n / 4.
    assert modes(5.51) == (False, 1.0, 8)
    assert modes(5.49) == modes(4.51) == (True, 1.0, 8)
    assert modes(4.49) == modes(4.2) == (True, 0.75, 6)
    assert modes(3.6) == (True, 0.5, 4)
    assert modes(3.3) == (True, 0.25, 2)
    assert modes(2.7) == (True, 0.0, 0)
    assert modes(Memory(most=4.2, share=0.5)) == (False, 0.5, 4)
    with pytest.raises(ConfigError, match=r"memory=2.2 cannot be met, as the least is 2.62 bytes .* Allow 2.63"):
        modes(2.2)
    with pytest.raises(ConfigError, match=r"as the least is 4.50 bytes"):
        modes(3.0, ranks=1)


def test_what_it_means_nothing_to_refuses_it_by_name(two):
    linear = torch.nn.Linear(4, 4)
    adamw = torch.optim.AdamW(linear.parameters())
    with pytest.raises(ConfigError, match=r"share=0.5\): Muon cannot have it, EKFAC and KFAC and SOAP and Shampoo"):
        attach(linear, adamw, Muon(), memory=Memory(share=0.5))
    with pytest.raises(ConfigError, match=r"Memory\(share=1.5\): share must be a number in"):
        Memory(share=1.5)
    # One script runs on any number of ranks.
    engine = attach(linear, adamw, SOAP(), memory=Memory(share=0.0))
    assert all(block.owner is None for block in engine.plan.blocks)
    for sharding in ("exact", "local"):
        for said in two.run(shards.refused, SOAP(), *ADAMW, sharding=sharding, memory=Memory(share=0.5)):
            assert "Memory(share=0.5) is for DDP, and ranks hold pieces of these parameters" in said


@pytest.mark.slow
def test_an_optimizer_gives_its_state_where_all_ranks_take_part(two):
    for said in two.run(shares.refused, 0.0, shares.ask):
        assert "in rotated coordinates, and a rank has pieces of them, or not all bases" in said
    for said in two.run(shares.refused, 1.0, shares.ask):
        assert "exp_avg_sq" in said
    for sizes, kept in two.run(shares.refused, 0.0, shares.ask_alone):
        assert kept
        assert {size > 0 for size in sizes} == {False, True}  # Of what does not rotate they are as they were.


@pytest.mark.slow
def test_what_leaving_would_change_is_the_same(two):
    asked = {share: two.run(shares.refused, share, shares.leave) for share in (1.0, 0.3, 0.0)}
    for found in asked.values():
        for bump in found:
            assert bump.cosine == pytest.approx(asked[1.0][0].cosine, rel=1e-4)
            assert bump.length == pytest.approx(asked[1.0][0].length, rel=1e-4)


@pytest.mark.slow
def test_padded_batches_do_not_mix_what_is_everywhere_with_what_is_not(two):
    """Which others are in a batch is felt in the last bits, so that every rank must have the same ones in it."""
    how = {"ways": Ways(padding="padded"), "route": {"hidden": ["*"]}}
    method = SOAP(start=10**6)
    one = ranks.train(method, *ADAMW, 8, shard=False, **DOUBLE, **how)
    for share in (0.1, 0.3, 0.6):
        same(two.run(ranks.train, method, *ADAMW, 8, memory=Memory(share=share), **DOUBLE, **how), one[0])


def test_results_that_share_their_work_space_are_told_apart():
    model = torch.nn.Sequential(torch.nn.Linear(8, 12, bias=False), torch.nn.Linear(12, 8, bias=False))
    host = Host.of(model, torch.optim.AdamW(model.parameters()))
    parts = assembled(host, Options(Mixture.of(SOAP())), torch.device("cpu"))
    for param in model.parameters():
        param.grad = torch.rand_like(param)
    parts.roster.refresh()
    matrices, found = OwnedMatrices(host), dict[str, torch.Tensor]()
    items = list[MatrixWork]()
    for cohort in parts.roster:
        cohort.blocks[0].owner = 0
        source = partial(matrices.fill, cohort, matrices.gradients(cohort), 0)
        items.append(MatrixWork(cohort, source, iter, partial(found.__setitem__, cohort.blocks[0].name)))
    matrices.transform(items)
    for number, param in enumerate(model.parameters()):
        assert torch.equal(found[f"{number}.weight"][0], param.grad)


@pytest.mark.slow
def test_a_parameter_joins_in_mid_training(two):
    one, rotated = shares.grown(None)
    many = two.run(shares.grown, 0.0)
    same(many, one)
    assert many[0][1] == rotated > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "some"), [("soap", (0.5, 0.0)), ("kfac before adamw", (0.0,))])
def test_a_plan_foretells_it(two, name, some):
    method, base = METHODS[name]
    wanted = asked(method, Deep, World(1, 2, "ddp"))
    for share in some:
        found = forecast(replace(wanted, options=replace(wanted.options, memory=Memory(share=share))))
        real = two.run(shares.deep, method, *base, share)
        assert found.sent["curvature"] == pytest.approx(real[0].predicted, rel=0.01)
        for rank, held in enumerate(each.held for each in real):
            parts = found.memory.get(rank, found.memory[0])
            assert parts["factors"] + parts["bases and roots"] == pytest.approx(held, rel=0.01)


def trained(strategy, memory, folder, resume=None):
    """A training with all that looks at it: a recorder, a monitor, checkpoints."""
    monitor = CurvatureMonitor(every=4, products=6, verbose=False)
    looks = [monitor, Recorder(root=folder), trainings.Save(folder / f"{strategy}.ckpt", 8)]
    asked = {"dtype": torch.float64, "memory": memory, "callbacks": looks, "resume": resume}
    return trainings.train(strategy, SOON, ADAMW, 12, **asked).weights, monitor.last


@pytest.mark.slow
def test_trainers_go_on_from_files_and_are_watched(two, tmp_path):
    one, seen = trained("one", None, tmp_path)
    for resume in (None, tmp_path / "one.ckpt", tmp_path / "ddp.ckpt"):
        many = two.run(trained, "ddp", Memory(share=0.4), tmp_path, resume)
        same(many, one)
        assert many[0][1].top == pytest.approx(seen.top, rel=1e-6)
    assert len(list(tmp_path.rglob("*.json*"))) >= 2
    same([trained("one", None, tmp_path, tmp_path / "ddp.ckpt")], one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["soap", "kfac"])
def test_a_shadow_has_the_twin_of_one_process(two, method):
    _, alone = test_shadow_ranks.shadowed("one", method)
    many = two.run(test_shadow_ranks.shadowed, "ddp", method, memory=Memory(share=0.0))
    together = torch.tensor([losses for _, losses in many], dtype=torch.float64).mean(0)
    torch.testing.assert_close(together, torch.tensor(alone, dtype=torch.float64), rtol=0, atol=1e-10)
