"""`Restartable`: a signal at any place of a step, on one rank; checkpoints whole or not at all; what is refused."""

import functools
import os
import pickle
import shlex
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.strategies import DDPStrategy

from lightning_so import SOAP, ConfigError, Restartable, StateError
from lightning_so.callbacks.restart import checkpoints
from lightning_so.callbacks.restart.requeue import requeue
from lightning_so.callbacks.restart.restartable import Stopped
from tests.support import restarts, trainings
from tests.support.peers import DEEPSPEED
from tests.support.trainings import Save, train

HOW = (SOAP(start=2, period=4), (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}))
STEPS = 16
#: Under DDP between any two stages; under the others where weights are hidden or in pieces.
PLACES = [
    *(("ddp", place) for place in restarts.PLACES),
    *(("fsdp2", place) for place in ("solve", "hidden")),
    ("fsdp1", "hidden"),
]


@pytest.fixture(scope="module")
def straight(two):
    """Trainings that nobody stops, by strategy, made once."""
    found = {}

    def of(strategy):
        if strategy not in found:
            found[strategy] = two.run(train, strategy, *HOW, steps=STEPS)
        return found[strategy]

    return of


def check_equal(ends, others):
    for one, other in zip(ends, others, strict=True):
        assert one.report.portable() == other.report.portable()
        for name, value in other.weights.items():
            assert torch.equal(one.weights[name], value), name


@pytest.mark.slow
@pytest.mark.fault("a signal on one rank, between any two stages of a step")
@pytest.mark.parametrize(
    ("strategy", "place"), [*PLACES, *([("zero2", "hidden")] if DEEPSPEED else ())], ids=lambda each: each
)
def test_a_signal_at_any_place_of_a_step_on_one_rank(two, straight, seen, tmp_path, strategy, place):
    number = signal.SIGTERM if restarts.PLACES.index(place) % 2 else signal.SIGUSR1
    codes = two.run(restarts.stopped, strategy, HOW, tmp_path, place, number, steps=STEPS)
    assert codes == [128 + number] * 2
    (saved,) = checkpoints.listed(tmp_path)
    # Two steps at most: one to tell the others, in an exchange that nobody waits for.
    assert restarts.AT <= checkpoints.step_of(saved) <= restarts.AT + 2
    checkpoints.check(saved)
    check_equal(two.run(restarts.resumed, strategy, HOW, tmp_path, steps=STEPS), straight(strategy))
    seen(
        f"{strategy}, at {place!r}: saved {checkpoints.step_of(saved) - restarts.AT} step(s) later, resumed bit for bit"
    )


@pytest.mark.slow
@pytest.mark.fault("resumed on half of the ranks")
def test_half_of_the_ranks_go_on(two, seen, tmp_path):
    how = {"dtype": torch.float64, "steps": STEPS}
    two.run(restarts.stopped, "ddp", HOW, tmp_path, "end", **how)
    alone, whole = restarts.resumed("one", HOW, tmp_path, **how), train("one", *HOW, **how)
    difference = max(float((alone.weights[name] - value).abs().max()) for name, value in whole.weights.items())
    assert difference < 1e-10
    seen(f"2 ranks, then 1: {difference:.0e} from one process, in float64")


def restarted(path, keeps):
    """How far DDP alone, saved and resumed, ends from one that is not stopped; its buckets stay as they are, or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "DDPStrategy", functools.partial(DDPStrategy, find_unused_parameters=keeps))
        how = {"steps": 16, "dtype": torch.float64}
        straight = train("ddp", None, HOW[1], callbacks=[Save(path, 8)], **how)
        again = train("ddp", None, HOW[1], resume=path, **how)
    return max(float((again.weights[name] - value).abs().max()) for name, value in straight.weights.items())


@pytest.mark.slow
def test_ddp_on_four_ranks_resumes_bit_for_bit_only_if_it_keeps_its_buckets(four, tmp_path):
    """Why examples/restart.py asks for it: if this fails, the example can be simpler."""
    assert four.run(restarted, str(tmp_path / "kept.ckpt"), True) == [0.0] * 4
    assert all(0 < apart < 1e-14 for apart in four.run(restarted, str(tmp_path / "made anew.ckpt"), False))


def test_a_signal_in_one_process(tmp_path):
    assert restarts.stopped("one", HOW, tmp_path, "hidden", signal.SIGUSR1, rank=0, steps=STEPS) == 138
    check_equal([restarts.resumed("one", HOW, tmp_path, steps=STEPS)], [train("one", *HOW, steps=STEPS)])


def test_a_signal_at_the_last_step_ends_the_run_and_the_next_one_finds_it_done(tmp_path):
    last = restarts.AT
    assert restarts.stopped("one", HOW, tmp_path, "end", rank=0, steps=last) == 143
    assert checkpoints.step_of(checkpoints.listed(tmp_path)[-1]) == last
    assert not restarts.resumed("one", HOW, tmp_path, steps=last).losses
    saved = torch.load(tmp_path / f"step={last}.ckpt", weights_only=True)["state_dict"]
    for name, value in train("one", *HOW, steps=last).weights.items():
        assert torch.equal(saved[f"net.{name}"], value)


def test_a_signal_after_the_last_step_is_answered_too(tmp_path):
    late = LambdaCallback(on_train_epoch_end=lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Stopped) as end:
        train("one", *HOW, steps=4, callbacks=[late, Restartable(tmp_path)])
    assert end.value.code == 128 + signal.SIGUSR1
    assert [checkpoints.step_of(path) for path in checkpoints.listed(tmp_path)] == [4]


def test_without_a_signal_nothing_changes(tmp_path):
    straight = train("one", *HOW, steps=12)
    before = restarts.kept()
    check_equal([train("one", *HOW, callbacks=[Restartable(tmp_path, every=3)], steps=12)], [straight])
    assert restarts.kept() == before
    assert [checkpoints.step_of(path) for path in checkpoints.listed(tmp_path)] == [9, 12]


# ---------------------------------------------------------------- arguments and folders


@pytest.mark.parametrize(("name", "value"), [("every", -1), ("every", 0.5), ("keep", 0)])
def test_wrong_counts_are_refused(tmp_path, name, value):
    with pytest.raises(ConfigError, match=f"Restartable\\({name}="):
        Restartable(tmp_path, **{name: value})


@pytest.mark.parametrize("folder", ["s3://bucket/run", "gs://b/r", "file:///tmp/a", Path("s3://bucket/run")])
def test_an_address_is_refused_as_a_folder(folder):
    """It would be a folder of that name, here."""
    with pytest.raises(ConfigError, match=r"Restartable\(folder='.*:/.*'\): this is an address.*Give a path"):
        Restartable(folder)


@pytest.mark.parametrize("folder", ["runs/a::b", "runs/a\nb"])
def test_a_name_that_no_checkpoint_can_be_written_under_is_refused(folder):
    with pytest.raises(ConfigError, match=r"Restartable\(folder='runs/a.*Give a folder whose name has neither"):
        Restartable(folder)


def test_what_looks_like_an_address_only_a_little_is_a_folder(tmp_path):
    assert Restartable(tmp_path / "s3:" / "a").folder == tmp_path / "s3:" / "a"
    assert Restartable("a:b/c").folder == Path.cwd() / "a:b/c"


def test_the_next_move_is_one_line_of_a_shell(tmp_path):
    """Whatever the folder's name holds."""
    folder = tmp_path / "a'; touch PWNED; '"
    folder.mkdir()
    (folder / "step=1.ckpt").write_bytes(b"half")
    with pytest.raises(StateError) as said:
        Restartable(folder).newest()
    path = str(folder / "step=1.ckpt")
    assert shlex.split(str(said.value).rpartition(": ")[2]) == ["mv", path, f"{path}.damaged"]


def test_an_earlier_training_in_the_folder_is_refused(tmp_path):
    torch.save({}, tmp_path / "step=40.ckpt")
    with pytest.raises(ConfigError, match=r"starts at step 0, and the folder has step=40.ckpt.*newest\(\)"):
        train("one", *HOW, callbacks=[Restartable(tmp_path)], steps=4)


def refused(folders, paths=(None, None)):
    """What a rank is told of its folder, or of what it goes on from."""
    rank = dist.get_rank()
    with pytest.raises((ConfigError, StateError)) as said:
        train("ddp", *HOW, steps=8, callbacks=[Restartable(folders[rank])], resume=paths[rank])
    return str(said.value)


def test_a_folder_that_ranks_do_not_share_is_refused(two, tmp_path):
    folders = [tmp_path / "of rank 0", tmp_path / "of rank 1"]
    for told in two.run(refused, folders):
        assert "ranks [1] do not see what rank 0 writes there" in told


def test_ranks_that_go_on_from_different_steps_are_refused(two, tmp_path):
    two.run(train, "ddp", *HOW, steps=4, callbacks=[Restartable(tmp_path, every=2)])
    paths = [str(tmp_path / f"step={step}.ckpt") for step in (2, 4)]
    for told in two.run(refused, [tmp_path] * 2, paths):
        assert "the ranks go on from different steps, [2, 4]" in told


def test_what_an_interrupted_run_has_left_is_tidied_up(tmp_path, capsys):
    left = tmp_path / ".step=9.partial", tmp_path / "requeue"
    for path in left:
        path.touch()
    train("one", *HOW, steps=2, callbacks=[Restartable(tmp_path)])
    assert not any(path.exists() for path in left)
    assert (
        "DataLoader has no state_dict, so a restart within an epoch begins the epoch's data anew"
        in capsys.readouterr().out
    )


def test_copies_are_not_part_of_a_fit(tmp_path):
    copy = pickle.loads(pickle.dumps(Restartable(tmp_path, every=3, signals=["SIGUSR2"])))
    assert (copy.folder, copy.every, copy.signals) == (tmp_path, 3, ("SIGUSR2",))
    train("one", *HOW, callbacks=[copy], steps=4)


# ---------------------------------------------------------------- the queue


def test_where_there_is_no_job_nothing_is_requeued(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "no SLURM job" in requeue(signal.SIGUSR1, tmp_path)
    # No shell sees it, and no controller.
    monkeypatch.setenv("SLURM_JOB_ID", "1; rm -rf /")
    assert "no SLURM job" in requeue(signal.SIGUSR1, tmp_path)


def test_in_a_container_the_batch_script_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", "")
    assert "may be a cancellation" in requeue(signal.SIGTERM, tmp_path)
    assert not (tmp_path / "requeue").exists()
    assert "batch script has to requeue job 12" in requeue(signal.SIGUSR1, tmp_path)
    assert (tmp_path / "requeue").exists()
    train("one", *HOW, callbacks=[Restartable(tmp_path)], steps=2)
    assert not (tmp_path / "requeue").exists()
