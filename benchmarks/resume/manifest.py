"""What the manifest of a checkpoint costs: seconds to write one file with and without it, and to compare it.

    python -m benchmarks.resume.manifest --gib 1 --folder /tmp

Rounds are interleaved; the least of each is printed. "flushed" is what a save waits for without a manifest: the file is
written already, by torch.save, whose seconds stand beside it.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from lightning_so.callbacks.restart import archive, checkpoints

RESULTS = Path(__file__).parent / "results" / "manifest.jsonl"


def seconds(function, *arguments) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def plain(partial: Path, path: Path) -> None:
    """Flush and rename, without a manifest."""
    checkpoints.flush(partial)
    os.replace(partial, path)


def measured(folder: Path, gib: float, rounds: int) -> dict[str, float]:
    """The least seconds of each."""
    content, found = {"weight": torch.randn(int(gib * 2**28))}, {}
    for _ in range(rounds):
        for name, publish in (("flushed", plain), ("flushed, with manifest", checkpoints.publish)):
            partial, path = folder / "partial", folder / f"step={len(name)}.ckpt"
            took = {"torch.save": seconds(torch.save, content, partial), name: seconds(publish, partial, path)}
            if publish is plain:
                took["compared without manifest"] = seconds(archive.damage, path, True)
            else:
                took["compared"] = seconds(checkpoints.check, path)
                took["torch.load"] = seconds(lambda path=path: torch.load(path, weights_only=True))
            checkpoints.remove(path)
            for each, value in took.items():
                found[each] = min(value, found.get(each, value))
    return found


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where the file is written")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measured(Path(folder), args.gib, args.rounds)
    for name, value in found.items():
        print(f"{name:28} {value:6.2f} s for {args.gib:g} GiB")
    with RESULTS.open("a") as file:
        file.write(
            json.dumps({"gib": args.gib, "rounds": args.rounds, **{k: round(v, 3) for k, v in found.items()}}) + "\n"
        )


if __name__ == "__main__":
    main()
