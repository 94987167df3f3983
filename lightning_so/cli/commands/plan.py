"""The command `lightning-so plan`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_so.errors import ConfigError, check_choice, check_count, check_range

if TYPE_CHECKING:
    import torch

#: Bytes of a GB, as makers of devices count them.
GB = 1e9


def command(
    target: str,
    *,
    model: str | None = None,
    data: str | None = None,
    method: str | None = None,
    nodes: int | None = None,
    gpus: int | None = None,
    gpu_mem: float | None = None,
    accelerator: str | None = None,
    strategy: str | None = None,
    network: str | None = None,
    device: str | None = None,
    tokens: int | None = None,
    measure: bool = False,
    against: Path | None = None,
    overrides: list[str] | None = None,
) -> int:
    """Say what a training will hold, send and take, before it runs: no weight is made, so that any model can be asked.

    TARGET is a LightningCLI configuration (a .yaml file), or the dotted name of a LightningModule, whose arguments
    stand behind "--".
    Exit status: 0 it fits, 1 it does not, 2 it could not be planned.

    Examples:
        lightning-so plan configs/language.yaml --tokens 1024
        lightning-so plan configs/language.yaml --measure
        lightning-so plan examples.byte_lm.ByteLM --gpus 8 --gpu_mem 80 --tokens 16384 -- --d=4096 --layers=32
        lightning-so plan configs/language.yaml --nodes 4 --gpus 8 --device h100 --tokens 65536

    Args:
        target: A configuration, or the dotted name of a class.
        model: Dotted name of the module's class, where the configuration does not name it.
        data: Dotted name of the data module's class, where the configuration does not name it.
        method: soap, kfac, muon, ...; else the configuration's SecondOrder, else what is recommended.
        nodes: Machines; else as the configuration says.
        gpus: Ranks of each; else as the configuration says.
        gpu_mem: GB (1e9 bytes) of a rank's device; else of this machine's.
        accelerator: gpu or cpu; else as the configuration says, or gpu with --device.
        strategy: ddp, fsdp (FSDP2), hsdp (FSDP2 in each machine), zero_1, zero_2 or zero_3; else as the configuration
            says.
        network: loopback, ethernet, infiniband or nvlink, or GB a second that a rank sends ("12.5", or "12.5@20" with
            microseconds of a hop); else by device and nodes, and of CPUs measured with --measure.
        device: h100, or TFLOP/s of the training's own products, of second order's and of solves ("400/34/1.5"): a plan
            in seconds, exchanges too, of a device that is not here; needs --tokens.
        tokens: Rows (tokens, samples) of a step of one rank, from which the training's own work is modelled.
        measure: Whether steps of the training are timed on this machine, for a plan in seconds.
        against: A run that was recorded, to stand beside the plan.
        overrides: Arguments of LightningCLI, or of the class.

    Returns:
        The exit status.

    Raises:
        ConfigError: If an argument is wrong, or the training cannot be planned.
    """
    from lightning_so.cli.planning import against as recorded
    from lightning_so.cli.planning import measured, shown
    from lightning_so.cli.planning.fixes import DEAR, cheaper, fix
    from lightning_so.cli.planning.forecast import Asked, forecast
    from lightning_so.cli.planning.job import job
    from lightning_so.cli.planning.loopback import loopback
    from lightning_so.cli.planning.network import network_of, usual
    from lightning_so.cli.planning.speeds import speeds_of
    from lightning_so.cli.planning.weightless import make
    from lightning_so.cli.planning.world import World, device_of, number, strategy_of

    check_choice("plan", "--accelerator", accelerator, (None, "gpu", "cpu"))
    if tokens is not None:
        check_count("plan", "--tokens", tokens, 1, 10**12)
    if gpu_mem is not None:
        check_range("plan", "--gpu_mem", gpu_mem, 1e-3, 1e6)
    # What is wrong is refused before the work.
    network_of(network, cpu=True, nodes=1)
    speeds = None if device is None else speeds_of(device)
    if speeds is not None and (measure or tokens is None):
        raise ConfigError(
            f"--device {device} models a device that is not here: give --tokens, and leave --measure out, which times "
            "this machine's."
        )
    made = job(target, model, data, overrides or [])
    said = make(made, target)
    world = World(
        number(said.trainer.get("num_nodes"), 1) if nodes is None else nodes,
        number(said.trainer.get("devices"), 1) if gpus is None else gpus,
        strategy or strategy_of(said.trainer),
    )
    place = device_of(said.trainer, accelerator or (device and "gpu"))
    asked = Asked(made, target, said.options(method), world, place, tokens)
    found = forecast(asked)
    limit = _limit(place, world.gpus) if gpu_mem is None else gpu_mem * GB
    modelled = pace = found.modelled()
    how, why = "on a nominal device, by the model, without exchanges", ""
    cpu = place.type == "cpu"
    joined = network_of(network, cpu=cpu, nodes=world.nodes, gpus=world.gpus)
    if measure:
        timings, how, why = measured.timings_of(asked, found)
        here = network is None and cpu and world.nodes == 1 < world.ranks
        pace = found.timed(timings, loopback(measured.WallClock(), world.ranks) if here else joined)
    elif speeds is not None and found.own:
        timings = speeds.timings(found, found.own, tokens or 0)
        pace = found.timed(timings, joined)
        waits = 1e3 * found.waits(pace, timings)
        over = network or usual(cpu=cpu, nodes=world.nodes)
        how = f"on {device}, at nominal speeds, {waits:.1f} ms of second order's exchanges over {over} in the mean step"
    beside = [] if against is None else [*recorded.compared(against, found, pace)]
    fits = limit is None or found.most <= limit
    print(shown.verdict(asked, found, limit, pace))
    if why:
        print(shown.refused(why))
    if limit is not None and not fits:
        change = fix(asked, found, limit)
        print(
            shown.remedy(*change, limit)
            if change
            else "  -> no change of cap, method or strategy makes it fit; more ranks do."
        )
    elif modelled is not None and modelled.mean > DEAR:
        other = cheaper(asked, modelled)
        print(shown.cheaper("Muon (--method=muon)", other) if other else shown.SHORT)
    print(*shown.report(asked, found, pace, how), *beside, sep="\n")
    return 0 if fits else 1


def _limit(place: "torch.device", ranks: int) -> float | None:
    """Bytes that a rank may have on this machine; None where it has no such device."""
    import torch

    if place.type == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
