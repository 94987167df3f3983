"""A folder is one training's at a time: a file that says whose, and that beats while its owner lives."""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_so.callbacks.restart.requeue import this_job

#: The file.
NAME = ".owner.json"
#: Seconds between two beats, and how long none may come before the owner counts as dead. A file system of a network may
#: hold them back for some seconds.
BEAT, PATIENCE = 10.0, 60.0
#: Locks that this process holds, by their secret.
_HELD: set[str] = set()


class Lock:
    """Rank 0's hold on a folder.

    Neither `flock` nor clocks are relied on, which differ over a network: a lock is taken by making a file that is not
    there, its owner changes it every `BEAT` seconds, and who wants it watches. It is taken over at once from an owner
    that is known to be dead (a process of this host that is gone; an earlier start of the same SLURM job), and from any
    other once it has not been seen to beat for `PATIENCE` seconds. Should that owner live after all, asleep or cut off,
    it finds out at its next beat, and before it writes a checkpoint.

    Attributes:
        lost: Whether another one has taken it.
    """

    def __init__(self, folder: Path) -> None:
        """Say who we are; `take` takes it.

        Args:
            folder: The folder.
        """
        self.path, self.lost = folder / NAME, False
        self.mine = {"secret": secrets.token_hex(8), **_process(os.getpid())}
        self._end = threading.Event()
        self._beats: threading.Thread | None = None

    def take(self) -> tuple[str | None, str | None]:
        """Take the folder if it is nobody's, or a dead one's.

        Returns:
            Whose it is, in words, if it is not to be had; and from whom it was taken over, and why.
        """
        over = None
        while not self._made():
            theirs = self._read()
            if theirs is None:
                # Given back in this very moment.
                continue
            if theirs["secret"] in _HELD:
                return "another fit of this process", None
            dead = _dead(theirs) or self._watch(theirs)
            now = self._read()
            if dead is None and now is not None:
                return described(now), None
            if dead is not None and now == theirs:
                over = f"{described(theirs)}, which {dead}"
                self._replace()
                break
        _HELD.add(self.mine["secret"])
        self._beats = threading.Thread(target=self._beat, name="lightning_so.lock", daemon=True)
        self._beats.start()
        return None, over

    def ours(self) -> bool:
        """Whether it still is; asked before something is written."""
        try:
            found = self._read()
        except OSError:
            # A disk that is away for a while says nothing of it.
            return not self.lost
        self.lost = self.lost or found is None or found["secret"] != self.mine["secret"]
        return not self.lost

    def release(self) -> None:
        """Give the folder back."""
        self._end.set()
        if self._beats is not None:
            self._beats.join()
        if self.mine["secret"] in _HELD and self.ours():
            self.path.unlink(missing_ok=True)
        _HELD.discard(self.mine["secret"])

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            if not self.ours():
                return
            with suppress(OSError):
                os.utime(self.path)

    def _watch(self, theirs: dict[str, Any]) -> str | None:
        """Look for the owner's beats for a while; that there were none, in words."""
        print(
            f"Restartable: {self.path.parent} is held by {described(theirs)}; watching up to {PATIENCE:g} s whether it "
            "lives.",
            flush=True,
        )
        before, end = self._changed(), time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self._read() != theirs or self._changed() != before:
                return None
            time.sleep(BEAT / 10)
        return f"has not been seen for {PATIENCE:g} s"

    def _changed(self) -> int | None:
        """When the lock was changed last, by the file system's clock; of what is opened it looks anew."""
        try:
            with self.path.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def _made(self) -> bool:
        """Make the file; False if there is one."""
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(self.mine))
        return True

    def _replace(self) -> None:
        """Take the place of what is there."""
        partial = self.path.with_name(f"{NAME}.{self.mine['secret']}")
        partial.write_text(json.dumps(self.mine))
        os.replace(partial, self.path)

    def _read(self) -> dict[str, Any] | None:
        """What the file says; None without one."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return None
        try:
            return {**_process(0), "secret": "", **json.loads(text)}
        except (TypeError, ValueError):
            # It is being written, or was not written to its end: by somebody who has not said who it is.
            return {**dict.fromkeys(_process(0)), "secret": ""}


def described(who: dict[str, Any]) -> str:
    """An owner, in words."""
    if who["host"] is None:
        return "an unknown training"
    of_job = f"SLURM job {who['job']}, " if who["job"] else ""
    return f"{of_job}process {who['pid']} on {who['host']}"


def _process(pid: int) -> dict[str, Any]:
    """Who a process is: its job, and which start of it; its host, start of the host, name space, number and start."""
    return {
        "job": this_job(),
        "start": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "host": socket.gethostname(),
        "space": [_said("/proc/sys/kernel/random/boot_id"), _link("/proc/self/ns/pid")],
        "pid": pid,
        "began": _began(pid),
    }


def _dead(who: dict[str, Any]) -> str | None:
    """Why an owner is known to be dead, in words; None if that cannot be told, or it lives."""
    here = _process(os.getpid())
    if who["job"] is not None and who["job"] == here["job"] and who["start"] < here["start"]:
        return "was requeued, and is now this one"
    if who["host"] != here["host"] or who["space"] != here["space"]:
        return None
    if who["pid"] == here["pid"] and who["began"] == here["began"]:
        return None if who["secret"] in _HELD else "has ended in this process"
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return "is gone"
    except OSError:
        return None
    # Numbers of processes come again.
    return "is gone" if who["began"] != _began(who["pid"]) else None


def _began(pid: int) -> str | None:
    """When a process has started, in ticks of its host; None for one that has ended, and where there is no /proc."""
    fields = (_said(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    # A zombie has ended; nobody has asked how.
    return fields[19] if fields and fields[0] not in "ZX" else None


def _said(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
