"""A pool of ranks says which rank ended and how, and runs once more what native code has crashed."""

import os
import signal

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.slow  # Ranks are started anew.


def end(path, times, by):
    """End rank 1, as many times as there are."""
    seen = path.read_text() if path.exists() else ""
    dist.barrier()
    if dist.get_rank() == 1 and len(seen) < times:
        path.write_text(seen + "x")
        os.kill(os.getpid(), by)
    dist.barrier()
    return dist.get_rank()


def test_a_rank_that_crashes_once_is_told_and_run_once_more(two, tmp_path):
    with pytest.warns(UserWarning, match=r"ranks of end ended; exit codes by rank: {.*1: -6.*}; it is run once more"):
        assert two.run(end, tmp_path / "seen", 1, signal.SIGABRT) == [0, 1]


@pytest.mark.parametrize(("times", "by"), [(2, signal.SIGABRT), (1, signal.SIGKILL)])
def test_what_crashes_again_or_is_killed_fails_by_its_exit_code(two, tmp_path, times, by):
    with pytest.raises(AssertionError, match=rf"exit codes by rank: {{.*1: -{int(by)}"):
        two.run(end, tmp_path / "seen", times, by)
    assert two.run(end, tmp_path / "seen", 0, by) == [0, 1]
