"""`simtile.DistinctIdsBatchSampler` as sentence-transformers' trainers take it.

::

    arguments = SentenceTransformerTrainingArguments(..., batch_sampler=distinct_ids(policies))

`BatchSamplers.NO_DUPLICATES` keeps equal texts apart; this keeps apart what has the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sentence_transformers.base.sampler import DefaultBatchSampler

from simtile.batches import DistinctIdsBatchSampler

__all__ = ["DistinctIds", "distinct_ids"]


class DistinctIds(DefaultBatchSampler):
    """Batches of a dataset in which no id occurs twice.

    Parameters
    ----------
    ids : N ids
        Of the rows of the dataset.
    dataset, batch_size, drop_last, valid_label_columns, generator, seed
        As sentence-transformers gives them to its samplers. The order depends on the seed and the
        epoch alone, and `generator` is not used.
    """

    def __init__(
        self,
        ids: Any,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: Any = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            valid_label_columns=valid_label_columns,
            generator=generator,
            seed=seed,
        )
        if len(ids) != len(dataset):
            raise ValueError(f"ids: found {len(ids)}, expected {len(dataset)}, one for each row")
        self._sampler = DistinctIdsBatchSampler(
            ids, batch_size, drop_last=drop_last, seed=0 if seed is None else seed
        )

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


def distinct_ids(ids: Any) -> Callable[..., DistinctIds]:
    """What to pass as ``batch_sampler`` of the training arguments.

    Parameters
    ----------
    ids : N ids, or the name of a column, or a function of the dataset
        Values as in :func:`simtile.audit_batch`. A column is also what the model is trained on, so
        ids that are no text belong in a list; with several datasets a function gives each its own.
    """

    def make(dataset: Any, *arguments: Any, **named: Any) -> DistinctIds:
        own = ids
        if callable(ids):
            own = ids(dataset)
        elif isinstance(ids, str):
            own = list(dataset[ids])
        return DistinctIds(own, dataset, *arguments, **named)

    return make
