"""The picture of the house in docs shows the rooms, arrows and floors that are kept, and no other."""

import re

import pytest

from tests.support.arrows import ALLOWED, FLOORS, PACKAGE, ROOT

REPOSITORY = ROOT.parent
PAGE = "".join((REPOSITORY / "docs" / "explanation" / name).read_text() for name in ("house.md", "one-step.md"))
EXTENDING = (REPOSITORY / "docs" / "how-to" / "extending.md").read_text()
FOLDERS = {path.name for path in REPOSITORY.iterdir() if path.is_dir()}


def tree(page: str, folder: str) -> list[str]:
    """The lines of the tree of a folder."""
    return re.search(rf"^```text\n{folder}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1].splitlines()


def rooms(page: str) -> dict[str, set[str]]:
    """By file or folder of the tree, what it may import."""
    said = {line.split()[0]: line.split("<- ")[1] for line in tree(page, f"{PACKAGE}/")}
    every = {name.rstrip("/") for name in said if name.endswith("/")}
    found = {}
    for name, text in said.items():
        what, *but = re.split(" but | and ", text)
        named = {"all rooms": every, "nothing": set()}.get(what, set(what.split()))
        found[name] = named - {name.rstrip("/"), *but}
    return found


def floors(page: str) -> list[tuple[int, str]]:
    """(floor, file or folder) of core, as the tree has them."""
    return [(int(line.split()[0]), line.split()[1]) for line in tree(page, f"{PACKAGE}/core/")]


def drawn(page: str) -> set[tuple[str, str]]:
    """The arrows between rooms of the picture."""
    return set(re.findall(r"^    ([a-z]+) --> ([a-z]+)$", page, re.MULTILINE))


def named(page: str) -> list[str]:
    """Files and folders of the repository that the page names."""
    paths = list[str]()
    for path in re.findall(r"`(\w+/[^`\s]*)`", page):
        if path.split("/")[0] in FOLDERS:
            paths.append(path)
        elif path.endswith(".py"):
            paths.append(f"{PACKAGE}/{path}" if path.startswith("core/") else f"{PACKAGE}/core/{path}")
    return paths


def wrong(page: str) -> list[str]:
    """What on a page is not so."""
    trees = [*(f"{PACKAGE}/{name}" for name in rooms(page)), *(f"{PACKAGE}/core/{name}" for _, name in floors(page))]
    seen, kept = rooms(page), {"errors.py": set(), **{f"{name}/": allowed for name, allowed in ALLOWED.items()}}
    # The arrows that lead nowhere that two others do not.
    steps = {(a, b) for a in ALLOWED for b in ALLOWED[a] if not any(b in ALLOWED[c] for c in ALLOWED[a])}
    shown = {(number, name.rstrip("/").removesuffix(".py")) for number, name in floors(page)}
    here = {(number, name) for number, names in enumerate(FLOORS) for name in names}
    return [
        *(f"{name} imports {seen.get(name)}" for name in {**seen, **kept} if seen.get(name) != kept.get(name)),
        *(f"arrow {arrow}" for arrow in drawn(page) ^ steps),
        *(f"floor {place}" for place in shown ^ here),
        *(f"{path} is not there" for path in [*trees, *named(page)] if not (REPOSITORY / path).exists()),
    ]


def test_the_picture_is_the_house() -> None:
    assert wrong(PAGE) == []


def test_where_the_next_one_belongs_is_there() -> None:
    assert len(named(EXTENDING)) > 30
    assert [path for path in named(EXTENDING) if not (REPOSITORY / path).exists()] == []


def test_the_highest_is_first() -> None:
    numbers = [number for number, _ in floors(PAGE)]
    assert numbers == sorted(numbers, reverse=True)
    order = [name.rstrip("/") for name in rooms(PAGE)]
    assert all(order.index(a) < order.index(b) for a in ALLOWED for b in ALLOWED[a])


def test_what_arrows_lead_to_may_be_imported_but_by_monitor() -> None:
    beyond = {room for room in ALLOWED for below in ALLOWED[room] if not ALLOWED[below] <= ALLOWED[room]}
    assert beyond == {"monitor"}


@pytest.mark.parametrize(
    ("was", "then"),
    [
        ("  probe/  ", "  attic/  "),
        ("<- probe linalg comm recording\n", "<- probe linalg\n"),
        ("<- all rooms but cli", "<- all rooms"),
        ("    probe --> comm\n", ""),
        ("    probe --> comm\n", "    probe --> comm\n    linalg --> comm\n"),
        ("  2  plan/", "  3  plan/"),
        ("  1  stacks/", "  1  piles/"),
        ("  0  host.py", "  0  host/"),
        ("`step/finish.py`", "`step/end.py`"),
        ("`tests/house/test_arrows.py`", "`tests/house/test_arrow.py`"),
    ],
)
def test_a_picture_that_is_not_the_house_is_found(was: str, then: str) -> None:
    assert was in PAGE
    assert wrong(PAGE.replace(was, then, 1))
