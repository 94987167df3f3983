"""Ray Train: two workers of one machine, one of which is lost; Ray starts both again from its last checkpoint."""

import importlib.machinery
import os
import subprocess
import sys

import pytest
import torch

from tests.support import ray_script
from tests.support.forked import ROOT

#: Where `make test-ray` puts it.
RAY = ROOT / ".venv" / "ray"


@pytest.mark.slow
@pytest.mark.skipif(importlib.machinery.PathFinder.find_spec("ray", [str(RAY)]) is None, reason="needs make test-ray")
def test_two_workers_of_ray_go_on_from_a_checkpoint_and_equal_one_process(tmp_path):
    one = ray_script.fit(ray_script.made(devices=1))
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{RAY}",
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    line = [sys.executable, "-m", "tests.support.ray_script", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "lost").exists()
    for number in range(2):
        facts = torch.load(tmp_path / f"rank{number}.pt", weights_only=True)
        assert facts["resumed"] == ray_script.STEPS
        here, everywhere = facts["solves"]
        assert (everywhere, facts["rotated"]) == (one["solves"][1], one["rotated"])
        assert 0 < here < everywhere
        for name, value in one["weights"].items():
            torch.testing.assert_close(facts["weights"][name], value, rtol=0, atol=1e-10)
