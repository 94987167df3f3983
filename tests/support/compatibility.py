"""What goes together: `docs/compatibility.json`, which the tests have written, and the tables that are made of it.

`make matrix` runs the tests with the plugin `tests.support.recording`. `python -m tests.support.compatibility` alone
forgets tests that are no more, and writes the tables anew.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.noted import LOOP, STRATEGIES, Ran, Refused

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "compatibility.json"
KINDS = {"ran": Ran, "refused": Refused}
#: So many tests are kept for one note: enough that one may go.
KEPT = 2

ADAM = ("AdamW", "Adam", "NAdam", "RAdam")
NAMES = {"KFAC": "K-FAC"}
#: The order of rows and columns; what is not here comes behind.
METHODS = ("SOAP", "Muon", "KFAC", "EKFAC", "Shampoo", "Mixture")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
BASES = (*ADAM, "RMSprop", "Adagrad", "SGD")
OPTIONS = ("accumulation", "clipping", "clipping by value", "parameter groups", "compile", "activation checkpointing")

HEAD = """# Compatibility

This page says what was tested with what, and what is refused. Written by the tests (`make matrix`), not by hand.

- **tested**: a training with it belongs to a test that passes. Most tests compare its weights with those of one process
  or of a loop by hand. `*`: in a plain loop with `attach` alone, not in a Trainer.
- **refused**: an error says so before any harm, with its number [below](#what-is-refused).
- **untested**: no test trains it. It may work.

In the first table Adam is AdamW, Adam, NAdam or RAdam. FSDP2 is `ModelParallelStrategy` or `fully_shard`, FSDP1 is
`strategy="fsdp_so"`, DeepSpeed is `strategy="deepspeed_so_stage_2"` (1, 3); with replicas they shard in groups.

Which tests these are, and the combinations of all at once: [compatibility.json](compatibility.json).
Made with {made}.
"""

Notes = dict[Ran | Refused, list[str]]


class Record(NamedTuple):
    """What `docs/compatibility.json` holds."""

    #: What was trained or refused, with the tests that did.
    notes: Notes
    #: Versions and the device of the last run.
    made: dict[str, str]


def few(tests: Iterable[str]) -> list[str]:
    """Some of the tests, of as many functions as can be."""
    tests = sorted(set(tests))
    first = {test.split("[")[0]: test for test in reversed(tests)}
    chosen = sorted(first.values())
    return sorted((chosen + [test for test in tests if test not in chosen])[:KEPT])


def merged(record: Record, tests: Mapping[str, Iterable[Ran | Refused]], made: dict[str, str]) -> Record:
    """A record with what these tests have noted, instead of what they had noted before."""
    notes = {note: [test for test in known if test not in tests] for note, known in record.notes.items()}
    for test, found in tests.items():
        for note in found:
            if isinstance(note, Refused) or note.method in METHODS:  # Others are made up, by a test or a page.
                notes.setdefault(note, []).append(test)
    return Record({note: few(known) for note, known in notes.items() if known}, made)


def pruned(record: Record, existing: set[str]) -> Record:
    """A record without tests that are no more."""
    notes = {note: [test for test in tests if test in existing] for note, tests in record.notes.items()}
    return Record({note: tests for note, tests in notes.items() if tests}, record.made)


# ---------------------------------------------------------------- the file


def packed(note: Ran | Refused) -> list:
    """A note of plain lists and texts."""
    return [type(note).__name__.lower(), *(list(value) if isinstance(value, tuple) else value for value in note)]


def unpacked(values: list) -> Ran | Refused:
    """What `packed` has packed."""
    kind, *fields = values
    return KINDS[kind](*(tuple(value) if isinstance(value, list) else value for value in fields))


def read(path: Path = DATA) -> Record:
    """The record of a file; an empty one where there is no file."""
    if not path.exists():
        return Record({}, {})
    file = json.loads(path.read_text())
    return Record({unpacked(note): tests for *note, tests in file["notes"]}, file["made with"])


def write(record: Record, path: Path = DATA) -> None:
    """Write the file, a note a line, and the tables beside it."""
    lines = [json.dumps([*packed(note), tests]) for note, tests in record.notes.items()]
    notes = ",\n".join(sorted(lines))
    path.write_text(f'{{"made with": {json.dumps(record.made)},\n"notes": [\n{notes}\n]}}\n')
    path.with_suffix(".md").write_text(rendered(record))


# ---------------------------------------------------------------- the tables


def ordered(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """What was found, the known first and in their order."""
    found, known = set(found), list(known)
    return [*(value for value in known if value in found), *sorted(found - set(known))]


def table(corner: str, rows: Mapping[str, list[str]], columns: Iterable[str]) -> Iterator[str]:
    """The lines of a table."""
    columns = list(columns)
    yield "| " + " | ".join([corner, *columns]) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    for row, cells in rows.items():
        yield "| " + " | ".join([row, *cells]) + " |"
    yield ""


def named(method: str) -> str:
    """A method's name in text."""
    return NAMES.get(method, method)


def spoken(refusal: Refused) -> dict[str, str]:
    """What a refusal speaks of, without the reason."""
    return {name: value for name, value in refusal._asdict().items() if value and name != "reason"}


class Tables:
    """The tables of a record."""

    def __init__(self, record: Record) -> None:
        self.trained = [note for note in record.notes if isinstance(note, Ran)]
        refusals = sorted((note for note in record.notes if isinstance(note, Refused)), reverse=True)
        # Of reasons that differ in a number alone, such as a shape, one.
        self.refusals = sorted({tuple(spoken(refusal).items()): refusal for refusal in refusals}.values())
        self.methods = ordered({note.method for note in self.trained}, METHODS)
        self.strategies = ordered({note.strategy for note in self.trained}, dict.fromkeys(STRATEGIES.values()))

    def refused(self, **cell: str) -> str:
        """Why a cell is refused: numbers of the refusals that speak of no more than the cell does, or nothing."""

        def says(refusal: Refused) -> bool:
            said = spoken(refusal)
            if not said.keys() <= cell.keys():
                return False
            return all(
                cell[name].startswith(value) if name == "strategy" else cell[name] == value
                for name, value in said.items()
            )

        numbers = [str(number) for number, refusal in enumerate(self.refusals, 1) if says(refusal)]
        return f"refused ({', '.join(numbers)})" if numbers else ""

    def cell(self, found: list[Ran], **cell: str) -> str:
        """One word on trainings that were found for a cell."""
        if not found:
            return self.refused(**cell) or "untested"
        return "tested" + "*" * all(note.loop == LOOP for note in found)

    def which(self, found: list[Ran], **cell: str) -> str:
        """The same, with the methods where these are not all or not alike."""
        told = {m: self.cell([note for note in found if note.method == m]) for m in self.methods}
        told = {method: word for method, word in told.items() if word.startswith("tested")}
        words = set(told.values())
        if not told:
            return self.refused(**cell) or "untested"
        if len(words) == 1 and set(self.methods) - {"Mixture"} <= told.keys():
            return words.pop()
        return "tested: " + ", ".join(named(method) + word.removeprefix("tested") for method, word in told.items())

    def of_methods(self) -> Iterator[str]:
        """Strategies by methods on their bases."""
        sides = {"SGD": ("SGD",), "Adam": ADAM}
        columns = {}
        for method in self.methods:
            known = {
                side
                for side, bases in sides.items()
                if any(n.method == method and n.base in bases for n in self.trained)
            }
            for side in sorted(known):
                columns[f"{named(method)} on {side}"] = method, sides[side]
        rows, wholly = {}, [r.strategy for r in self.refusals if spoken(r) == {"strategy": r.strategy}]
        for strategy in ordered([*self.strategies, *wholly], self.strategies):
            rows[strategy] = [
                self.cell(
                    [n for n in self.trained if (n.strategy, n.method) == (strategy, method) and n.base in bases],
                    strategy=strategy,
                    method=method,
                    base=bases[0],
                )
                for method, bases in columns.values()
            ]
        return table("", rows, columns)

    def of_field(self, name: str, columns: list[str]) -> Iterator[str]:
        """Strategies by precisions or options."""
        rows = {}
        for strategy in self.strategies:
            here = [note for note in self.trained if note.strategy == strategy]
            rows[strategy] = [
                self.which([n for n in here if value in (n.precision, *n.options)], strategy=strategy, **{name: value})
                for value in columns
            ]
        return table("", rows, columns)

    def of_bases(self) -> Iterator[str]:
        """Base optimizers by methods."""
        wholly = {r.base for r in self.refusals if spoken(r) == {"base": r.base}}
        rows, methods = {}, [method for method in self.methods if method != "Mixture"]
        for base in ordered({note.base for note in self.trained} | wholly, BASES):
            rows[base] = [
                self.cell([n for n in self.trained if (n.base, n.method) == (base, method)], base=base, method=method)
                for method in methods
            ]
        return table("", rows, map(named, methods))

    def of_refusals(self) -> Iterator[str]:
        """What is refused, and why."""
        rows = {}
        for number, refusal in enumerate(self.refusals, 1):
            what = " ".join(
                word.format(value)
                for word, value in (
                    ("{}", named(refusal.method) or ("" if refusal.option or refusal.base else "any method")),
                    ("on {}" if refusal.method else "{}", refusal.base),
                    ("with {}" if refusal.method or refusal.base else "{}", refusal.option),
                    ("in {}", refusal.precision),
                    ("under {}", refusal.strategy),
                )
                if value
            )
            rows[str(number)] = [what, refusal.reason.replace("|", "\\|")]
        return table("", rows, ["what", "reason"])


def rendered(record: Record) -> str:
    """The page."""
    tables = Tables(record)
    precisions = ordered({note.precision for note in tables.trained} | set(PRECISIONS), PRECISIONS)
    options = ordered({option for note in tables.trained for option in note.options} | set(OPTIONS), OPTIONS)
    made = ", ".join(f"{name} {version}" for name, version in record.made.items())
    parts = {
        "Methods": tables.of_methods(),
        "Precisions": tables.of_field("precision", precisions),
        "Options": tables.of_field("option", options),
        "Base optimizers": tables.of_bases(),
        "What is refused": tables.of_refusals(),
    }
    lines = [line for title, part in parts.items() for line in (f"## {title}", "", *part)]
    return HEAD.format(made=made) + "\n" + "\n".join(lines[:-1]) + "\n"


def existing(files: Iterable[str]) -> set[str]:
    """The tests that there are in some files."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *sorted(files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {line for line in done.stdout.splitlines() if "::" in line}


def main() -> None:
    """Forget tests that are no more, and write the tables."""
    record = read()
    files = {test.split("::")[0] for tests in record.notes.values() for test in tests}
    files = {file for file in files if (ROOT / file).exists()}
    write(pruned(record, existing(files) if files else set()))


if __name__ == "__main__":
    main()
