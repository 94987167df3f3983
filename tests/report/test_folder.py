"""Recordings are found where runs leave them; what is none is refused in one line."""

import gzip

import pytest

from lightning_so.errors import StateError
from lightning_so.recording.file import write
from lightning_so.report.folder import recordings
from tests.support import recorded


def test_ranks_come_in_order_and_a_rank_may_be_missing(tmp_path):
    run = recorded.put(tmp_path / "run", recorded.healthy(12, 40))
    (run / "recording" / "rank-0003.json.gz").unlink()
    assert [each["rank"] for each in recordings(run)] == [0, 1, 2, *range(4, 12)]


def test_the_newest_recording_is_taken_and_an_older_one_can_be_named(tmp_path):
    for number, name in ((1, "recording"), (2, "recording-2"), (10, "recording-10"), (99, "recording-old")):
        recorded.put(tmp_path / "made", recorded.healthy(1, 40, number))
        (tmp_path / "made" / "recording").rename(tmp_path / name)
        (tmp_path / "made").rmdir()
    (tmp_path / "recording-11").mkdir()
    assert recordings(tmp_path)[0]["run"] == f"{10:016x}"
    assert recordings(tmp_path / "recording-2")[0]["run"] == f"{2:016x}"
    assert recordings(tmp_path / "recording" / "rank-0000.json.gz")[0]["run"] == f"{1:016x}"


def refusal(run) -> str:
    with pytest.raises(StateError) as caught:
        recordings(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_recording_says_what_makes_one_and_where_one_is(tmp_path):
    assert "is not there" in refusal(tmp_path / "gone")
    assert "SecondOrder(...) or Recorder()" in refusal(tmp_path)
    recorded.put(tmp_path / "lightning_logs" / "version_3", recorded.healthy(1, 40))
    assert "lightning_logs/version_3/recording below it is" in refusal(tmp_path)


def test_recordings_of_different_runs_are_refused(tmp_path):
    run = recorded.put(tmp_path, recorded.healthy(2, 40))
    other = recorded.healthy(2, 40, seed=1)[1]
    write(run / "recording" / "rank-0001.json.gz", other)
    assert "recordings of different runs" in refusal(run)
    write(run / "recording" / "rank-0001.json.gz", {**other, "run": f"{0:016x}", "ranks": 3})
    assert "different numbers of ranks" in refusal(run)
    write(run / "recording" / "rank-0001.json.gz", recorded.healthy(2, 40)[0])
    assert "two recordings of rank 0" in refusal(run)


@pytest.mark.parametrize("content", [gzip.compress(b'{"format": "other"}', mtime=0), b"PK", b""])
def test_one_foreign_file_is_enough(tmp_path, content):
    run = recorded.put(tmp_path, recorded.healthy(2, 40))
    (run / "recording" / "rank-0001.json.gz").write_bytes(content)
    assert "rank-0001.json.gz" in refusal(run)


def test_a_truncated_file_is_named(tmp_path):
    path = recorded.put(tmp_path, recorded.healthy(2, 40)) / "recording" / "rank-0001.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert "truncated" in refusal(tmp_path)
