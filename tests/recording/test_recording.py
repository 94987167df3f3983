"""What is kept of a training has a bound, whatever comes."""

import json

import pytest

from lightning_so.recording.file import read, write
from lightning_so.recording.recording import Event, Looks, Recording
from lightning_so.recording.thinned import Ends, Thinned


@pytest.mark.parametrize("came", [0, 1, 4, 5, 6, 100, 1001])
def test_every_kth_is_kept(came):
    few = Thinned(most=4)
    for number in range(came):
        few.add(number)
    assert len(few.kept) <= 4
    assert few.kept == list(range(0, came, few.every))
    assert came <= 4 or len(few.kept) > 1


def test_what_is_claimed_may_come_later():
    late, waiting = Thinned(most=4), []
    for number in range(40):
        if late.claim():
            waiting.append(number)
        if len(waiting) == 2:
            late.put(waiting.pop(0))
    assert late.kept[0] == 0
    assert late.kept == sorted(late.kept)
    assert 2 <= len(late.kept) <= 4
    assert late.every == 16


def test_both_ends_are_kept():
    ends = Ends(each=2)
    for number in range(7):
        ends.add(number)
    assert (list(ends), ends.lost) == ([0, 1, 5, 6], 3)


def filled(steps):
    names = [f"blocks.{number}.weight" for number in range(12)]
    recording = Recording("f" * 16, 0, 1, 0, {"optimizer": "AdamW"}, last=1000)
    recording.layers = Looks(names, ("weight", "update"))
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 1 / step, "seconds": 0.1 * step}
        recording.add(row | ({"gradient": 2.0} if step % 2 else {}))
        recording.layers.kept.add((step, [[1.0] * 12, [0.5] * 12]))
        recording.spans.append(("solve", step, 0.1 * step, 0.01, 1))
        recording.solved.append((step, 0, 0.01, names[:2]))
        recording.events.add(Event(step, "fallback", names[0], "once more"))
    return recording


def test_twenty_thousand_steps_take_no_more_than_ten_thousand():
    sizes = [len(json.dumps(filled(steps).file("end", steps))) for steps in (10_000, 20_000)]
    assert sizes[1] < 1.05 * sizes[0]
    assert sizes[1] < 2_000_000


def test_rows_become_columns_and_gaps_none(tmp_path):
    write(tmp_path / "rank-0000.json.gz", filled(5).file("end", 5, "as asked"))
    found = read(tmp_path / "rank-0000.json.gz")
    assert found["last"]["gradient"] == [2.0, None, 2.0, None, 2.0]
    assert found["whole"] == found["last"]
    assert found["layers"]["step"] == [1, 2, 3, 4, 5]
    assert found["layers"]["update"][0] == [0.5] * 12
    assert found["written"]["why"] == "end"
    assert found["written"]["message"] == "as asked"
    assert found["events"][0] == {"step": 1, "kind": "fallback", "name": "blocks.0.weight", "text": "once more"}
