"""A loader that knows its place in an epoch, so that a training goes on with the batch that comes next."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from lightning_so.comm import standing
from lightning_so.errors import ConfigError, StateError, check_count

#: What the loader decides itself.
OURS = ("batch_size", "sampler", "batch_sampler", "drop_last", "generator")


class Deal(DistributedSampler):
    """A rank's part of every global batch, in the order of the epoch; batch k is the same on any number of ranks.

    For Lightning it is a sampler that is distributed already, whose `set_epoch` it calls.
    """

    def __init__(self, samples: int, batch: int, shuffle: bool, seed: int, ranks: tuple[int, int] | None) -> None:
        """Keep what is asked for; which rank this is may not be known yet."""
        self.samples, self.batch, self.shuffle, self.seed, self.ranks = samples, batch, shuffle, seed, ranks
        self.epoch = self.first = 0

    def draw(self, *of: int) -> int:
        """A number for a generator, of 32 bits: all that the CPU's takes."""
        words = ",".join(map(str, (self.seed, *of)))
        return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=4).digest(), "little")

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's indices, a batch at a time, from `first` on."""
        rank, ranks = self.ranks or standing()
        if self.batch % ranks:
            raise ConfigError(
                f"ResumableLoader(global_batch={self.batch}): it cannot be dealt to {ranks} ranks evenly; give a "
                f"multiple of {ranks}."
            )
        order = torch.arange(self.samples)
        if self.shuffle:
            order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.draw(self.epoch)))
        starts = range(self.first, len(self) * self.batch, self.batch)
        return (order[start + rank : start + self.batch : ranks].tolist() for start in starts)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.samples // self.batch


class ResumableLoader(DataLoader):
    """A DataLoader that goes on where a checkpoint was saved, within an epoch too, on as many ranks as there are then.

    Lightning saves and loads its state with the training's. The place is counted in samples of all ranks, which the
    training has used; what workers have fetched ahead is fetched again. Global batch k of an epoch holds the same
    samples on any number of ranks: samples k n to (k + 1) n of the epoch's order, n = `global_batch`, of which rank r
    of R takes every R-th from the r-th on. What is left at the end of an epoch, less than a global batch, is dropped.

    The order hangs on `seed` and the epoch's number, which Lightning tells (in a plain loop:
    `loader.sampler.set_epoch`). Nothing is drawn from torch's global generator. Random augmentations are not the same
    after a restart, unless the dataset draws them from the index of the sample.

    Args:
        dataset: A dataset with a length.
        global_batch: Samples of a step of all ranks together; with gradients accumulated, of a micro-batch.
        shuffle: Whether every epoch has an order of its own.
        seed: Of the orders.
        ranks: This rank and how many share the data, where these are not all processes (tensor parallelism).
        options: Further arguments of DataLoader, such as `num_workers`.

    Raises:
        ConfigError: If an argument cannot work.

    Example:
        >>> loader = ResumableLoader(range(8), 2, shuffle=False)
        >>> used = next(iter(loader))
        >>> again = ResumableLoader(range(8), 2, shuffle=False)
        >>> again.load_state_dict(loader.state_dict())
        >>> [batch.tolist() for batch in again], [batch.tolist() for batch in again][0]
        ([[2, 3], [4, 5], [6, 7]], [0, 1])
    """

    def __init__(
        self,
        dataset: Dataset,
        global_batch: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        ranks: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        """Check the arguments; ranks are asked for when an epoch begins."""
        check_count("ResumableLoader", "global_batch", global_batch, 1, 1 << 40)
        check_count("ResumableLoader", "seed", seed, 0, (1 << 63) - 1)
        if wrong := [name for name in OURS if name in options]:
            raise ConfigError(f"ResumableLoader({wrong[0]}=...): it deals the batches itself; give global_batch.")
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ConfigError(
                f"ResumableLoader(dataset={type(dataset).__name__}): its samples have no numbers to go on from. Give a "
                "dataset with __getitem__ and __len__, or a loader of its own with state_dict and load_state_dict."
            )
        samples = len(dataset)  # pyright: ignore[reportArgumentType]
        if samples < global_batch:
            raise ConfigError(
                f"ResumableLoader(global_batch={global_batch}): the dataset has {samples} samples, less than one batch."
            )
        deal = Deal(samples, global_batch, shuffle, seed, ranks)
        super().__init__(dataset, batch_sampler=deal, generator=torch.Generator(), **options)
        # DataLoader has put one in that is not told epochs, and that Lightning would replace.
        object.__setattr__(self, "sampler", deal)
        self._deal, self._used = deal, 0
        self._loaded: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Batches from the place that was loaded, once; a later epoch begins at 0."""
        deal, loaded = self._deal, self._loaded
        self._loaded = None
        # A place is one of its epoch, and of no other.
        deal.first = self._used = loaded[1] if loaded is not None and loaded[0] == deal.epoch else 0
        assert self.generator is not None
        # Workers' seeds are drawn from it.
        self.generator.manual_seed(deal.draw(deal.epoch, deal.first))
        for batch in super().__iter__():
            self._used += deal.batch
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place, and what it is one of."""
        deal = self._deal
        return {"epoch": deal.epoch, "used": self._used, "samples": deal.samples, "global_batch": deal.batch,
                "shuffle": deal.shuffle, "seed": deal.seed}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place.

        Args:
            state: Of `state_dict`.

        Raises:
            StateError: If it is a place in other data or in another order.
        """
        mine = self.state_dict()
        other = [name for name in mine if name not in ("epoch", "used") and state.get(name) != mine[name]]
        if other or not {"epoch", "used"} <= set(state):
            seen = (
                ", ".join(f"{name}={state.get(name)!r} for {mine[name]!r}" for name in other) or f"only {list(state)}"
            )
            raise StateError(
                f"ResumableLoader: the place that was saved is one of another order: it has {seen}. Go on with the "
                "loader that the training had, or begin a new training from the weights alone."
            )
        self._deal.epoch, self._used = state["epoch"], state["used"]
        self._loaded = self._deal.epoch, self._used
