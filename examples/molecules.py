"""A graph network on molecules: messages along directed bonds (Yang and others 2019), one-hot atoms, a molecule's logP.

    python -m examples.gallery.molecules

`molecules.csv` holds 400 molecules of the NCI's open database, as RDKit has it, and their logP, which RDKit computes
(Wildman and Crippen 1999).
"""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from examples.smiles import BONDS, parsed

FILE = Path(__file__).with_name("molecules.csv")
#: The periodic table's first 100 have a column each, as such networks have them: most are never seen.
ELEMENTS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo
Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl
Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm
""".split()
CHARGES, DEGREES = (-2, -1, 0, 1, 2), 7
ATOM = len(ELEMENTS) + DEGREES + len(CHARGES) + 2
WIDTH, ROUNDS = 128, 3
TRAIN, BATCH = 320, 32


class Molecule(NamedTuple):
    """Features of atoms, (A, 114), of directed bonds, (B, 4), and the atoms each bond leads from and to, (B,).

    Bonds are in pairs: 2 i and 2 i + 1 are the two directions of one.
    """

    atoms: Tensor
    bonds: Tensor
    begins: Tensor
    ends: Tensor


def molecule(smiles: str) -> Molecule:
    """Its graph: one-hot element, number of neighbours and charge; whether aromatic and whether a hydrogen is said."""
    atoms, bonds = parsed(smiles)
    begins, ends = (torch.tensor([b[i] for b in bonds for i in sides]) for sides in ((0, 1), (1, 0)))
    degrees = torch.bincount(begins, minlength=len(atoms)).clamp(max=DEGREES - 1)
    elements = torch.tensor([ELEMENTS.index(a.element) for a in atoms])
    charges = torch.tensor([CHARGES.index(a.charge) for a in atoms])
    flags = torch.tensor([[a.aromatic, a.hydrogen] for a in atoms])
    hot = [F.one_hot(elements, len(ELEMENTS)), F.one_hot(degrees, DEGREES), F.one_hot(charges, len(CHARGES)), flags]
    kinds = torch.tensor([BONDS.index(kind) for _, _, kind in bonds]).repeat_interleave(2)
    return Molecule(torch.cat([part.float() for part in hot], 1), F.one_hot(kinds, len(BONDS)).float(), begins, ends)


@cache
def molecules() -> tuple[list[Molecule], Tensor]:
    """All of them, and their logP less its mean over its deviation, (400,)."""
    with FILE.open() as file:
        rows = list(csv.DictReader(file))
    logp = torch.tensor([float(row["logp"]) for row in rows])
    return [molecule(row["smiles"]) for row in rows], (logp - logp.mean()) / logp.std()


class Batch(NamedTuple):
    """Molecules side by side as one graph, the molecule each atom is of, and their logP."""

    graph: Molecule
    owner: Tensor
    logp: Tensor


def joined(chosen: list[int]) -> Batch:
    """Those of the numbers."""
    every, logp = molecules()
    parts = [every[i] for i in chosen]
    sizes = torch.tensor([len(part.atoms) for part in parts])
    shifts = (sizes.cumsum(0) - sizes).tolist()
    atoms, bonds = torch.cat([part.atoms for part in parts]), torch.cat([part.bonds for part in parts])
    begins = torch.cat([part.begins + shift for part, shift in zip(parts, shifts)])
    ends = torch.cat([part.ends + shift for part, shift in zip(parts, shifts)])
    owner = torch.arange(len(parts)).repeat_interleave(sizes)
    return Batch(Molecule(atoms, bonds, begins, ends), owner, logp[chosen])


class MessagePassing(nn.Module):
    """Directed bonds take what comes to their atom, but not from where they lead; an atom takes its bonds."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.pass_on = nn.Linear(ATOM + len(BONDS), WIDTH, False), nn.Linear(WIDTH, WIDTH, False)
        self.leave = nn.Linear(ATOM + WIDTH, WIDTH)
        self.read = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, batch: Batch) -> Tensor:
        """One number a molecule, (M,)."""
        (atoms, bonds, begins, ends), owner, logp = batch
        first = self.enter(torch.cat([atoms[begins], bonds], 1))
        hidden = first.relu()
        for _ in range(ROUNDS - 1):
            # Of the two directions of a bond each is the other's way back.
            back = hidden.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            hidden = (first + self.pass_on(gathered(hidden, ends, len(atoms))[begins] - back)).relu()
        hidden = self.leave(torch.cat([atoms, gathered(hidden, ends, len(atoms))], 1)).relu()
        sizes = torch.bincount(owner, minlength=len(logp)).unsqueeze(1)
        return self.read(gathered(hidden, owner, len(logp)) / sizes).squeeze(1)


def gathered(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Sums of the rows that share a place, (count, width)."""
    return rows.new_zeros(count, rows.shape[1]).index_add(0, places, rows)


class Regressor(pl.LightningModule):
    """The network under AdamW; nothing in it knows of second-order methods.

    Args:
        lr: AdamW's learning rate.
    """

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = MessagePassing()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared error of logP, in its deviations."""
        return F.mse_loss(self.model(batch), batch.logp)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same of held-out molecules."""
        self.log("val_loss", F.mse_loss(self.model(batch), batch.logp), batch_size=len(batch.logp))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


class Molecules(pl.LightningDataModule):
    """320 molecules for training, the other 80 for validation, always the same."""

    def setup(self, stage: str) -> None:
        """Part them."""
        order = torch.randperm(len(molecules()[0]), generator=torch.Generator().manual_seed(0)).tolist()
        self.train, self.held = order[:TRAIN], order[TRAIN:]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of 32."""
        return DataLoader(self.train, BATCH, shuffle=True, collate_fn=joined)

    def val_dataloader(self) -> DataLoader:
        """One batch."""
        return DataLoader(self.held, len(self.held), collate_fn=joined)
