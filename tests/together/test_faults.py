"""A rank dies or stalls in the middle of a step: the other ends with an error, and the last checkpoint is whole."""

import itertools

import pytest
import torch

from lightning_so import SOAP
from tests.support import faults
from tests.support.peers import DEEPSPEED
from tests.support.trainings import train

HOW = (SOAP(start=4, period=4), (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}))
#: Strategy, what happens, and when: between solving and acting, or while the weights are hidden.
CASES = (
    "fsdp2 killed solved",
    "fsdp2 stalled hidden",
    "ddp killed hidden",
    *(("zero2 killed solved", "zero2 stalled hidden") if DEEPSPEED else ()),
)
SAID = {"killed": "by peer", "stalled": f"Timed out waiting {faults.TIMEOUT}000ms"}


@pytest.fixture
def started(tmp_path):
    """All cases side by side, as most of the time is spent waiting: by case, the folder and the two processes."""
    folders = {case: tmp_path / case.replace(" ", "-") for case in CASES}
    for folder in folders.values():
        folder.mkdir()
    ranks = {case: faults.start(case, HOW, folder) for case, folder in folders.items()}
    yield {case: (folders[case], *ranks[case]) for case in CASES}
    for process in itertools.chain(*ranks.values()):
        process.kill()
        process.join()


@pytest.mark.slow
@pytest.mark.fault("a rank that is killed (-9) or stalls in the middle of a step")
def test_the_other_rank_ends_with_an_error_and_the_last_checkpoint_is_whole(two, seen, started):
    straight = {strategy: two.run(train, strategy, *HOW) for strategy in {case.split()[0] for case in CASES}}
    for case, (folder, survivor, other) in started.items():
        strategy, what, where = case.split()
        survivor.join(60 + faults.TIMEOUT)
        assert survivor.exitcode == 1, case
        said, facts = (folder / "rank0.txt").read_text(), torch.load(folder / "facts.pt")
        assert SAID[what] in said, case
        # Under DDP, and within DeepSpeed's step, it waits in an exchange that is not ours.
        ours = where == "solved" or strategy == "fsdp2"
        assert ("rank 0 of 2 was in an exchange of SecondOrder" in said) is ours, case
        wait = faults.TIMEOUT if what == "stalled" else 0
        assert wait - 1 < facts["seconds"] < wait + 8, case
        assert other.exitcode == (None if what == "stalled" else -9), case
        # What was hidden is what it was before the step.
        assert (facts["acting"] > 0) is (where == "hidden"), case
        assert facts["left"] == 0, case
        assert len(facts["before"]) == 16, case
        for name, value in facts["before"].items():
            assert torch.equal(facts["after"][name], value), f"{case}: {name}"
        (last,) = (folder / "checkpoints").iterdir()
        assert last.name == f"epoch=0-step={faults.AT // faults.EVERY * faults.EVERY}.ckpt"
        for one, unharmed in zip(two.run(train, strategy, *HOW, resume=str(last)), straight[strategy], strict=True):
            assert one.report.portable() == unharmed.report.portable(), case
            for name, value in unharmed.weights.items():
                assert torch.equal(one.weights[name], value), f"{case}: {name}"
        if strategy == "ddp":
            weights = torch.load(folder / "on_exception.ckpt", weights_only=True)["state_dict"]
            assert all(torch.equal(weights[name], value) for name, value in facts["after"].items())
        ended = f"the other ends after {facts['seconds']:.1f} s of a time-out of {faults.TIMEOUT} s"
        seen(f"{case}: {ended}, resumed bit for bit")
