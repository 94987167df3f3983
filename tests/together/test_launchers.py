"""Real Trainers with real launchers, in subprocesses."""

import pytest
import torch

from tests.support.forked import module
from tests.together.test_examples import run


@pytest.mark.slow
def test_ddp_and_spawn_equal_one_process(tmp_path):
    facts = []
    for strategy, devices in (("auto", 1), ("ddp", 2), ("ddp_spawn", 2)):
        out = tmp_path / strategy
        out.mkdir()
        line = ("tests.support.lightning_script", strategy, devices, out)
        # One process is forked: there is no launcher to see.
        printed = module(out, *line).stdout if devices == 1 else run("-m", *map(str, line), timeout=180)
        assert printed.count("of extra state") == 1  # the plan is printed by one rank
        facts += [torch.load(out / f"rank{rank}.pt") for rank in range(devices)]
    one, *many = facts
    for each in many:
        assert each["solves"] == one["solves"] == one["here"] > each["here"] > 0
        for name, value in each["weights"].items():
            torch.testing.assert_close(value, one["weights"][name], rtol=0, atol=1e-10)
            assert torch.equal(value, many[0]["weights"][name])
