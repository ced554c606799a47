"""The options of the contrastive losses: what each means, and which go together.

A loss compares *pairs*: query i and its document t = targets[i] (i when not given). A direction
names which half of the pair is compared, the *anchor*, and with what:

    direction         anchor       its negatives
    query_to_doc      query i      every document but t; hard negatives
    query_to_query    query i      every query but i
    doc_to_query      document t   every query but i
    doc_to_doc        document t   every document but t; hard negatives of other pairs

The pair itself, the positive, is a candidate in query_to_doc and in doc_to_query and in no other.
Nothing is compared with itself, whatever a guide says.
Documents that belong to no query (a memory bank: more documents than queries) are candidates and
never anchors, so they count in query_to_doc and doc_to_doc.

Names and meanings are those of sentence-transformers 6.2 (MultipleNegativesRankingLoss and
GISTEmbedLoss) where it has the option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

Vector = Sequence[float]
Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
Partition = Literal["joint", "per_direction"]
NegativesScope = Literal["all", "queries", "own"]
Hardness = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]
MarginStrategy = Literal["absolute", "relative"]

# Directions in which the pair itself is a candidate.
WITH_POSITIVE = ("query_to_doc", "doc_to_query")
# Directions whose anchors are queries.
FROM_QUERIES = ("query_to_doc", "query_to_query")


class Options(NamedTuple):
    """Everything but the vectors.

    Parameters
    ----------
    temperature : float
        Divides the similarities.
    bias : float
        Added to every logit. A softmax does not notice it; `siglip_loss` needs it.
    normalize : bool
        Divide every vector by its length first, so that similarities are cosines.
    targets : [N], optional
        The document of each query; several may share one. Only with directions whose anchors are
        queries: a document that several queries share would not say whose anchor it is.
    directions, partition
        One log-sum-exp over the candidates of all directions ("joint"), in which the positive
        counts twice if both query_to_doc and doc_to_query are there; or a loss for each direction
        and their mean ("per_direction"). Every log-sum-exp must contain the positive, or the loss
        could fall below zero.
    negatives_scope
        Whose candidates the hard negatives of a query are: of every anchor but its own document
        ("all", as in MultipleNegativesRankingLoss), of every query and no document ("queries", as
        in GISTEmbedLoss), or of that query alone ("own").
    query_ids, document_ids : [N] and [M], optional, together
        An anchor and a candidate with equal ids are never each other's negatives, in any
        direction. A query's own document always counts; hard negatives have no ids.
    guide : (queries [N][G], documents [M][G]) or the same and negatives [N][K][G], optional
        Vectors of another model. A candidate whose cosine with the anchor, by the guide, exceeds a
        threshold is taken for a false negative and left out (Solatorio, "GISTEmbed", 2024,
        arXiv:2402.16829). The threshold of pair i is the guide's cosine g of the pair, less
        `guide_margin` ("absolute") or |g| · guide_margin ("relative"), in every direction.
    false_negative_margin : float, optional
        The same by the model itself: a candidate is left out if its similarity exceeds the pair's
        similarity less this margin. Similarities as they are, before temperature, bias and
        hardness. No gradient flows through the choice.
    hardness, hardness_strength
        Adds strength · similarity, taken as a constant, to the logits of negatives in query_to_doc:
        of what belongs to other pairs or to none ("in_batch_negatives": Lan et al. 2025,
        arXiv:2503.04812, eq. 5), of the query's own hard negatives ("hard_negatives": Schechter
        Vera et al. 2025, arXiv:2509.20354), or of both ("all_negatives").
    matryoshka_dims, matryoshka_weights
        The loss is the weighted average over the losses of the first `dims[k]` dimensions, each
        normalised by itself if `normalize` (Kusupati et al. 2022, arXiv:2205.13147). Thresholds of
        `false_negative_margin` are each width's own; the guide's vectors keep all their dimensions.
    """

    temperature: float = 0.05
    bias: float = 0.0
    normalize: bool = True
    targets: Sequence[int] | None = None
    directions: Sequence[Direction] = ("query_to_doc",)
    partition: Partition = "joint"
    negatives_scope: NegativesScope = "all"
    query_ids: Sequence[int] | None = None
    document_ids: Sequence[int] | None = None
    guide: Sequence[Any] | None = None
    guide_margin: float = 0.0
    guide_margin_strategy: MarginStrategy = "absolute"
    false_negative_margin: float | None = None
    hardness: Hardness | None = None
    hardness_strength: float = 0.0
    matryoshka_dims: Sequence[int] | None = None
    matryoshka_weights: Sequence[float] | None = None

    def groups(self) -> list[tuple[Direction, ...]]:
        """The directions of each log-sum-exp; the loss of a pair is the mean over them."""
        if self.partition == "joint":
            return [tuple(self.directions)]
        return [(direction,) for direction in self.directions]

    def widths(self, dimensions: int) -> list[tuple[int, float]]:
        """Prefix widths and their shares of the loss."""
        if self.matryoshka_dims is None:
            return [(dimensions, 1.0)]
        weights = self.matryoshka_weights or [1.0] * len(self.matryoshka_dims)
        total = math.fsum(weights)
        return [(d, w / total) for d, w in zip(self.matryoshka_dims, weights, strict=True)]


# What Zhai et al. start from.
SIGLIP_DEFAULTS = Options(temperature=0.1, bias=-10.0)


def check_options(
    options: Options, queries: int, documents: int, dimensions: int, has_negatives: bool
) -> None:
    """Raise ValueError for options that do not go together or with the sizes of the inputs."""
    check_directions(options)
    check_masks(options, queries, documents, has_negatives)
    check_widths(options, dimensions)


def check_directions(options: Options) -> None:
    directions = tuple(options.directions)
    check_choice("partition", options.partition, Partition)
    check_choice("negatives_scope", options.negatives_scope, NegativesScope)
    for direction in directions:
        check_choice("directions", direction, Direction)
    if not directions or len(set(directions)) != len(directions):
        raise ValueError(f"directions: found {directions}, expected at least one, each once")
    for group in options.groups():
        if not set(group) & set(WITH_POSITIVE):
            raise ValueError(
                f"directions: found {directions} with partition {options.partition!r}, expected "
                "the pair itself among the candidates of every log-sum-exp, which it is in "
                f"query_to_doc and doc_to_query and not in {' and '.join(group)}; use "
                "partition='joint' with one of the two"
            )
    from_documents = [d for d in directions if d not in FROM_QUERIES]
    if options.targets is not None and from_documents:
        raise ValueError(
            f"targets: found with directions {directions}, expected None because "
            f"{from_documents[0]} starts from the document of a query; pass documents[targets] "
            "followed by the other documents, and ids to keep what is shared apart"
        )
    if options.hardness is None:
        if options.hardness_strength != 0.0:
            raise ValueError(
                f"hardness_strength: found {options.hardness_strength} without hardness, expected "
                f"hardness to be one of {get_args(Hardness)}"
            )
        return
    check_choice("hardness", options.hardness, Hardness)
    if not 0.0 <= options.hardness_strength < math.inf:
        raise ValueError(
            f"hardness_strength: found {options.hardness_strength}, expected a finite number of at "
            "least 0"
        )
    if "query_to_doc" not in directions:
        raise ValueError(
            f"hardness: found {options.hardness!r} with directions {directions}, expected "
            "query_to_doc among them, whose logits it adds to"
        )


def check_siglip(options: Options) -> None:
    """Raise ValueError for options that the sigmoid loss does not have."""
    if tuple(options.directions) != ("query_to_doc",) or options.hardness is not None:
        raise ValueError(
            f"directions, hardness: found {tuple(options.directions)} and {options.hardness!r}, "
            "expected ('query_to_doc',) and None: the sigmoid loss has no log-sum-exp"
        )


def check_masks(options: Options, queries: int, documents: int, has_negatives: bool) -> None:
    if options.targets is None:
        if documents < queries:
            raise ValueError(
                f"documents: found {documents} rows for {queries} queries, expected at least "
                f"{queries} because document i belongs to query i"
            )
    elif not all(0 <= t < documents for t in options.targets):
        raise ValueError(f"targets: found {options.targets}, expected 0 to {documents - 1}")
    if (options.query_ids is None) != (options.document_ids is None):
        raise ValueError("query_ids, document_ids: found one of them, expected both or neither")
    margin = options.false_negative_margin
    if margin is not None and not math.isfinite(margin):
        raise ValueError(f"false_negative_margin: found {margin}, expected a finite number")
    check_choice("guide_margin_strategy", options.guide_margin_strategy, MarginStrategy)
    if not math.isfinite(options.guide_margin):
        raise ValueError(f"guide_margin: found {options.guide_margin}, expected a finite number")
    if options.guide is None:
        if options.guide_margin != 0.0:
            raise ValueError(
                f"guide_margin: found {options.guide_margin} without guide, expected a guide"
            )
    elif len(options.guide) != 2 + has_negatives:
        expected = "queries, documents" + (", negatives" if has_negatives else "")
        raise ValueError(
            f"guide: found {len(options.guide)} arrays {'with' if has_negatives else 'without'} "
            f"negatives, expected ({expected})"
        )


def check_widths(options: Options, dimensions: int) -> None:
    dims, weights = options.matryoshka_dims, options.matryoshka_weights
    if dims is None:
        if weights is not None:
            raise ValueError("matryoshka_weights: found without matryoshka_dims, expected both")
        return
    if not dims or len(set(dims)) != len(dims) or not all(1 <= d <= dimensions for d in dims):
        raise ValueError(
            f"matryoshka_dims: found {tuple(dims)}, expected different widths from 1 to "
            f"{dimensions}, at least one"
        )
    if weights is None:
        return
    if len(weights) != len(dims):
        raise ValueError(
            f"matryoshka_weights: found {len(weights)} for {len(dims)} widths, expected one each"
        )
    if not all(0.0 <= w < math.inf for w in weights) or not any(weights):
        raise ValueError(
            f"matryoshka_weights: found {tuple(weights)}, expected finite numbers of at least 0, "
            "and one above it"
        )


def check_choice(name: str, value: object, choices: object) -> None:
    expected = get_args(choices)
    if value not in expected:
        raise ValueError(
            f"{name}: found {value!r}, expected one of {', '.join(map(repr, expected))}"
        )
