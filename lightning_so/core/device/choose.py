"""The ways of a training: what was asked for, else what its device is faster in. Rank 0 measures, all do as it says."""

import json
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from lightning_so.contract.ways import WAYS, Ways
from lightning_so.core.device.alternatives import sizes, timed
from lightning_so.core.host import Host
from lightning_so.core.measure import faster, name_of
from lightning_so.core.schedule.units import Units

#: To which share of the usual way's time another must come down, so that two measurements find the same.
LEAST = 0.8
#: Bytes in which rank 0 tells the others.
WIRE = 2048
USUAL = Ways(**{name: allowed[0] for name, allowed in WAYS.items()})


@dataclass(frozen=True)
class Chosen:
    """The ways of a training, and how they came about.

    Attributes:
        ways: Those in force, each of them.
        device: The device that they were chosen for: that of rank 0; of none where nothing is computed in ways.
        seconds: By field of `Ways` and by way, what was measured.
        asked: What was not to be found out.
        kept: Whether they are those of a file.
    """

    ways: Ways = USUAL
    device: str = ""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    asked: Ways = field(default_factory=Ways)
    kept: bool = False

    def __str__(self) -> str:
        """One line of the plan; nothing where all is as usual and nothing was measured."""
        if self.ways == USUAL and not self.seconds and not self.kept:
            return ""
        ways = self.ways
        said = {
            "refresh": f"bases by {str(ways.refresh).capitalize()}",
            "polar": f"polar factors in {ways.polar}",
            "rotation": "rotations as torch is told" if ways.rotation == "torch" else f"rotations in {ways.rotation}",
            "padding": f"shapes {ways.padding}",
        }
        found = [text + _times(self.seconds.get(name, {})) for name, text in said.items()]
        return f"chosen for {self.device}{' by the state that was loaded' * self.kept}: {', '.join(found)}"

    def portable(self) -> dict[str, str]:
        """What files keep: nothing that differs between two measurements which find the same."""
        return {"device": self.device, **asdict(self.ways)}

    def or_those_of(self, portable: dict[str, str]) -> "Chosen":
        """The ways of a file, but for what was asked for: a resumed run is the one that was not stopped.

        Args:
            portable: What `portable` gave, on this device or another.

        Returns:
            The choice that is in force from now on; of one that is another than here it is said.
        """
        theirs = _recalled(portable)
        ways = self.asked.over(theirs.ways)
        if ways == self.ways:
            return self
        found = Chosen(ways, theirs.device, asked=self.asked, kept=True)
        warnings.warn(
            f"the state goes on as it was written, {found}; this run on {self.device} had chosen {self.ways}. "
            f"Give ways={self.ways} for those.",
            stacklevel=2,
        )
        return found


def _times(seconds: dict[str, float]) -> str:
    return f" ({', '.join(f'{name} {1e3 * time:.2g} ms' for name, time in seconds.items())})" if seconds else ""


def choose(units: Units, host: Host, asked: Ways) -> Chosen:
    """Find out in which ways a training is faster on its device: a collective.

    A CPU has its usual ones without a measurement: what it computes is the same at every start.

    Args:
        units: The units and stacks of the training, whose statistics are there.
        host: The training.
        asked: What is not to be found out.

    Returns:
        The choice of rank 0.
    """
    # Ranks with rows of their own may have no stack at all, so that what is exchanged hangs on none.
    devices = [stack.device for stack in units.stacks if stack.versatile is not None]
    device = next((device for device in devices if measured(device)), next(iter(devices), None))
    seconds: dict[str, dict[str, float]] = {}
    if host.world.rank == 0 and device is not None and measured(device):
        open_ones = {what: found for what, found in sizes(units, host).items() if getattr(asked, what) is None}
        seconds = {what: timed(what, found, device) for what, found in open_ones.items()}
    found = Ways(**{what: faster(times, getattr(USUAL, what), LEAST) for what, times in seconds.items()})
    name = "" if device is None else name_of(device)
    return _agreed(Chosen(asked.over(found).over(USUAL), name, seconds, asked), host)


def measured(device: torch.device) -> bool:
    """Whether ways are to be measured on a device."""
    return device.type != "cpu"


def _agreed(chosen: Chosen, host: Host) -> Chosen:
    """What rank 0 has chosen."""
    if host.world.ranks == 1:
        return chosen
    mine = json.dumps([chosen.portable(), chosen.seconds]).encode().ljust(WIRE)
    wire = torch.frombuffer(bytearray(mine), dtype=torch.uint8)[: WIRE * (host.world.rank == 0)]
    first = host.world.gather(wire, [WIRE] + [0] * (host.world.ranks - 1))[0]
    portable, seconds = json.loads(bytes(first.tolist()))
    return replace(chosen, ways=_recalled(portable).ways, device=portable["device"], seconds=seconds)


def _recalled(portable: dict[str, Any]) -> Chosen:
    """What `portable` gave; what a file of before does not say is as usual."""
    said = {name: portable[name] for name in WAYS if name in portable}
    return Chosen(Ways(**said).over(USUAL), portable["device"])
