"""Negatives that stay hard: mined again between epochs, with the model as it is then.

::

    pairs = mine_hard_negatives(dataset, model, output_format="n-tuple", num_negatives=2)
    remine = RemineHardNegatives(pairs)
    trainer = SentenceTransformerTrainer(
        model=model, train_dataset=remine.dataset, callbacks=[remine], ...
    )
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from transformers import TrainerCallback

from simtile import _inputs, _mining, _mining_inputs, _mining_sources
from simtile._progress import reporter
from simtile.integrations.sentence_transformers_mining import Encoder, Pairs, metric_of

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["RemineHardNegatives"]

Texts = tuple[str, ...]

logger = logging.getLogger(__name__)


class RemineHardNegatives(TrainerCallback):
    """Mines the negatives of a dataset again before an epoch, and trains on them.

    Parameters
    ----------
    dataset : datasets.Dataset
        Columns of texts: an anchor, a positive, and one or more negatives, "negative" or
        "negative_1", …, as "triplet" and "n-tuple" of `mine_hard_negatives` are.
    every : int
        Epochs between two minings.
    at_start : bool
        Whether to mine before the first epoch too.
    anchor_column_name, positive_column_name : str, optional
        By default the first column and the second.
    corpus : list of texts, optional
        Documents beside the positives, as they were given to `mine_hard_negatives`.
    query_prompt, query_prompt_name, corpus_prompt, corpus_prompt_name : str, optional
        Of the model's ``encode_query`` and ``encode_document``.
    batch_size : int
        Of the encoding.
    range_min, range_max, max_score, min_score, absolute_margin, relative_margin, sampling
        As in :func:`simtile.mine_hard_negatives`.
    seed : int
        Of "random", with the epoch.
    threads : int, optional
        Of the search.

    Attributes
    ----------
    dataset : datasets.Dataset
        To train on. It has the rows that were given; their negatives are replaced as rows are read.
        Rows may be selected from it and shuffled.

    Raises
    ------
    ValueError, TypeError
        The dataset has other columns; an argument has a wrong value; when training begins, workers
        of the data loader persist, which would go on with the negatives they began with.

    Notes
    -----
    The number of rows never changes. Where too few negatives are found for a row, it keeps some of
    those it was given. Every process mines for itself, and with equal models gets the same.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        every: int = 1,
        at_start: bool = False,
        anchor_column_name: str | None = None,
        positive_column_name: str | None = None,
        corpus: list[str] | None = None,
        query_prompt: str | None = None,
        query_prompt_name: str | None = None,
        corpus_prompt: str | None = None,
        corpus_prompt_name: str | None = None,
        batch_size: int = 32,
        range_min: int = 0,
        range_max: int | None = None,
        max_score: float | None = None,
        min_score: float | None = None,
        absolute_margin: float | None = None,
        relative_margin: float | None = None,
        sampling: Literal["top", "random"] = "top",
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: found {every}, expected at least 1")
        self.every, self.at_start, self.seed = every, at_start, seed
        self._threads = _inputs.check_threads(threads)
        names = dataset.column_names
        anchor = anchor_column_name or names[0]
        positive = positive_column_name or (names[1] if len(names) > 1 else "")
        negatives = [name for name in names if name not in (anchor, positive)]
        wrong = [x for x in negatives if x != "negative" and not x.startswith("negative_")]
        if wrong or not negatives or anchor not in names or positive not in names:
            raise ValueError(
                f"dataset: found the columns {names}, expected an anchor, a positive, and "
                "'negative' or 'negative_1', 'negative_2', … alone"
            )
        self._columns = (anchor, positive, *negatives)
        self._width = len(negatives)
        self._pairs = Pairs(list(dataset[anchor]), list(dataset[positive]), corpus)
        self._places = self._number([dataset[name] for name in self._columns])
        longest = 1 + max(rank for _, rank in self._places.values())
        self._options = _mining_inputs.check_options(
            longest * self._width,
            range_min,
            range_max,
            max_score,
            min_score,
            absolute_margin,
            relative_margin,
            sampling,
            longest=self._pairs.positives.longest,
            listed=None,
            filtered=False,
        )
        self._prompts = (query_prompt_name, query_prompt), (corpus_prompt_name, corpus_prompt)
        self._batch_size = batch_size
        # Read by the dataset, in this process and, as it is when an epoch begins, in its workers.
        self._replaced: dict[Texts, Texts] = {}
        self.dataset = dataset.with_transform(
            partial(_replace, columns=self._columns, replaced=self._replaced)
        )

    def _number(self, columns: Sequence[Sequence[str]]) -> dict[Texts, tuple[int, int]]:
        """Of every row its query, and the how manieth it is of its pair."""
        numbers = {text: i for i, text in enumerate(self._pairs.queries)}
        seen: dict[Texts, int] = defaultdict(int)
        places: dict[Texts, tuple[int, int]] = {}
        for row in zip(*columns, strict=True):
            pair = row[:2]
            if row not in places:
                places[row] = numbers[row[0]], seen[pair]
                seen[pair] += 1
        return places

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if args.dataloader_num_workers > 0 and args.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers: found True, expected False: workers that persist "
                "would go on with the negatives they began with"
            )

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **others: Any
    ) -> None:
        epoch = round(state.epoch or 0)
        if epoch % self.every == 0 and (epoch > 0 or self.at_start):
            self.mine(getattr(model, "module", model), epoch)

    def mine(self, model: Any, epoch: int = 0) -> int:
        """Mine with a model now; the number of rows that have other negatives than before.

        Parameters
        ----------
        model : SentenceTransformer
            With ``encode_query`` and ``encode_document``.
        epoch : int
            With `seed`, what chance depends on.
        """
        was_training = model.training
        try:
            queries, documents = Encoder(model, self._batch_size).both(
                (self._pairs.queries, *self._prompts[0]), (self._pairs.corpus, *self._prompts[1])
            )
        finally:
            model.train(was_training)
        source = _mining_sources.Rows(
            queries, documents, metric_of(model), None, None, "raise", self._threads
        )
        sample = random.Random(f"{self.seed} {epoch}").sample
        miner = _mining.Miner(
            source,
            self._pairs.positives,
            self._options,
            sample=sample if self._options.sampling == "random" else None,
        )
        with reporter(None, "") as report:
            mined = miner.run(_mining.block_of(None, self._options.window), report)
        changed = 0
        for row, (query, rank) in self._places.items():
            found = mined.indices[query, rank * self._width : (rank + 1) * self._width]
            texts = [self._pairs.corpus[i] for i in found.tolist() if i >= 0]
            texts += [text for text in row[2:] if text not in texts]
            new = tuple([*texts, *row[2:]][: self._width])
            changed += new != self._replaced.get(row, row[2:])
            self._replaced[row] = new
        logger.info("mined again: %d of %d rows have other negatives", changed, len(self._places))
        return changed


def _replace(
    batch: dict[str, list[Any]], columns: Texts, replaced: dict[Texts, Texts]
) -> dict[str, list[Any]]:
    """A batch with the negatives of now; as it is where it lacks a column."""
    if any(name not in batch for name in columns):
        return batch
    rows = list(zip(*(batch[name] for name in columns), strict=True))
    negatives = [replaced.get(row, row[2:]) for row in rows]
    changed = dict(batch)
    for place, name in enumerate(columns[2:]):
        changed[name] = [own[place] for own in negatives]
    return changed
