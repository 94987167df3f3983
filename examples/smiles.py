"""Molecules as chemists write them in a line (Weininger 1988), as far as the suite's need it: atoms and bonds."""

import re
from typing import NamedTuple

TOKEN = re.compile(r"\[[^]]+\]|Br|Cl|[BCNOPSFIbcnops]|%\d\d|.")
#: Single, double, triple and aromatic.
BONDS = ("-", "=", "#", ":")


class Atom(NamedTuple):
    """What is said of an atom, its hydrogens only where they are."""

    element: str
    aromatic: bool
    charge: int
    hydrogen: bool


def atom(token: str) -> Atom:
    """Of `C`, `c`, `[nH]`, `[N+]`, `[O-]`."""
    found = re.match(r"\[?(\d*)([A-Z][a-z]?|[a-z])@*(H\d?)?([+-]\d?)?", token)
    if found is None:
        raise ValueError(f"no atom of a SMILES string: {token!r}")
    _, name, hydrogen, charge = found.groups()
    size = int((charge or "+0")[1:] or 1)
    return Atom(name.capitalize(), name.islower(), -size if charge and charge[0] == "-" else size, hydrogen is not None)


def parsed(smiles: str) -> tuple[list[Atom], list[tuple[int, int, str]]]:
    """Atoms, and bonds between them, of a SMILES string (Weininger 1988) of one piece; hydrogens are left out."""
    atoms, bonds, branches, rings = list[Atom](), list[tuple[int, int, str]](), list[int](), dict[str, tuple]()
    last, kind = -1, ""

    def bind(one: int, other: int, said: str) -> None:
        both = atoms[one].aromatic and atoms[other].aromatic
        bonds.append((one, other, said if said in BONDS else ":" if both else "-"))

    for token in TOKEN.findall(smiles):
        if token == "(":
            branches.append(last)
        elif token == ")":
            last = branches.pop()
        elif token in "-=#:/\\":
            kind = token
        elif token[0] in "%0123456789":
            if token in rings:
                begun, said = rings.pop(token)
                bind(begun, last, kind or said)
            else:
                rings[token] = (last, kind)
            kind = ""
        else:
            atoms.append(atom(token))
            if last >= 0:
                bind(last, len(atoms) - 1, kind)
            last, kind = len(atoms) - 1, ""
    return atoms, bonds
