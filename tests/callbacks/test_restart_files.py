"""`Restartable`'s files: whole or not at all, and read only if they are as they were written.

Files that are not, cut short or damaged: Lightning-AI/pytorch-lightning#21431, open-mmlab/mmdetection#4835.
"""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_so import SOAP, Restartable, StateError
from lightning_so.callbacks.restart import archive, checkpoints, manifest
from tests.support.trainings import train

HOW = (SOAP(start=2, period=4), (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}))


def saved(folder, step, content=None):
    """As somebody else writes a file: without a manifest."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step={step}.ckpt"
    torch.save(content or {"weight": torch.arange(1000.0), "step": step}, path)
    return path


def test_the_newest_is_by_step_and_others_are_left_alone(tmp_path):
    assert Restartable(tmp_path / "nowhere").newest() is None
    for step in (9, 10, 100):
        saved(tmp_path, step)
    (tmp_path / "mine.ckpt").touch()
    (tmp_path / ".step=110.partial").touch()
    restartable = Restartable(tmp_path)
    assert restartable.newest().name == "step=100.ckpt"
    checkpoints.tidy(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.ckpt", "step=10.ckpt", "step=100.ckpt"]


def written(folder, step, content=None):
    """As `Restartable` writes a file: with its manifest."""
    folder.mkdir(exist_ok=True)
    partial = folder / f".step={step}.partial"
    torch.save(content or {"weight": torch.arange(1000.0), "step": step}, partial)
    checkpoints.publish(partial, folder / f"step={step}.ckpt")
    return folder / f"step={step}.ckpt"


@pytest.mark.fault("a truncated checkpoint")
@pytest.mark.parametrize("make", [written, saved])
def test_from_a_truncated_checkpoint_it_goes_to_the_one_before(seen, capsys, tmp_path, make):
    before, path = make(tmp_path, 4), make(tmp_path, 8)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError, match=r"step=8.ckpt is not whole.*go on from step=4.ckpt: mv "):
            checkpoints.check(path)
        assert Restartable(tmp_path).newest() == before
        assert "step=8.ckpt is not whole" in (said := capsys.readouterr().out)
        assert "Going on from step=4.ckpt; the damaged one is step=8.ckpt.damaged once the fit begins" in said
    seen("cut at 5 places: named before the training starts, which goes on from the one before")


@pytest.mark.fault("a corrupt checkpoint (one bit of a weight)")
@pytest.mark.parametrize("make", [written, saved])
def test_a_flipped_bit_is_found_though_torch_reads_it(seen, tmp_path, make):
    path = make(tmp_path, 8)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 2002] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["weight"], torch.arange(1000.0))
    with pytest.raises(StateError, match=r"no checkpoint in .* is whole. .*step=8.ckpt.*the checksum of .* is wrong"):
        Restartable(tmp_path).newest()
    seen("torch.load reads it without a word; found here by its checksum")


def directory(raw, path, name):
    """Where the directory of an archive has the entry of a record."""
    with zipfile.ZipFile(path) as file:
        at = file.start_dir
    while not raw[at + 46 : at + 46 + int.from_bytes(raw[at + 28 : at + 30], "little")].endswith(name):
        at += 46 + sum(int.from_bytes(raw[at + k : at + k + 2], "little") for k in (28, 30, 32))
    return at


@pytest.mark.fault("a corrupt checkpoint (one bit of the archive's directory: a record becomes a folder)")
@pytest.mark.parametrize("make", [written, saved])
def test_a_record_that_is_taken_for_a_folder_is_found(seen, tmp_path, make):
    """torch reads whatever lies in memory then."""
    path = make(tmp_path, 8)
    raw = bytearray(path.read_bytes())
    raw[directory(raw, path, b"/data/0") + 38] ^= 1 << 4
    path.write_bytes(raw)
    torch.load(path, weights_only=True)
    with pytest.raises(StateError, match=r"step=8.ckpt is not whole"):
        Restartable(tmp_path).newest()
    seen("torch.load reads other numbers without a word; found here by the file's checksum, or by the entry itself")


@pytest.mark.parametrize("make", [written, saved])
@pytest.mark.parametrize(
    ("place", "at", "bit"),
    [("directory", 10, 3), ("directory", 46, 7), ("record", 6, 0), ("directory", 8, 5), ("directory", 10, 2),
     ("directory", 8, 0)],
    ids=["method", "name", "encrypted", "patched", "deflated", "encrypted in the directory"],
)  # fmt: skip
def test_damage_that_zipfile_names_in_its_own_ways_is_named_by_us(tmp_path, make, place, at, bit):
    path = make(tmp_path, 8)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        begin = file.start_dir if place == "directory" else file.infolist()[1].header_offset
    raw[begin + at] ^= 1 << bit
    path.write_bytes(raw)
    with pytest.raises(StateError, match=r"step=8.ckpt is not whole: .* Move it away: mv "):
        Restartable(tmp_path).newest()


def test_no_flipped_bit_of_a_file_without_a_manifest_becomes_another_number(tmp_path):
    """One bit of every sixth byte: it is named, or torch reads what was written."""
    path = saved(tmp_path, 8, {"weight": torch.arange(1.0, 9.0)})
    whole, named = path.read_bytes(), 0
    for at in range(0, len(whole), 6):
        raw = bytearray(whole)
        raw[at] ^= 1 << (at // 6 % 8)
        path.write_bytes(raw)
        if archive.damage(path, contents=True):
            named += 1
            continue
        assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.arange(1.0, 9.0)), at
    # The rest is padding between records.
    assert named > len(whole) / 12


def test_every_flipped_bit_of_a_file_with_a_manifest_is_named(tmp_path):
    path = written(tmp_path, 8, {"weight": torch.arange(1.0, 9.0)})
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        raw = bytearray(whole)
        raw[at] ^= 1 << (at % 8)
        path.write_bytes(raw)
        with pytest.raises(StateError, match="the checksum of its bytes is wrong"):
            checkpoints.check(path)


def test_a_manifest_that_cannot_be_read_is_damage(tmp_path):
    path = written(tmp_path, 8)
    for text in ("", "{", "[]", '{"": [{"bytes": 3}]}'):
        manifest.place(path).write_text(text)
        with pytest.raises(StateError, match=r"step=8.ckpt is not whole: its manifest step=8.ckpt.json cannot be read"):
            checkpoints.check(path)


def test_a_crash_between_manifest_and_name_leaves_the_file_of_before(tmp_path, monkeypatch):
    path = written(tmp_path, 8, {"a": 1})

    def crash(partial, to, replace=os.replace):
        if to == path:
            raise KeyboardInterrupt
        replace(partial, to)

    for value in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            with pytest.raises(KeyboardInterrupt):
                written(tmp_path, 8, {"a": value})
        checkpoints.check(path)
    written(tmp_path, 8, {"a": 4})
    checkpoints.check(path)
    assert torch.load(path) == {"a": 4}


def test_a_fit_goes_on_from_the_one_before_and_keeps_the_damaged_one(tmp_path):
    straight = train("one", *HOW, steps=12)
    train("one", *HOW, steps=8, callbacks=[Restartable(tmp_path, every=4)])
    path = tmp_path / "step=8.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    restartable = Restartable(tmp_path, every=4)
    again = train("one", *HOW, steps=12, callbacks=[restartable], resume=restartable.newest())
    for name, value in straight.weights.items():
        assert torch.equal(again.weights[name], value)
    assert {path.name for path in tmp_path.glob("step=*")} == {
        *("step=8.ckpt", "step=8.ckpt.json", "step=12.ckpt", "step=12.ckpt.json"),
        *("step=8.ckpt.damaged", "step=8.ckpt.damaged.json"),
    }


class Planted:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("code was run",)


@pytest.mark.fault("a checkpoint with a planted pickle")
@pytest.mark.parametrize("manifested", [True, False])
def test_what_is_planted_in_a_checkpoint_is_not_run(seen, tmp_path, manifested):
    train("one", *HOW, steps=2, callbacks=[Restartable(tmp_path, every=2)])
    path = tmp_path / "step=2.ckpt"
    torch.save({**torch.load(path, weights_only=True), "planted": Planted()}, path)
    if not manifested:
        manifest.place(path).unlink()
    restartable = Restartable(tmp_path)
    with pytest.raises((StateError, pickle.UnpicklingError), match=r"not whole: it has|Weights only load failed"):
        train("one", *HOW, steps=4, callbacks=[restartable], resume=restartable.newest())
    seen("its manifest does not fit; without one, it is read as weights alone, which refuses it: no code is run")


def pieces_fit(folder):
    """What a rank is told at the start, and where it goes on."""
    restartable = Restartable(folder, every=2)
    start = restartable.newest()
    try:
        train("fsdp2", *HOW, steps=6, callbacks=[restartable], resume=start)
    except StateError as error:
        return start.name, str(error)
    return start and start.name, ""


@pytest.mark.slow
@pytest.mark.fault("a corrupt piece of a checkpoint (FSDP2)")
def test_a_flipped_bit_in_a_piece_stops_all_ranks(two, seen, tmp_path):
    assert two.run(pieces_fit, tmp_path) == [(None, "")] * 2
    piece = sorted((tmp_path / "step=6.ckpt").glob("*.distcp"))[1]
    raw = bytearray(piece.read_bytes())
    raw[len(raw) // 2] ^= 1
    piece.write_bytes(raw)
    for start, said in two.run(pieces_fit, tmp_path):
        assert start == "step=6.ckpt"
        assert f"step=6.ckpt is not whole: the checksum of {piece.name} is wrong. It is step=6.ckpt.damaged" in said
    assert two.run(pieces_fit, tmp_path) == [("step=4.ckpt", "")] * 2
    seen("each rank reads a part; all stop, the folder loses its name, and the next start goes on from the one before")


def test_a_folder_lacks_nothing(tmp_path):
    partial, path = tmp_path / ".step=3.partial", tmp_path / "step=3.ckpt"
    (partial / "pieces").mkdir(parents=True)
    torch.save(torch.ones(3), partial / "pieces" / "rank0.pt")
    (partial / "pieces" / "data.distcp").write_bytes(b"anything")
    checkpoints.publish(partial, path)
    checkpoints.check(path)
    (path / "pieces" / "data.distcp").write_bytes(b"any")
    with pytest.raises(StateError, match="has 3 bytes, 8 were written"):
        checkpoints.check(path)
    (path / "pieces" / "data.distcp").unlink()
    with pytest.raises(StateError, match="has None bytes"):
        checkpoints.check(path)


def test_a_folder_is_written_again_at_the_same_step(tmp_path):
    for value in (1, 2):
        (tmp_path / ".step=3.partial").mkdir()
        torch.save(value, tmp_path / ".step=3.partial" / "a.pt")
        checkpoints.publish(tmp_path / ".step=3.partial", tmp_path / "step=3.ckpt")
    assert torch.load(tmp_path / "step=3.ckpt" / "a.pt") == 2
    checkpoints.tidy(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step=3.ckpt"]


def test_a_checkpoint_has_no_name_before_it_is_whole(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda descriptor, sync=os.fsync: (order.append("disk"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names, replace=os.replace: (order.append("name"), replace(*names)))
    shutil.copy(saved(tmp_path, 1), tmp_path / ".step=3.partial")
    checkpoints.publish(tmp_path / ".step=3.partial", tmp_path / "step=3.ckpt")
    # The file; its manifest, and its name; the file's name, and the folder that holds the names.
    assert order == ["disk", "disk", "name", "name", "disk"]
    assert zipfile.is_zipfile(tmp_path / "step=3.ckpt")


def flushed(folder):
    """What this rank has flushed by the time that checkpoints get their names, with other ranks at work."""
    found, sync = [], os.fsync

    def note(descriptor):
        found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(folder))
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", note)
        patch.setattr(checkpoints, "publish", lambda *_: found.append(Path("publish")))
        train("fsdp2", *HOW, steps=4, callbacks=[Restartable(folder, every=4)])
    return [str(path) for path in found]


@pytest.mark.slow
def test_every_rank_flushes_pieces_before_they_get_a_name(two, tmp_path):
    first, second = two.run(flushed, tmp_path)
    pieces = {".step=4.partial/__0_0.distcp", ".step=4.partial/__1_0.distcp", ".step=4.partial"}
    assert first[-1] == "publish"
    assert pieces <= set(first)
    assert pieces <= set(second)
