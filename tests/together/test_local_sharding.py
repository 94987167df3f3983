"""`sharding="local"`: each rank's rows are the matrix, nothing travels but the guard's flags, states are of all."""

import copy
import functools
import io

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_so import KFAC, SOAP, ConfigError, Mixture, Muon, SecondOrder, Shampoo, StateError, attach
from tests.support import shards
from tests.support.peers import needs_deepspeed
from tests.support.trainings import Save, train
from tests.together.test_fsdp2 import BASES
from tests.together.test_travel import ADAMW, FORMS, NAME, Signal, content

#: Where a cold state is gone on with, blocks enter anew after the stop.
STEPS, STOP = 18, 12

METHODS = {
    "soap": SOAP(start=10, period=4),
    "muon": Muon(),
    "shampoo": Shampoo(period=4),
    "mixture": Mixture({"up.*": "muon", "*": SOAP(start=10, period=8)}),
}
PAIRS = ["soap adamw", "muon sgd", "shampoo sgd", "shampoo adamw", "mixture adamw"]
EVERYDAY = ("soap adamw", "shampoo sgd")
ROWS = [pytest.param(pair, marks=() if pair in EVERYDAY else pytest.mark.slow) for pair in PAIRS]


def rows_of(model, rank, ranks):
    """A model whose parameters are a rank's rows, as leaves."""
    mine = copy.deepcopy(model)
    for module, other in zip(mine.modules(), model.modules(), strict=True):
        for name, param in list(other.named_parameters(recurse=False)):
            cut = param.detach().chunk(ranks)
            setattr(module, name, nn.Parameter(cut[rank].clone() if rank < len(cut) else param.detach()[:0].clone()))
    return mine


def apart(method, base, arguments, steps=16, ranks=2, poisoned=None):
    """The truth, in one process: an engine and an optimizer for the rows of every rank, on one global batch."""
    model, *_ = shards.made()
    parts = [rows_of(model, rank, ranks) for rank in range(ranks)]
    optimizers = [base(part.parameters(), **arguments) for part in parts]
    engines = [attach(part, optimizer, method) for part, optimizer in zip(parts, optimizers, strict=True)]

    def whole():
        named = [dict(part.named_parameters()) for part in parts]
        return {name: torch.cat([rows[name] for rows in named]) for name in named[0]}

    for step in range(steps):
        weights = whole()
        for rank in range(ranks):
            x, y = (part[rank::ranks] for part in shards.batch(step))
            out = torch.func.functional_call(model, weights, (x,))
            (nn.functional.cross_entropy(out.flatten(0, 1), y.flatten()) / ranks).backward(retain_graph=True)
        if step == poisoned:
            for part in parts:
                part.up.weight.grad[0] = float("nan")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach() for name, value in whole().items()}, [engine.report for engine in engines]


def check(ranks, truth, replicas=1):
    weights, reports = truth
    for number, rank in enumerate(ranks):
        for name, value in weights.items():
            torch.testing.assert_close(rank.weights[name], value, rtol=0, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
        alone = reports[number % len(reports)]
        for count in ("step", "skipped", "solves", "failures", "rotated", "bent", "preconditioned"):
            assert getattr(rank.report, count) == getattr(alone, count), (number, count)
        # The guard's flags, one byte a parameter and one for all.
        flags = 1 + len(weights)
        assert {after - before for before, after in zip(rank.sent, rank.sent[1:], strict=False)} == {flags}
        assert rank.predicted == (flags, flags)
        assert rank.report.sent == rank.sent[-1]
        assert "sharding='local': each of" in rank.plan


@pytest.mark.parametrize("pair", ROWS)
def test_two_ranks_give_the_weights_of_rows_that_are_matrices_of_their_own(two, pair):
    method, base = pair.split()
    given = METHODS[method], *BASES[base]
    found = two.run(shards.train, *given, sharding="local", event=shards.poison)
    check(found, apart(*given, poisoned=12))
    assert all(rank.report.skipped == 1 for rank in found)
    # Of three rows the second rank has one, which is no matrix.
    blocks = [rank.report.rotated + rank.report.bent + rank.report.preconditioned for rank in found]
    assert blocks[0] == blocks[1] + 1


@pytest.mark.slow
def test_two_replicas_of_two_pieces_are_two_ranks(four):
    given = METHODS["soap"], *BASES["adamw"]
    check(four.run(shards.train, *given, sharding="local", mesh=(2, 2)), apart(*given))


# ---------------------------------------------------------------- a rank without a block


def three_rows(least):
    """Rank 0 has two rows of a matrix, rank 1 one row, which stays on the base."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    try:
        engine = attach(model, optimizer, Shampoo(period=2), sharding="local", min_coverage=least)
    except ConfigError as error:
        return str(error)
    clips = []
    for _ in range(3):
        model(torch.ones(2, 4, dtype=torch.float64)).square().sum().backward()
        clips.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.01).full_tensor()))
        engine.step()
        norm = float(model.weight.grad.full_tensor().norm())
        optimizer.step()
        optimizer.zero_grad()
    return clips, norm, engine.plan.rows[0].verdict


def test_a_rank_without_a_block_agrees_with_the_others(two):
    (clips, norm, verdict), (others, other, reason) = two.run(three_rows, 0.6)
    # Shampoo keeps the lengths of blocks, so that the norm is the one that was clipped, over all ranks.
    assert norm == other == pytest.approx(0.01, rel=1e-3)
    assert clips == others
    assert len(clips) == 3
    assert "precondition" in verdict or "hidden" in verdict
    assert reason == "base: a single row or column"
    for told in two.run(three_rows, 0.7):
        assert "coverage 0.667 is below min_coverage=0.7" in told


def verdicts():
    """What the plan says of matrices of four rows and of one, and of one that FSDP2 leaves alone."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False), nn.Linear(1, 3, bias=False))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params=set(model[2].parameters()))
    engine = attach(model, torch.optim.AdamW(model.parameters()), Muon(), sharding="local")
    engine.detach()
    return [row.verdict for row in engine.plan.rows]


def test_what_a_rank_has_not_or_all_have_stays_on_the_base_by_name(two):
    (first, *_), (second, empty, ignored) = two.run(verdicts)
    assert first == second == "hidden: bend"
    assert empty == "base: no rows of it on this rank"
    assert ignored == "base: whole on every rank, which sharding='local' leaves alone"


# ---------------------------------------------------------------- checkpoints

METHOD = SOAP(start=4, period=4)


def said(*arguments, **named):
    """What a rank says."""
    try:
        train(*arguments, **named)
    except (StateError, ConfigError) as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def saved(tmp_path_factory, two):
    """Gives a run that saved at `STOP` and went on, and the path."""
    folder = tmp_path_factory.mktemp("saved")

    @functools.cache
    def give(form, sharding="local", state="full"):
        path, (strategy, whole) = folder / f"{form} {sharding} {state}.ckpt", FORMS[form]
        how = {"whole_files": whole, "sharding": sharding, "state": state, "callbacks": [Save(str(path), STOP)]}
        return two.run(train, strategy, METHOD, ADAMW, STEPS, **how), path

    return give


def resume(world, form, path, function=train, **how):
    strategy, whole = FORMS[form]
    return world.run(function, strategy, METHOD, ADAMW, STEPS, resume=str(path), whole_files=whole, **how)


def parts(file):
    """Every rank's state in a file."""
    states = file["callbacks"][NAME]["engines"][0]["states"]
    return [torch.load(io.BytesIO(state.numpy().tobytes()), weights_only=True) for state in states]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fsdp2 in pieces", "fsdp2"])
def test_a_resumed_run_equals_one_that_did_not_stop_bit_for_bit(two, saved, form):
    straight, path = saved(form)
    for again, rank in zip(resume(two, form, path, sharding="local"), straight, strict=True):
        assert all(torch.equal(again.weights[name], value) for name, value in rank.weights.items())
        assert again.report.portable() == rank.report.portable()
        assert again.report.rotated > 10
    # A rank has fewer than 15 matrices of more than one row where only one is left for it.
    assert straight[0].report.rotated > straight[1].report.rotated


@pytest.mark.parametrize("form", ["fsdp2 in pieces", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_files_hold_plain_moments(saved, form):
    state, _, file = content(saved(form)[1])
    ranks, checked = parts(file), 0
    for name in ranks[1]["moments"]:
        pieces, squares = [], []
        for rank in ranks:
            tensors, exact = rank["blocks"][name]["tensors"], rank["moments"][name]
            left, right = tensors["rows.basis.0"], tensors["cols.basis.0"]
            pieces.append(left @ exact["exp_avg"] @ right.mT)
            squares.append(left.square() @ exact["exp_avg_sq"] @ right.mT.square())
            assert not torch.allclose(pieces[-1], exact["exp_avg"], rtol=1e-2)
        torch.testing.assert_close(state[name]["exp_avg"], torch.cat(pieces), rtol=1e-4, atol=1e-7)
        # A few are raised to what the first moment allows.
        ratio = state[name]["exp_avg_sq"] / torch.cat(squares)
        assert ratio.min() > 1 - 1e-4
        assert ratio.median() < 1 + 1e-4
        checked += 1
    assert checked > 10


@pytest.mark.slow
def test_states_of_other_ranks_or_sharding_are_refused_by_name_and_start_cold(two, saved):
    straight, path = saved("fsdp2")
    one = (FORMS["one"][0], METHOD, ADAMW, STEPS)
    text = "the state was written with sharding='local', this run has whole matrices"
    assert text in said(*one, resume=str(path), sharding="local")
    assert all(text in told for told in resume(two, "fsdp2", path, said))
    exact = saved("fsdp2", "exact")[1]
    for told in resume(two, "fsdp2", exact, said, sharding="local"):
        assert "the state was written with sharding='exact', this run has sharding='local'" in told
        assert "state='rebuild'" in told
    cold = train(*one, resume=str(path), state="rebuild")
    assert cold.report.step == STEPS
    assert cold.report.rotated > 5
    assert all((cold.weights[name] - value).abs().max() < 0.1 for name, value in straight[0].weights.items())
    for rank in resume(two, "fsdp2", exact, sharding="local", state="rebuild"):
        assert rank.report.step == STEPS
        assert rank.report.rotated > 5
    # One rank alone has another block: its bottleneck has two rows, and the other's is a single one.
    for told in resume(two, "fsdp2", path, said, sharding="local", route={"base": ["net.narrow.weight"]}):
        assert "Only in the state: ['net.narrow.weight']" in told or "another rank refuses its part" in told


@pytest.mark.slow
def test_four_ranks_are_other_ranks(four, saved):
    path = saved("fsdp2")[1]
    for told in resume(four, "fsdp2", path, said, sharding="local"):
        assert "the state is of sharding='local' on 2 ranks, this run has 4" in told
    assert resume(four, "fsdp2", path, sharding="local", state="rebuild")[0].report.step == STEPS


@pytest.mark.slow
def test_replicas_are_kept_once_and_another_mesh_is_refused(four, tmp_path):
    path, how = tmp_path / "some.ckpt", {"whole_files": True, "sharding": "local"}
    straight = four.run(train, "hsdp", METHOD, ADAMW, STEPS, callbacks=[Save(str(path), STOP)], **how)
    assert all(torch.equal(straight[0].weights[name], rank.weights[name]) for rank in straight for name in rank.weights)
    again = four.run(train, "hsdp", METHOD, ADAMW, STEPS, resume=str(path), **how)
    assert all(torch.equal(again[0].weights[name], value) for name, value in straight[0].weights.items())
    states = content(path)[2]["callbacks"][NAME]["engines"][0]["states"]
    assert len({state.data_ptr() for state in states}) == 2
    for told in resume(four, "fsdp2", path, said, sharding="local"):
        assert "the state is of other rows of the weights" in told


@pytest.mark.slow
@pytest.mark.parametrize("state", ["compact", "rebuild"])
def test_smaller_states(two, saved, state):
    straight, path = saved("fsdp2", state=state)
    for again, rank in zip(resume(two, "fsdp2", path, sharding="local"), straight, strict=True):
        assert (again.report.step, again.report.failures) == (STEPS, 0)
        # Cold blocks have not all entered again.
        assert again.report.rotated == (rank.report.rotated if state == "compact" else 6)
        assert all((again.weights[name] - value).abs().max() < 0.1 for name, value in rank.weights.items())


@pytest.mark.slow
def test_a_signals_handler_saves_moments_and_no_curvature(two, tmp_path):
    path = tmp_path / "signal.ckpt"
    two.run(
        train, "fsdp2", METHOD, ADAMW, STEPS, whole_files=True, callbacks=[Signal(str(path), STOP)], sharding="local"
    )
    state, _, file = content(path)
    assert all(moments["exp_avg_sq"].any() and moments["step"] == STOP for moments in state.values())
    assert file["callbacks"][NAME]["engines"][0]["kind"] == "rebuild"
    assert resume(two, "fsdp2", path, sharding="local")[0].report.step == STEPS


# ---------------------------------------------------------------- refusals


def test_what_needs_whole_matrices_is_refused_by_name(two):
    for method in (KFAC(), Mixture({"Conv1d": KFAC(), "*": "muon"})):
        for told in two.run(shards.refused, method, *BASES["sgd"], sharding="local"):
            assert "the factors of KFAC are of whole layers: use sharding='exact', or SOAP" in told
    for told in two.run(shards.refused, Muon(), *BASES["adamw"], sharding="local", verify_every=3):
        assert "verify_every" in told
    for told in two.run(said, "fsdp1", METHOD, ADAMW, steps=2, sharding="local"):
        assert "FullyShardedDataParallel (FSDP1) cuts through rows: use FSDP2" in told
    layer = nn.Linear(2, 2)
    for make in (functools.partial(attach, layer, torch.optim.AdamW(layer.parameters())), SecondOrder):
        with pytest.raises(ConfigError, match=r"sharding='half'\): sharding must be one of \['exact', 'local'\]"):
            make(METHOD, sharding="half")


@pytest.mark.slow
@needs_deepspeed
def test_zero_is_refused_by_name(two):
    for told in two.run(said, "zero2", METHOD, ADAMW, steps=2, sharding="local"):
        assert "DeepSpeed's ZeRO cuts through rows: use FSDP2" in told


def test_where_nothing_is_cut_it_changes_nothing_and_says_so():
    model = nn.Linear(4, 3)
    engine = attach(model, torch.optim.AdamW(model.parameters()), METHOD, sharding="local")
    assert "sharding='local' changes nothing: parameters are whole on every rank" in str(engine.plan)
    engine.detach()
    assert "sharding" not in str(attach(model, torch.optim.AdamW(model.parameters()), METHOD).plan)
