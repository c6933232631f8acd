"""The dataloader that `initialize(training_data=…)` gives: each rank sees its part of the dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

if TYPE_CHECKING:
    from zenspeed.compat.engine import DeepSpeedEngine


def make_dataloader(
    engine: DeepSpeedEngine,
    dataset: Any,
    batch_size: int | None = None,
    collate_fn: Callable[..., Any] | None = None,
    sampler: Any = None,
    shuffle: bool = True,
    num_workers: int = 0,
) -> EpochLoader:
    """Micro-batches of this rank, in an order that is another in every epoch and the same in every run."""
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = DistributedSampler(dataset, engine.dp_world_size, engine.global_rank, shuffle=shuffle, seed=0)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=batch_size or engine.train_micro_batch_size_per_gpu(),
        sampler=sampler,
        collate_fn=collate_fn,
        num_workers=num_workers,
        drop_last=bool(getattr(engine._config, "dataloader_drop_last", False)),
    )
    return EpochLoader(loader)


class EpochLoader:
    """A DataLoader that tells its sampler the epoch each time it is begun."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.dataloader, self.epoch = loader, 0

    def __len__(self) -> int:
        return len(self.dataloader)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.dataloader.sampler, DistributedSampler):
            self.dataloader.sampler.set_epoch(self.epoch)
        self.epoch += 1
        return iter(self.dataloader)

    def __getattr__(self, name: str) -> Any:
        if name == "dataloader":
            raise AttributeError(name)
        return getattr(self.dataloader, name)


class RepeatingLoader:
    """Begins a loader again whenever it ends."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.data_iter = iter(loader)

    def __iter__(self) -> RepeatingLoader:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.data_iter)
        except StopIteration:
            self.data_iter = iter(self.loader)
            return next(self.data_iter)
