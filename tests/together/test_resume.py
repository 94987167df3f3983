"""A training that is killed and resumed equals one that was never stopped, bit for bit."""

import pytest
import torch

from benchmarks.resume.compare import different, trials
from tests.support.forked import call


def records_of(*arguments, **named):
    return list(trials(*arguments, **named))


@pytest.mark.slow
def test_kill_and_resume_equals_not_having_stopped(tmp_path):
    records = call(records_of, "soap", ranks=1, kills=3, seed=1, folder=tmp_path)
    assert [record["phase"] for record in records] == ["before", "at", "after"]
    for record in records:
        assert 0 < record["resumed_after"] <= record["step"]
        assert record["different"] == [], record
        assert record["weights_equal"]
        assert record["state_equal"]


@pytest.mark.slow
def test_kfac_resumes_with_factors_that_only_their_owner_had(tmp_path):
    for record in call(records_of, "kfac_sgd", ranks=2, kills=1, seed=1, folder=tmp_path):
        assert 0 < record["resumed_after"] <= record["step"]
        assert record["different"] == [], record


def test_one_bit_is_a_difference():
    weights = torch.ones(3)
    changed = torch.nextafter(weights, torch.tensor([1.0, 2.0, 1.0]))
    assert different([{"a": weights, "b": 1}], [{"a": weights.clone(), "b": 1}]) == []
    assert different([{"a": weights, "b": 1}], [{"a": changed, "b": 2}]) == ["/0/a", "/0/b"]
    assert different(torch.zeros(1), -torch.zeros(1)) == [""]
