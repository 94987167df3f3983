"""Situations under FSDP2: what one rank meets is known to all, and any number of ranks does what one process does."""

import pytest
import torch

from lightning_so import EKFAC, KFAC, SOAP, Muon, Shampoo
from tests.support import noted, shards
from tests.together.test_fsdp2 import same

ADAMW = (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1})
SGD = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01})
SOAP4 = (SOAP(start=4, period=4), *ADAMW)
KFAC4 = (KFAC(fisher="empirical", period=4), *SGD)
EKFAC4 = (EKFAC(fisher="empirical", start=4, period=4), *ADAMW)
SLOW = pytest.mark.slow
EACH = pytest.mark.parametrize("how", [SOAP4, pytest.param(KFAC4, marks=SLOW)], ids=["soap", "kfac"])


def equal(pool, how, **more):
    many, alone = pool.run(shards.train, *how, **more), shards.train(*how, **more)
    same(many, alone)
    return many, alone


@pytest.mark.thread("microsoft/dion#79")
@EACH
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(pool, how):
    many, alone = equal(pool, how, event=shards.poison)
    assert alone.report.skipped == 1
    for rank in many:
        assert rank.report.skipped == 1
        assert [step for step, change in enumerate(rank.changes) if change == 0] == [12]


@pytest.mark.filterwarnings("ignore:.*while the bias has one")  # the weight's is withheld
@pytest.mark.thread("facebookresearch/optimizers#149")
@EACH
def test_a_gradient_that_one_rank_lacks_is_withheld_on_all(pool, how):
    many, _ = equal(pool, how, event=shards.drop)
    assert [rank.report.withheld for rank in many] == [int(number != 1) for number in range(len(many))]
    assert all(rank.report.skipped == 0 for rank in many)


@pytest.mark.thread("facebookresearch/optimizers#271")
@pytest.mark.parametrize(
    ("how", "name"),
    [
        (KFAC4, "conv.bias"),
        pytest.param(KFAC4, "up.weight", marks=SLOW),
        pytest.param(KFAC4, "norm.bias", marks=SLOW),
        pytest.param(SOAP4, "up.weight", marks=SLOW),
    ],
)
@pytest.mark.filterwarnings("ignore:.*while the bias has one")
def test_a_frozen_parameter_stays_as_it_is(two, how, name):
    many, _ = equal(two, how, frozen=name)
    model, *_ = shards.made()
    for other, value in model.named_parameters():
        assert torch.equal(many[0].weights[other], value) is (other == name)


@pytest.mark.thread("own")
@pytest.mark.filterwarnings("ignore:.*while the bias has one")
@pytest.mark.parametrize("event", [shards.still, shards.alone])
@pytest.mark.parametrize(
    "how",
    [EKFAC4, pytest.param((EKFAC(fisher="empirical", period=4), *SGD), marks=SLOW), pytest.param(KFAC4, marks=SLOW)],
    ids=["ekfac", "preconditioned", "kfac"],
)
def test_biases_that_stand_still_or_live_alone(two, how, event):
    many, one = equal(two, how, event=event)
    for rank in many:
        assert (rank.report.rotated, rank.report.failures) == (one.report.rotated, 0)


@pytest.mark.thread("Lightning-AI/pytorch-lightning#6891")
@pytest.mark.parametrize(
    ("how", "name"),
    [
        (SOAP4, "narrow.weight"),
        pytest.param(KFAC4, "narrow.weight", marks=SLOW),
        pytest.param(KFAC4, "up.bias", marks=SLOW),
    ],
)
def test_a_parameter_may_join_the_optimizer_later(two, how, name):
    many, _ = equal(two, how, later=name)
    model, *_ = shards.made()
    assert not torch.equal(many[0].weights[name], model.get_parameter(name))
    assert name in many[0].plan


@pytest.mark.thread("own")
@pytest.mark.parametrize(
    "how",
    [SOAP4, pytest.param((EKFAC(fisher="empirical", start=4, period=4), *ADAMW), marks=SLOW)],
    ids=["soap", "ekfac"],
)
def test_a_solve_that_fails_at_its_owner_is_counted_by_all(pool, how):
    many, alone = equal(pool, how, event=shards.failing)
    assert alone.report.failures > 0
    for rank in many:
        assert (rank.report.failures, rank.report.cooled) == (alone.report.failures, alone.report.cooled)


@pytest.mark.thread("own")
@EACH
def test_an_exception_within_the_bases_step_leaves_the_weights_as_they_were(pool, how):
    many, _ = equal(pool, how, event=shards.breaks)
    for rank in many:
        assert rank.changes[12] == 0
        assert rank.changes[13] > 0
        assert rank.report.undone == (how is SOAP4)


@pytest.mark.thread("own")
@pytest.mark.parametrize("check", ["verify_every", "compare_every"])
def test_checks_that_need_whole_weights_are_refused_by_name(two, check):
    for told in two.run(shards.refused, *SOAP4, **{check: 3}):
        assert check in told
        assert "pieces" in told
    noted.refused(told, strategy="FSDP2", option=check)


@pytest.mark.thread("facebookresearch/optimizers#149")
@pytest.mark.parametrize(
    ("how", "event"),
    [
        (KFAC4, shards.failing),
        pytest.param(SOAP4, shards.drop, marks=SLOW),
        pytest.param((EKFAC(fisher="empirical", start=4, period=4), *SGD), shards.poison, marks=SLOW),
        pytest.param((Muon(), *ADAMW), shards.drop, marks=SLOW),
        pytest.param((Shampoo(period=4), *ADAMW), shards.failing, marks=SLOW),
    ],
    ids=["kfac", "soap", "ekfac", "muon", "shampoo"],
)
def test_every_rank_makes_the_same_exchanges_in_the_same_order(pool, how, event):
    """Pitfall 16: a collective that some rank does not join hangs the others."""
    many = pool.run(shards.train, *how, event=event, later="narrow.weight")
    assert len(many[0].calls) > 3 * 16
    assert all(rank.calls == many[0].calls for rank in many)
