"""What `info_nce` compares, beyond queries with documents, in the form that its kernels take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from simtile import _inputs

# kernels/info_nce/args.hpp has the same numbers.
DIRECTIONS = {"query_to_doc": 1, "query_to_query": 2, "doc_to_query": 4, "doc_to_doc": 8}
SCOPES = {"all": 0, "queries": 1, "own": 2}
_WITH_POSITIVE = ("query_to_doc", "doc_to_query")
_FROM_DOCUMENTS = ("doc_to_query", "doc_to_doc")
_HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")


class Contrast(NamedTuple):
    """The options, checked, all of them plain numbers."""

    directions: int = DIRECTIONS["query_to_doc"]
    per_direction: bool = False
    scope: int = SCOPES["all"]
    harden_others: float = 0.0
    harden_own: float = 0.0
    margin: float | None = None
    guide_margin: float = 0.0
    guide_relative: bool = False
    widths: tuple[int, ...] = ()  # of prefixes, ascending, and their shares of the loss
    shares: tuple[float, ...] = ()

    def numbers(self) -> list[float]:
        """As an operator's schema has room for them; no margin is NaN."""
        *single, widths, shares = self
        return [math.nan if x is None else float(x) for x in (*single, *widths, *shares)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> Contrast:
        directions, per_direction, scope, others, own, margin, guide_margin, relative, *rest = (
            numbers
        )
        widths, shares = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        return cls(
            int(directions),
            bool(per_direction),
            int(scope),
            others,
            own,
            None if math.isnan(margin) else margin,
            guide_margin,
            bool(relative),
            tuple(map(int, widths)),
            tuple(shares),
        )

    @property
    def own_negatives(self) -> bool:
        return self.scope == SCOPES["own"]

    def is_plain(self) -> bool:
        """Whether queries are compared with documents and negatives, and nothing else is asked."""
        return self._replace(scope=0, widths=(), shares=()) == Contrast() and (
            self.scope != SCOPES["queries"]
        )

    def passes(self, has_negatives: bool, has_guide: bool) -> list[tuple[int, float, Contrast]]:
        """The runs of the CPU kernel that the widths take: dimensions, share of the loss, options.

        All widths are one run, unless the options need products of their own for each.
        """
        apart = (
            has_guide
            or (has_negatives and self.own_negatives)
            or self.margin is not None
            or self.harden_others > 0.0
            or self.harden_own > 0.0
        )
        if len(self.widths) > 1 and not apart:
            return [(self.widths[-1], 1.0, self)]
        return self.apart()

    def apart(self) -> list[tuple[int, float, Contrast]]:
        """A run for each width."""
        one = self._replace(widths=(), shares=())
        return [(*prefix, one) for prefix in zip(self.widths, self.shares, strict=True)]


def check_contrast(
    directions: Sequence[str],
    partition: str,
    negatives_scope: str,
    has_targets: bool,
    hardness: str | None,
    hardness_strength: float,
    false_negative_margin: float | None,
    guide: object,
    guide_margin: float,
    guide_margin_strategy: str,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[float] | None = None,
) -> Contrast:
    """The options of `info_nce` in one; ValueError or TypeError for what does not go together."""
    _inputs.check_choice("negatives_scope", negatives_scope, tuple(SCOPES))
    chosen = _check_directions(directions, partition, has_targets)
    strength = _check_hardness(hardness, hardness_strength, chosen)
    margin = None
    if false_negative_margin is not None:
        margin = _finite("false_negative_margin", false_negative_margin)
    _inputs.check_choice("guide_margin_strategy", guide_margin_strategy, ("absolute", "relative"))
    by_guide = _finite("guide_margin", guide_margin)
    if guide is None and by_guide != 0.0:
        raise ValueError(f"guide_margin: found {by_guide} without guide, expected a guide")
    widths, shares = _check_matryoshka(matryoshka_dims, matryoshka_weights)
    # In query_to_doc alone hard negatives are met by queries only.
    if negatives_scope == "queries" and chosen == ("query_to_doc",):
        negatives_scope = "all"
    return Contrast(
        directions=sum(DIRECTIONS[direction] for direction in chosen),
        per_direction=partition == "per_direction" and len(chosen) > 1,
        scope=SCOPES[negatives_scope],
        harden_others=strength if hardness in ("in_batch_negatives", "all_negatives") else 0.0,
        harden_own=strength if hardness in ("hard_negatives", "all_negatives") else 0.0,
        margin=margin,
        guide_margin=by_guide,
        guide_relative=guide_margin_strategy == "relative" and guide is not None,
        widths=widths,
        shares=shares,
    )


def _check_directions(
    directions: Sequence[str], partition: str, has_targets: bool
) -> tuple[str, ...]:
    _inputs.check_choice("partition", partition, ("joint", "per_direction"))
    if isinstance(directions, str):
        raise ValueError(
            f"directions: found the string {directions!r}, expected a tuple of some of "
            f"{', '.join(map(repr, DIRECTIONS))}"
        )
    chosen = _tuple("directions", directions, "a tuple of names")
    for direction in chosen:
        _inputs.check_choice("directions", direction, tuple(DIRECTIONS))
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"directions: found {chosen}, expected at least one, each once")
    for group in [chosen] if partition == "joint" else [(d,) for d in chosen]:
        if not set(group) & set(_WITH_POSITIVE):
            raise ValueError(
                f"directions: found {chosen} with partition {partition!r}, expected the pair "
                "itself among the candidates of every log-sum-exp, which it is in query_to_doc and "
                f"doc_to_query and not in {' and '.join(group)}; use partition='joint' with one of "
                "the two"
            )
    if has_targets and set(chosen) & set(_FROM_DOCUMENTS):
        raise ValueError(
            f"targets: found with directions {chosen}, expected None because "
            f"{next(d for d in chosen if d in _FROM_DOCUMENTS)} starts from the document of a "
            "query; pass documents[targets] followed by the other documents, and ids to keep what "
            "is shared apart"
        )
    return chosen


def _check_hardness(hardness: str | None, strength: float, directions: tuple[str, ...]) -> float:
    value = _finite("hardness_strength", strength)
    if hardness is None:
        if value != 0.0:
            raise ValueError(
                f"hardness_strength: found {value} without hardness, expected hardness to be one "
                f"of {', '.join(map(repr, _HARDNESS))}"
            )
        return 0.0
    _inputs.check_choice("hardness", hardness, _HARDNESS)
    if value < 0.0:
        raise ValueError(f"hardness_strength: found {value}, expected a number of at least 0")
    if "query_to_doc" not in directions:
        raise ValueError(
            f"hardness: found {hardness!r} with directions {directions}, expected query_to_doc "
            "among them, whose logits it adds to"
        )
    return value


def _check_matryoshka(
    dims: Sequence[int] | None, weights: Sequence[float] | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The widths that count, ascending, and their shares of the loss, whose sum is 1."""
    if dims is None:
        if weights is not None:
            raise ValueError(
                f"matryoshka_weights: found {weights!r} without matryoshka_dims, expected both"
            )
        return (), ()
    given = _tuple("matryoshka_dims", dims, "a sequence of integers")
    widths = tuple(_inputs.to_int("matryoshka_dims", dim, "integers") for dim in given)
    if not widths or len(set(widths)) != len(widths) or min(widths) < 1:
        raise ValueError(
            f"matryoshka_dims: found {widths}, expected different widths of at least 1, one or more"
        )
    if weights is None:
        numbers = (1.0,) * len(widths)
    else:
        shares = _tuple("matryoshka_weights", weights, "a sequence of numbers")
        numbers = tuple(_finite("matryoshka_weights", weight) for weight in shares)
    if len(numbers) != len(widths):
        raise ValueError(
            f"matryoshka_weights: found {len(numbers)} for {len(widths)} widths, expected one each"
        )
    total = math.fsum(numbers)
    if min(numbers) < 0.0 or not 0.0 < total < math.inf:
        raise ValueError(
            f"matryoshka_weights: found {numbers}, expected finite numbers of at least 0, and one "
            "above it"
        )
    chosen = sorted((d, w / total) for d, w in zip(widths, numbers, strict=True) if w > 0.0)
    return tuple(d for d, _ in chosen), tuple(share for _, share in chosen)


def check_widths(contrast: Contrast, dimensions: int) -> None:
    """ValueError for a prefix that is longer than the vectors."""
    if contrast.widths and contrast.widths[-1] > dimensions:
        raise ValueError(
            f"matryoshka_dims: found {contrast.widths[-1]} for vectors of {dimensions} dimensions, "
            f"expected widths of at most {dimensions}"
        )


def _tuple(name: str, values: Any, expected: str) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name}: found {values!r}, expected {expected}") from None


def _finite(name: str, value: object) -> float:
    # A compiler's symbolic one stays what it is.
    number = value if isinstance(value, float) else _inputs.to_float(name, value)
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name}: found {number}, expected a finite number")
    return number


def split_guide(guide: object, has_negatives: bool) -> tuple[Any, ...]:
    """The guide's vectors of queries, documents and negatives if there are any; () without one."""
    if guide is None:
        return ()
    expected = "(queries, documents" + (", negatives)" if has_negatives else ")")
    if not isinstance(guide, (tuple, list)):
        raise TypeError(f"guide: found {type(guide).__name__}, expected a tuple {expected}")
    if len(guide) != 2 + has_negatives:
        raise ValueError(
            f"guide: found {len(guide)} of them {'with' if has_negatives else 'without'} "
            f"negatives, expected {expected}"
        )
    return tuple(guide)


def check_guide_shapes(
    guide: Sequence[Any], queries: Sequence[int], documents: Sequence[int], negatives: Any
) -> None:
    """Check [N, G], [M, G] and [N, K, G]."""
    if not guide:
        return
    first = tuple(guide[0].shape)
    width = first[-1] if len(first) == 2 else 0
    wanted: list[tuple[int, ...]] = [(queries[0], width), (documents[0], width)]
    if negatives is not None:
        wanted.append((negatives[0], negatives[1], width))
    names = ("queries", "documents", "negatives")
    for name, array, shape in zip(names, guide, wanted, strict=False):
        if width == 0 or tuple(array.shape) != shape:
            axes = ", ".join(map(str, (*shape[:-1], width or "G")))
            raise ValueError(f"guide: found {name} of shape {list(array.shape)}, expected [{axes}]")
