"""The arrows of the package, read from its sources: which room may import which, which floor of core which; circles.

Imports inside functions and those that only the type checker sees are arrows too: a reader must follow them.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = "lightning_so"
ROOT = Path(__file__).parents[2] / PACKAGE

BELOW = {
    *("core", "layers", "losses", "linalg", "methods", "actions", "comm", "monitor", "contract", "probe"),
    "recording",
}
ALLOWED = {
    "linalg": set(),
    "comm": set(),
    "layers": {"linalg"},
    "losses": {"linalg"},
    "actions": {"linalg"},
    "probe": {"comm", "linalg", "losses"},
    "contract": {"actions", "layers", "linalg"},
    "core": {"contract", "probe", "actions", "linalg", "layers", "losses", "comm"},
    "methods": {"contract", "linalg", "layers", "actions"},
    "monitor": {"probe", "linalg", "comm", "recording"},
    "strategies": {"comm"},
    "recording": set(),
    "report": {"recording"},
    "callbacks": BELOW | {"strategies"},
    "cli": BELOW | {"strategies", "callbacks", "report"},
}
#: Rooms and files of core, the lowest first. One may import those of lower floors, and nothing beside it.
FLOORS = (
    ("host", "measure", "report", "stopwatch"),
    ("stacks",),
    ("plan", "schedule", "matrices"),
    ("options", "device", "statistics", "solves", "step"),
    ("trust", "overhead"),
    ("balance",),
    ("assembly",),
    ("checkpoint",),
    ("engine",),
    ("vector", "telemetry", "export", "switch"),
    ("attach",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
#: Of core, those that look at an engine from above; all others are handed what they need of it.
TAKE_ENGINES = {"attach", "telemetry", "export", "switch"}
FOR_ALL = (f"{PACKAGE}.errors", f"{PACKAGE}.version")
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"}
LIGHTNING_ROOMS = {"callbacks", "strategies", "cli"}
DISTRIBUTED = "torch.distributed"
DISTRIBUTED_ROOMS = {"comm"}


def inside(name: str, module: str) -> bool:
    """Whether `name` is the module, or something in it."""
    return name == module or name.startswith(module + ".")


def parts_of(path: str) -> list[str]:
    """Dotted parts of a file of the package, "lightning_so/core/host.py" -> ["lightning_so", "core", "host"]."""
    return list(Path(path).with_suffix("").parts)


def imported(parts: list[str], tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of all that a module imports or reaches as an attribute of torch."""
    torches = {"torch"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torches |= {alias.asname for alias in node.names if alias.name == "torch" and alias.asname}
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package that holds the module; an __init__ has its own name as a last part too.
            origin = parts[: len(parts) - node.level] if node.level else []
            origin = [*origin, *(node.module.split(".") if node.module else [])]
            yield from ((node.lineno, ".".join([*origin, alias.name])) for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in torches:
            yield node.lineno, f"torch.{node.attr}"


def complaint(parts: list[str], name: str) -> str | None:
    """What is wrong with the module `parts` importing `name`; None if it may."""
    room = parts[1]
    if name.split(".")[0] in LIGHTNING and room not in LIGHTNING_ROOMS:
        return f"{room} may not import Lightning"
    if inside(name, DISTRIBUTED) and room not in DISTRIBUTED_ROOMS:
        return f"{room} may not use torch.distributed"
    if not inside(name, PACKAGE) or any(inside(name, each) for each in FOR_ALL):
        return None
    target = name.split(".")[1:]
    if not target or target[0] not in ALLOWED:
        return f"{room} may not import the package's own front door"
    if target[0] != room:
        return None if target[0] in ALLOWED[room] else f"{room} may not import {target[0]}"
    if room == "core" and len(parts) > 2 and parts[2] != "__init__":
        return climbs(parts[2], target[1] if len(target) > 1 else "")
    if room == "methods" and parts[2] != "__init__" and target[1:2] != parts[2:3]:
        return "a method may not import its sibling"
    return None


def climbs(here: str, there: str) -> str | None:
    """What is wrong with one room of core importing another; None if it may."""
    if here not in FLOOR or there not in FLOOR:
        return f"core/{here if here not in FLOOR else there} is on no floor"
    if here == there or FLOOR[there] < FLOOR[here]:
        return None
    return f"core/{here} may not import core/{there}, which is not below it"


def violations(path: str, source: str) -> list[str]:
    """Every arrow of one file that points the wrong way.

    Args:
        path: The file, relative to the repository's root.
        source: Its text.

    Returns:
        One line of text for each; nothing for the package's front doors, which may import anything.
    """
    parts = parts_of(path)
    if parts in ([PACKAGE, "__init__"], [PACKAGE, "__main__"]) or parts[1:] in (["errors"], ["version"]):
        return []
    if parts[1] not in ALLOWED:
        return [f"{path}: {parts[1]} is not a room"]
    found = ((line, name, complaint(parts, name)) for line, name in imported(parts, ast.parse(source)))
    return [f"{path}:{line}: {why} ({name})" for line, name, why in found if why]


def arrows(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules each module imports, itself left out.

    Args:
        sources: Texts by path, relative to the repository's root.

    Returns:
        By dotted name; a package is called by its own name.
    """
    paths = {".".join(part for part in parts_of(path) if part != "__init__"): path for path in sources}
    found = {}
    for module, path in paths.items():
        names = [name for _, name in imported(parts_of(path), ast.parse(sources[path]))]
        ends = {next((m for m in (name, name.rpartition(".")[0]) if m in paths), module) for name in names}
        found[module] = ends - {module}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A way along arrows that ends where it began; empty if there is none."""
    done, way = set[str](), list[str]()

    def walk(module: str) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        way.append(module)
        for target in sorted(graph[module]):
            if found := walk(target):
                return found
        done.add(way.pop())
        return []

    return next((found for module in sorted(graph) if (found := walk(module))), [])


def takers(path: str, source: str) -> list[str]:
    """Functions of core that are handed an engine where they should not be."""
    parts = parts_of(path)
    if parts[1] != "core" or parts[2] in TAKE_ENGINES:
        return []
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [
        f"{path}: {function.name}({argument.arg})"
        for function in functions
        for argument in [*function.args.args, *function.args.kwonlyargs]
        if argument.arg == "engine" or (argument.annotation and "Engine" in ast.unparse(argument.annotation).split("."))
    ]


def attributes(source: str, name: str) -> set[str]:
    """What the functions of a class set on its object."""
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name]
    stores = (node for node in ast.walk(found) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in stores if isinstance(node.value, ast.Name) and node.value.id == "self"}
