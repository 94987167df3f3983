"""Several ranks equal one process with the same global batch, and each other bit for bit."""

import re

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Mixture, Muon, Shampoo
from tests.support import ranks
from tests.support.daily import daily
from tests.support.world import World

SOAP10 = SOAP(start=10, period=4)
KFAC4 = KFAC(fisher="empirical", period=4)
MIXED = Mixture({"tall.*": KFAC(fisher="empirical", period=4), "*": SOAP(start=10, period=8)})
ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01})
ADAM = (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 0.1})


def close(many, one, tolerance):
    for weights, *_ in many:
        for name, value in weights.items():
            assert torch.equal(value, many[0][0][name]), f"ranks differ in {name}"
            torch.testing.assert_close(value, one[0][name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


SITUATIONS = {
    "adamw": (ADAMW, {}),
    "coupled": (ADAM, {}),
    "accumulate": (ADAMW, {"accumulate": 2}),
    "clip": (ADAMW, {"clip": 0.1}),
}


@pytest.mark.parametrize("situation", daily(SITUATIONS, "accumulate", "clip"))
@pytest.mark.parametrize(
    ("method", "dtype", "tolerance"),
    # Whole sides have near-null spaces at step 10, where one ulp on the initial weights moves the final ones of
    # a single process by 3e-5 in float32: that case is in float64. Tiles of 3 have full rank.
    [(SOAP(start=10, period=4), torch.float64, 1e-10), (SOAP(start=10, period=4, cap=3), torch.float32, 1e-6)],
    ids=["whole-float64", "tiles-float32"],
)
def test_soap_equals_one_process(two, situation, method, dtype, tolerance):
    base, more = SITUATIONS[situation]
    one = ranks.train(method, *base, 24, shard=False, dtype=dtype, **more)
    many = two.run(ranks.train, method, *base, 24, dtype=dtype, **more)
    close(many, one, tolerance)
    assert many[0][1].rotated == 3
    assert many[0][1].solves == one[1].solves > 0
    # Each solve happened on one rank only.
    assert sum(report.solved_here for _, report, *_ in many) == one[1].solves


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 5e-3)])
def test_muon_equals_one_process(pool, precision, tolerance):
    method = Muon(precision=precision)
    one = ranks.train(method, *ADAMW, 24, shard=False)
    close(pool.run(ranks.train, method, *ADAMW, 24), one, tolerance)


TILES = KFAC(fisher="empirical", period=4, exact=True, cap=5)
GAUSS_NEWTON = KFAC(period=4, fisher="exact")


# What is clipped is gradients, of which every kind of factor knows nothing: one of them shows it.
@pytest.mark.parametrize("base", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    ("method", "more"),
    [
        pytest.param(KFAC4, {}, marks=pytest.mark.slow),
        (KFAC4, {"accumulate": 2}),
        (KFAC4, {"clip": 0.1}),
        pytest.param(TILES, {}, marks=pytest.mark.slow),
        pytest.param(TILES, {"accumulate": 2}, marks=pytest.mark.slow),
        pytest.param(GAUSS_NEWTON, {}, marks=pytest.mark.slow),
        pytest.param(GAUSS_NEWTON, {"accumulate": 2}, marks=pytest.mark.slow),
    ],
    ids=[
        *("factored-", "factored-accumulate", "factored-clip", "exact-tiles-", "exact-tiles-accumulate"),
        *("gauss-newton-", "gauss-newton-accumulate"),
    ],
)
def test_kfac_equals_one_process(two, base, method, more):
    one = ranks.train(method, *base, 24, shard=False, dtype=torch.float64, **more)
    many = two.run(ranks.train, method, *base, 24, dtype=torch.float64, **more)
    close(many, one, 1e-10)
    assert many[0][1].preconditioned + many[0][1].bent == 3
    assert many[0][1].failures == 0
    assert sum(report.solved_here for _, report, *_ in many) == one[1].solves > 0


@pytest.mark.parametrize("base", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("more", daily([{}, {"accumulate": 2}], {"accumulate": 2}), ids=["", "accumulate"])
@pytest.mark.parametrize("method", [Shampoo(period=4), Shampoo(period=4, whiten=True)], ids=["", "whitened"])
def test_shampoo_equals_one_process(two, method, base, more):
    # A factor's null space is damped by a millionth: its root magnifies rounding a thousand times.
    one = ranks.train(method, *base, 24, shard=False, dtype=torch.float64, **more)
    many = two.run(ranks.train, method, *base, 24, dtype=torch.float64, **more)
    close(many, one, 1e-9)
    assert many[0][1].preconditioned + many[0][1].bent == 3
    assert sum(report.solved_here for _, report, *_ in many) == one[1].solves > 0


@pytest.mark.parametrize("base", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("more", daily([{}, {"accumulate": 2}], {"accumulate": 2}), ids=["", "accumulate"])
@pytest.mark.parametrize("fisher", ["empirical", pytest.param("exact", marks=pytest.mark.slow)])
def test_ekfac_equals_one_process(two, base, more, fisher):
    method = EKFAC(start=10, period=4, fisher=fisher)
    one = ranks.train(method, *base, 24, shard=False, dtype=torch.float64, **more)
    many = two.run(ranks.train, method, *base, 24, dtype=torch.float64, **more)
    close(many, one, 1e-10)
    assert many[0][1].solves == one[1].solves > 0
    assert many[0][1].rotated + many[0][1].preconditioned > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "base", "more"),
    [
        (SOAP10, ADAMW, {"accumulate": 2}),
        (KFAC4, SGD, {"clip": 0.1}),
        (KFAC(fisher="empirical", period=4, exact=True, cap=5), ADAMW, {}),
        (EKFAC(fisher="empirical", start=10, period=4), ADAMW, {"accumulate": 2}),
        (EKFAC(period=4, fisher="exact"), SGD, {}),
        (Shampoo(period=4), SGD, {}),
    ],
)
def test_four_ranks_equal_one_process(four, method, base, more):
    one = ranks.train(method, *base, 24, shard=False, dtype=torch.float64, **more)
    many = four.run(ranks.train, method, *base, 24, dtype=torch.float64, **more)
    close(many, one, 1e-9)
    assert sum(report.solved_here for _, report, *_ in many) == one[1].solves > 0


@pytest.mark.parametrize("how", ["curvature", "end"])
def test_every_rank_has_the_curvature(pool, how):
    arguments = (EKFAC(fisher="empirical", period=4), *SGD, 12, how)
    one = ranks.observed(*arguments)
    assert len(one) == 3
    for found in pool.run(ranks.observed, *arguments):
        assert found.keys() == one.keys()
        for name, tensors in found.items():
            for tensor, expected in zip(tensors, one[name], strict=True):
                torch.testing.assert_close(tensor, expected, rtol=1e-7, atol=1e-10)


def test_kfac_equals_one_process_where_gradients_are_zeroed_in_place(pool):
    one = ranks.train(KFAC4, *SGD, 24, shard=False, dtype=torch.float64)
    close(pool.run(ranks.train, KFAC4, *SGD, 24, dtype=torch.float64, set_to_none=False), one, 1e-10)


def test_kfac_of_a_sum_equals_that_of_a_mean(pool):
    base = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})
    one = ranks.train(KFAC4, *base, 24, shard=False, dtype=torch.float64)
    close(pool.run(ranks.train, KFAC4, *base, 24, dtype=torch.float64, reduction="sum"), one, 1e-10)


def test_a_mixture_equals_one_process(pool):
    method = Mixture({"tall.*": KFAC(fisher="empirical", period=4), "wide.*": Muon(), "*": SOAP(start=10, period=8)})
    one = ranks.train(method, *ADAMW, 24, shard=False, dtype=torch.float64)
    close(pool.run(ranks.train, method, *ADAMW, 24, dtype=torch.float64), one, 1e-10)


@pytest.mark.parametrize(
    ("method", "rel"),
    daily(
        [(SOAP10, 0.05), (KFAC4, 0.05), (EKFAC(fisher="empirical", period=4), 0.1), (MIXED, 0.1)],
        *((SOAP10, 0.05), (MIXED, 0.1)),
    ),
    ids=["soap", "kfac", "ekfac", "mixture"],
)
def test_bytes_are_as_predicted(pool, method, rel):
    for _, _, sent, predicted in pool.run(ranks.train, method, *ADAMW, 80):
        assert (sent[-1] - sent[-33]) / 32 == pytest.approx(predicted, rel=rel)


def test_a_non_finite_gradient_on_one_rank_is_withheld_on_all(pool):
    many = pool.run(ranks.train, SOAP10, *ADAMW, 20, poison=(1, 15))
    close(many, many[0], 0)
    assert [report.skipped for _, report, *_ in many] == [1] * len(many)
    assert all(bool(value.isfinite().all()) for value in many[0][0].values())


def test_a_gradient_that_one_rank_lacks_is_withheld_on_all(pool):
    many = pool.run(ranks.train, SOAP10, *ADAMW, 20, drop=(1, 15))
    close(many, many[0], 0)
    assert [report.withheld for _, report, *_ in many] == [0 if r == 1 else 1 for r in range(len(many))]


@pytest.mark.parametrize(
    ("method", "base", "stop"),
    [
        pytest.param(SOAP10, ADAMW, 6, marks=pytest.mark.slow),
        (SOAP10, ADAMW, 10),
        (SOAP10, ADAMW, 17),
        pytest.param(KFAC4, ADAMW, 9, marks=pytest.mark.slow),
        (KFAC4, SGD, 9),
        pytest.param(KFAC(period=4, fisher="sampled"), SGD, 9, marks=pytest.mark.slow),
        (EKFAC(fisher="empirical", start=10, period=4), ADAMW, 17),
        pytest.param(EKFAC(fisher="empirical", period=4), SGD, 9, marks=pytest.mark.slow),
        pytest.param(Shampoo(period=4), SGD, 9, marks=pytest.mark.slow),
        pytest.param(Shampoo(period=4), ADAMW, 9, marks=pytest.mark.slow),
        (MIXED, ADAMW, 17),
    ],
    ids=[
        "soap-bent",
        "soap-switch",
        "soap-rotated",
        "kfac-bent",
        "kfac-preconditioned",
        "kfac-sampled",
        "ekfac-rotated",
        "ekfac-preconditioned",
        "shampoo",
        "shampoo-bent",
        "mixture",
    ],
)
def test_resuming_equals_not_having_stopped(two, method, base, stop):
    ends = two.run(ranks.resumed, method, *base, 24, stop)
    for straight, again in ends:
        for name, value in straight.items():
            assert torch.equal(value, again[name]), name
            assert torch.equal(value, ends[0][0][name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("method", "base", "stop"), [(SOAP10, ADAMW, 17), (KFAC4, SGD, 9)], ids=["soap", "kfac"])
def test_resuming_on_four_ranks_equals_not_having_stopped(four, method, base, stop):
    test_resuming_equals_not_having_stopped(four, method, base, stop)


def test_states_load_into_another_world_size(pool):
    straight = ranks.states(SOAP10, *ADAMW, range(24))
    for first, last in ((pool.run, None), (None, pool.run)):
        alone = lambda function, *arguments: [function(*arguments)]  # noqa: E731
        half = (first or alone)(ranks.states, SOAP10, *ADAMW, range(14))[0]
        ends = (last or alone)(ranks.states, SOAP10, *ADAMW, range(14, 24), half)
        for weights, _, engine in ends:
            torch.testing.assert_close(weights, straight[0], rtol=0, atol=1e-10)
            assert engine["report"]["solves"] == straight[2]["report"]["solves"]


def test_ranks_that_differ_are_told_on_all_ranks(pool):
    told = pool.run(ranks.diverges, SOAP10, *ADAMW, 4)
    assert set(told) == {told[0]}
    assert re.search(r"step 8: the weights of ranks \[1\] differ from rank 0's, first in wide\.bias", told[0]), told[0]
    assert set(pool.run(ranks.diverges, SOAP10, *ADAMW, 0)) == {"no error"}


def test_a_users_communication_hook_keeps_working(pool):
    stock, hooked, compressed = (
        pool.run(ranks.train, SOAP10, *ADAMW, 20, hook=hook) for hook in (None, "plain", "fp16")
    )
    close(hooked, stock[0], 1e-6)
    close(compressed, compressed[0], 0)
    assert not torch.equal(compressed[0][0]["tall.weight"], stock[0][0]["tall.weight"])  # it did compress


@pytest.mark.slow
def test_a_rank_that_dies_is_an_error_for_the_others():
    world = World(2)
    world.pipes[0].send((ranks.dies, (SOAP10, *ADAMW), {}))
    world.pipes[1].send((ranks.dies, (SOAP10, *ADAMW), {}))
    assert world.pipes[0].poll(90), "the survivor hangs"
    ok, value, _ = world.pipes[0].recv()
    assert ok, value
    assert value != "no error"
    for process in world.processes:
        process.kill()
