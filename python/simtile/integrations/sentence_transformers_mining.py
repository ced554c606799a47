"""sentence-transformers' `mine_hard_negatives`, searched by simtile.

``from simtile.integrations.sentence_transformers_mining import mine_hard_negatives`` in place of
the import from ``sentence_transformers.util``: the same arguments, and a dataset with the same
rows. It needs ``datasets``, and a model with the methods of ``SentenceTransformer``.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from simtile import _inputs, _mining, _mining_sources
from simtile._mining_inputs import Options, Ragged
from simtile._progress import reporter
from simtile.integrations import _mined_rows
from simtile.integrations._embeddings import to_numpy

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["mine_hard_negatives"]

Array = npt.NDArray[Any]

logger = logging.getLogger(__name__)

# By a model's similarity function, what its documents are searched by.
METRICS = {"cosine": "cosine", "dot": "dot", "euclidean": "l2"}
FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")
SPARE = 10  # candidates for each negative where limits refuse some


def mine_hard_negatives(
    dataset: Dataset,
    model: Any,
    anchor_column_name: str | None = None,
    positive_column_name: str | None = None,
    corpus: list[str] | None = None,
    cross_encoder: Any = None,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int = 3,
    sampling_strategy: Literal["random", "top"] = "top",
    query_prompt_name: str | None = None,
    query_prompt: str | None = None,
    corpus_prompt_name: str | None = None,
    corpus_prompt: str | None = None,
    include_positives: bool = False,
    output_format: Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"] = "triplet",
    output_scores: bool = False,
    batch_size: int = 32,
    faiss_batch_size: int = 16384,
    use_faiss: bool = False,
    use_multi_process: list[str] | bool = False,
    verbose: bool = True,
    cache_folder: str | None = None,
    as_triplets: bool | None = None,
    margin: float | None = None,
    *,
    threads: int | None = None,
) -> Dataset:
    """Hard negatives for a dataset of (anchor, positive) pairs, as a new dataset.

    The arguments are those of ``sentence_transformers.util.mine_hard_negatives`` 6.2, whose
    documentation describes them, and so are the rows, up to the order of candidates whose scores
    differ by rounding alone. :func:`simtile.mine_hard_negatives` says how they are chosen.

    Parameters
    ----------
    dataset : datasets.Dataset
        Pairs of texts. Equal anchors are one query with several positives.
    model : SentenceTransformer
        Its similarity function must be "cosine", "dot" or "euclidean".
    use_faiss, faiss_batch_size
        Without effect: the search is simtile's, which stores no block of scores and needs no faiss.
    cache_folder : str, optional
        The files are the original's, so either reads what the other wrote.
    sampling_strategy : "top" or "random"
        "random" draws from Python's ``random``, as the original.
    threads : int, optional
        Of the search; see :func:`simtile.set_num_threads` for the default.

    Returns
    -------
    datasets.Dataset
        In the format asked for.

    Raises
    ------
    ValueError, TypeError
        An argument has a wrong type or value; the dataset is empty.
    ModuleNotFoundError
        datasets is not installed.

    Notes
    -----
    All other arguments are as in the original.

    Equal scores are ordered by the text's first occurrence, where the original leaves their order
    open. With ``use_faiss`` the original measures by the dot product whatever the model's
    similarity function.
    """
    from datasets import Dataset as Output

    if as_triplets is not None:
        output_format = "triplet" if as_triplets else "n-tuple"
        logger.warning("as_triplets is deprecated: use output_format=%r", output_format)
    if margin is not None:
        absolute_margin = margin
        logger.warning("margin is deprecated: use absolute_margin or relative_margin")
    if str(output_format) == "n-tuple-scores":
        output_format, output_scores = "n-tuple", True
        logger.warning('"n-tuple-scores" is deprecated: use "n-tuple" with output_scores=True')
    if include_positives and output_format != "n-tuple":
        output_format = "n-tuple"
        logger.warning('include_positives keeps the order of all: output_format is "n-tuple"')
    _inputs.check_choice("output_format", output_format, FORMATS)
    _inputs.check_choice("sampling_strategy", sampling_strategy, ("random", "top"))
    if faiss_batch_size <= 0:
        raise ValueError(f"faiss_batch_size: found {faiss_batch_size}, expected at least 1")
    if len(dataset) == 0:
        raise ValueError("dataset: found no rows, expected pairs of anchor and positive")
    anchor, positive = _columns(dataset, anchor_column_name, positive_column_name)
    pairs = Pairs(list(dataset[anchor]), list(dataset[positive]), corpus)
    limits = {
        "max_score": max_score,
        "min_score": min_score,
        "absolute_margin": absolute_margin,
        "relative_margin": relative_margin,
    }
    rescored = cross_encoder is not None and any(x is not None for x in limits.values())
    options = _options(
        num_negatives,
        range_min,
        range_max,
        limits,
        pairs.most_positives,
        rescored,
        sampling_strategy,
        not include_positives,
    )
    if verbose and range_max is None:
        print(f"range_max is {options.range_max}, chosen from the other arguments.")
    encoder = Encoder(model, batch_size, use_multi_process, cache_folder, verbose)
    queries, documents = encoder.both(
        (pairs.queries, query_prompt_name, query_prompt),
        (pairs.corpus, corpus_prompt_name, corpus_prompt),
    )
    source = _mining_sources.Rows(
        queries, documents, metric_of(model), None, None, "raise", _inputs.check_threads(threads)
    )
    with _predictor(cross_encoder if rescored else None, batch_size, use_multi_process) as predict:
        miner = _mining.Miner(
            source,
            pairs.positives,
            options,
            filter=None if predict is None else pairs.scored_by(predict),
            sample=random.sample if sampling_strategy == "random" else None,
            want_positive_scores=True,
        )
        with reporter(None, "") as report:
            mined = miner.run(_mining.block_of(None, options.window), report)
    rows = _mined_rows.Rows(pairs.queries, pairs.corpus, pairs.positives, mined)
    columns = rows.columns(output_format, anchor, positive, bool(output_scores))
    if verbose:
        _mined_rows.report(rows, limits, len(next(iter(columns.values()))), output_format)
    return Output.from_dict(columns)


class Pairs:
    """The texts of a dataset, each once: queries, the corpus, and which documents are whose.

    Parameters
    ----------
    anchors, positives : lists of N texts
    corpus : list of texts, optional
        Further documents, which come before the positives.
    """

    def __init__(
        self, anchors: list[str], positives: list[str], corpus: Sequence[str] | None
    ) -> None:
        self.queries = list(dict.fromkeys(anchors))
        self.corpus = list(dict.fromkeys([*([] if corpus is None else corpus), *positives]))
        self.most_positives = max(Counter(anchors).values())
        number = {text: i for i, text in enumerate(self.corpus)}
        own: dict[str, dict[int, None]] = {query: {} for query in self.queries}
        for query, text in zip(anchors, positives, strict=True):
            own[query][number[text]] = None
        offsets = np.zeros(len(own) + 1, np.int64)
        np.cumsum([len(x) for x in own.values()], out=offsets[1:])
        self.positives = Ragged(offsets, np.array([x for y in own.values() for x in y], np.int64))

    def scored_by(self, predict: Callable[[list[tuple[str, str]]], Any]) -> _mining.Filter:
        """A filter that gives the scores of a cross-encoder."""

        def score(query: int, documents: Array) -> Array:
            text = self.queries[query]
            given = [(text, self.corpus[i]) for i in documents.tolist()]
            return to_numpy("cross_encoder", predict(given)).astype(np.float32)

        return score


class Encoder:
    """Embeddings of a SentenceTransformer, normalised, float32 [N, D]; from files where cached."""

    def __init__(
        self,
        model: Any,
        batch_size: int,
        use_multi_process: list[str] | bool = False,
        cache_folder: str | None = None,
        verbose: bool = False,
    ) -> None:
        self._model, self._batch_size = model, batch_size
        self._devices, self._verbose = use_multi_process, verbose
        self._folder = None if not cache_folder else Path(cache_folder)

    def both(
        self,
        queries: tuple[list[str], str | None, str | None],
        corpus: tuple[list[str], str | None, str | None],
    ) -> tuple[Array, Array]:
        """Of queries and a corpus: each texts, the name of a prompt, and a prompt."""
        names = ("query", "corpus")
        files = [self._file(name, *x) for name, x in zip(names, (queries, corpus), strict=True)]
        known = [file is not None and file.exists() for file in files]
        with _pool(self._model, None if all(known) else self._devices) as pool:
            found = [
                self._load(file)
                if file is not None and is_known
                else self._encode(name, *given, pool)
                for name, given, file, is_known in zip(
                    names, (queries, corpus), files, known, strict=True
                )
            ]
        for file, is_known, embeddings in zip(files, known, found, strict=True):
            if file is not None and not is_known:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, embeddings)
        return found[0], found[1]

    def _file(
        self, name: str, texts: list[str], prompt_name: str | None, prompt: str | None
    ) -> Path | None:
        if self._folder is None:
            return None
        model = self._model.model_card_data.base_model or ""
        key = repr((model, prompt, prompt_name, texts)).encode()
        digest = hashlib.sha256(key, usedforsecurity=False).hexdigest()
        return self._folder / f"{name}_embeddings_{digest}.npy"

    def _load(self, file: Path) -> Array:
        if self._verbose:
            print(f"[Cache] {file}")
        return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]

    def _encode(
        self, name: str, texts: list[str], prompt_name: str | None, prompt: str | None, pool: Any
    ) -> Array:
        encode = self._model.encode_query if name == "query" else self._model.encode_document
        embeddings = encode(
            texts,
            pool=pool,
            batch_size=self._batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=self._verbose,
            prompt_name=prompt_name,
            prompt=prompt,
        )
        return to_numpy(name, embeddings)


def _columns(dataset: Any, anchor: str | None, positive: str | None) -> tuple[str, str]:
    """The columns of pairs: those named, where there are such, else the first two."""
    names = dataset.column_names
    if not anchor or anchor not in names:
        anchor = names[0]
    if not positive or positive not in names:
        if len(names) < 2:
            raise ValueError(
                f"dataset: found the columns {names}, expected at least two, an anchor's and a "
                "positive's"
            )
        positive = names[1]
    return str(anchor), str(positive)


def _options(
    num_negatives: int,
    range_min: int,
    range_max: int | None,
    limits: dict[str, float | None],
    most_positives: int,
    rescored: bool,
    sampling: str,
    exclude: bool,
) -> Options:
    if num_negatives < 1:
        raise ValueError(f"num_negatives: found {num_negatives}, expected at least 1")
    if range_min < 0:
        raise ValueError(f"range_min: found {range_min}, expected at least 0")
    if range_max is None:
        refusing = any(
            limits[name] is not None for name in ("absolute_margin", "relative_margin", "max_score")
        )
        refusing |= rescored and limits["min_score"] is not None
        range_max = range_min + num_negatives * (SPARE if refusing else 1) + most_positives
    if range_min >= range_max:
        raise ValueError(
            f"range_min: found {range_min}, expected less than range_max, which is {range_max}"
        )
    if num_negatives > range_max - range_min:
        raise ValueError(
            f"num_negatives: found {num_negatives}, expected at most {range_max - range_min}: the "
            f"ranks from range_min={range_min} to range_max={range_max} are no more"
        )
    return Options(
        num_negatives,
        range_min,
        range_max,
        range_max + most_positives,
        **limits,
        sampling=sampling,
        exclude=exclude,
    )


def metric_of(model: Any) -> str:
    name = getattr(model, "similarity_fn_name", None) or "cosine"
    name = str(getattr(name, "value", name))
    if name not in METRICS:
        raise ValueError(
            f"model: found the similarity function {name!r}, expected one of "
            f"{', '.join(map(repr, METRICS))}"
        )
    return METRICS[name]


@contextmanager
def _pool(model: Any, devices: list[str] | bool | None) -> Iterator[Any]:
    """Processes of a model on these devices; None where none are asked for."""
    if not devices:
        yield None
        return
    targets = None if isinstance(devices, bool) else devices
    pool = model.start_multi_process_pool(target_devices=targets)
    try:
        yield pool
    finally:
        model.stop_multi_process_pool(pool)


@contextmanager
def _predictor(
    cross_encoder: Any, batch_size: int, devices: list[str] | bool
) -> Iterator[Callable[[list[tuple[str, str]]], Any] | None]:
    if cross_encoder is None:
        yield None
        return
    with _pool(cross_encoder, devices) as pool:
        yield lambda pairs: cross_encoder.predict(
            pairs, batch_size=batch_size, convert_to_tensor=True, pool=pool
        )
