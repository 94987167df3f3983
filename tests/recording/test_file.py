"""A recording is written whole or not at all, and what is no recording is refused in one line."""

import gzip
import json
import math
import os

import pytest

from lightning_so.errors import StateError
from lightning_so.recording import file
from lightning_so.recording.file import FORMAT, VERSION, read, write

WHOLE = {
    "format": FORMAT, "version": VERSION, "run": "0123456789abcdef", "rank": 0, "ranks": 1,
    "written": {"why": "end"}, "begun": {"time": 0.0}, "facts": {}, "last": {}, "whole": {},
}  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "rank-0000.json.gz"
    write(path, {**WHOLE, "whole": {"loss": (1.5, math.nan, -math.inf), "step": [1, 2, 3]}, "shadow": None})
    assert read(path) == {**WHOLE, "whole": {"loss": [1.5, None, None], "step": [1, 2, 3]}, "shadow": None}
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_recording_is_the_same_file(tmp_path):
    for name in "ab":
        write(tmp_path / name, WHOLE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_write_that_fails_leaves_the_file_of_before(tmp_path, monkeypatch):
    path = tmp_path / "rank-0000.json.gz"
    write(path, WHOLE)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, {**WHOLE, "rank": 1})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 1, 10, 50, -1, -8])
def test_a_truncated_file_is_refused(kept, tmp_path):
    path = tmp_path / "rank-0000.json.gz"
    write(path, WHOLE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StateError, match=r"rank-0000\.json\.gz (is|cannot) ") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 something else", "is no recording"),
        (gzip.compress(b"\x80\x04\x95 a pickle", mtime=0), "no JSON"),
        (gzip.compress(b"[" * 100_000, mtime=0), "no JSON"),
        (gzip.compress(b"[1, 2]", mtime=0), "no format"),
        (gzip.compress(b'{"format": "of others"}', mtime=0), "no format"),
        (gzip.compress(json.dumps({**WHOLE, "version": VERSION + 1}).encode(), mtime=0), "update lightning_so"),
        (gzip.compress(json.dumps({**WHOLE, "version": "new"}).encode(), mtime=0), "version 'new'"),
        (gzip.compress(json.dumps({**WHOLE, "facts": 3}).encode(), mtime=0), "'facts' is missing"),
        (gzip.compress(json.dumps({**WHOLE, "loss": math.nan}).encode(), mtime=0), "no JSON"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(content, words, tmp_path):
    path = tmp_path / "rank-0000.json.gz"
    path.write_bytes(content)
    with pytest.raises(StateError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_unpacks_to_more_than_a_recording_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "rank-0000.json.gz"
    monkeypatch.setattr(file, "MOST", 2**20)
    path.write_bytes(gzip.compress(b" " * 2**21, mtime=0))
    assert path.stat().st_size < 4096
    with pytest.raises(StateError, match="more than 1 MiB"):
        read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StateError, match="cannot be read"):
        read(tmp_path / "rank-0000.json.gz")
