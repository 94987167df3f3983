"""Figures of a page beside what they are computed from.

A claim is a text of a page with "{}" where its figures stand, and a value for each: a number that is computed from a
results file or read from the code. A figure is right if it is its value, rounded to the digits that it shows.
A figure that is set and not measured is written out in a text of its own (`given`), which has to be on the page.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Pages that other tests or scripts write, and definitions of what is logged.
OTHERS = {"compatibility.md", "tested-with.md", "products.md", "faults.md", "licences.md", "logged-names.md"}
NUMBER = r"-?(?:\d[\d,]*)?\.?\d+(?:e-?\d+)?(?![\d.]*\d)"
#: What is measured: a number with a unit, or a decimal with two places; no version and no name.
BEFORE = r"(?<![\w.`/-])(?<!Python )"
UNITS = ("x", "%", "times", "ms", "nats", "MiB", "MB", "seconds", "s of", "degrees")
FIGURE = re.compile(rf"{BEFORE}(?:\d*\.)?\d+\s?(?:{'|'.join(UNITS)})(?!\w)|{BEFORE}\d*\.\d{{2,}}\b(?!\.\d)")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`|<!--.*?-->|\$\$.*?\$\$|^(?: {4}|\t)[^\n]*$", re.MULTILINE | re.DOTALL)
#: A table that a script writes, between the comments that it looks for.
WRITTEN = re.compile(r"<!-- python -m [\w.]+ -->.*?<!-- end of the table -->", re.DOTALL)
#: What others found, in the sentence that names it; and sizes, which have a number before the sign: 256 x 128.
LITERATURE = re.compile(
    r"(?:(?<=[.:;|]\s)|(?<=\n\n))(?:(?![.:;|]\s|\n\n)[\s\S])*arXiv \d{4}\.\d{4,5}(?: and \d{4}\.\d{4,5})*"
)
SIZES = re.compile(r"\d[\d,]* x \d+")

Claims = Mapping[str, Sequence[float]]


def figures(text: str) -> list[re.Match[str]]:
    """All that look measured, without those in code, in tables that a script writes, and of the literature."""
    for left_out in (WRITTEN, CODE, LITERATURE, SIZES):
        text = left_out.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return list(FIGURE.finditer(text))


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(heading, text) of each section."""
    parts = re.split(r"^(#+ .*)$", text, flags=re.MULTILINE)
    yield from zip(["", *parts[1::2]], parts[0::2], strict=True)


def pattern(claim: str, figure: str = NUMBER) -> re.Pattern[str]:
    """Of a claim's text, in which white space is any, and each "{}" a number."""
    parts = (r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in claim.split("{}"))
    return re.compile(f"({figure})".join(parts))


def printed(table: str) -> dict[str, list[float]]:
    """The claim of a table that a script prints: it stands on the page with all its numbers."""
    return {re.sub(NUMBER, "{}", table): [float(number) for number in re.findall(NUMBER, table)]}


def found(text: str, claim: str) -> re.Match[str]:
    """Where it stands on a page.

    Raises:
        LookupError: It stands there not once.
    """
    places = list(pattern(claim).finditer(text))
    if len(places) != 1:
        raise LookupError(f"{claim!r} is {len(places)} times on the page")
    return places[0]


def rounds_to(value: float, shown: str) -> bool:
    """Whether a figure is a value, rounded to the digits that the figure shows."""
    digits, _, power = shown.replace(",", "").partition("e")
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return abs(value - float(shown.replace(",", ""))) <= unit / 2 + 1e-9 * abs(value)


def wrong(text: str, claims: Claims) -> Iterator[str]:
    """What a page says otherwise than it is computed, or does not say."""
    for claim, values in claims.items():
        try:
            shown = found(text, claim).groups()
        except LookupError as error:
            yield str(error)
            continue
        if len(shown) != len(values):
            yield f"{claim!r} has {len(shown)} figures, and {len(values)} values"
            continue
        for said, value in zip(shown, values, strict=True):
            if not rounds_to(value, said):
                yield f"{claim!r}: {said} is {value:.5g}"


def unclaimed(text: str, claims: Claims, given: Sequence[str] = ()) -> list[str]:
    """Figures of a page that no claim computes, and that are not given."""
    spans = []
    for claim in claims:
        spans += [place.span(group + 1) for place in pattern(claim).finditer(text) for group in range(place.re.groups)]
    for setting in given:
        spans += [place.span() for place in pattern(setting).finditer(text)]
    return [
        f"{text.count(chr(10), 0, figure.start()) + 1}: {figure[0]}"
        for figure in figures(text)
        if not any(start <= figure.start() < end for start, end in spans)
    ]
