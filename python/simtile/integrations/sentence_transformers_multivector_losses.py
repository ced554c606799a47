"""sentence-transformers' losses of multi-vector models over simtile's MaxSim.

``from simtile.integrations.sentence_transformers_multivector_losses import
MultiVectorMultipleNegativesRankingLoss`` in place of the import from
``sentence_transformers.multi_vector_encoder.losses``. Each class is a subclass of the original with
the same arguments; token similarities are scored, forward and backward, by
:func:`simtile.maxsim` without being stored. Nothing falls back to the original's scoring: a
`similarity_fct` that is not one of the library's own raises ValueError.

``docs/late-interaction.md`` says where scores differ from the original's in their rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sentence_transformers.multi_vector_encoder import losses as original
from sentence_transformers.multi_vector_encoder import scoring as original_scoring

from simtile.integrations import sentence_transformers_multivector as scoring

__all__ = [
    "CachedMultiVectorMultipleNegativesRankingLoss",
    "MultiVectorDistillKLDivLoss",
    "MultiVectorMarginMSELoss",
    "MultiVectorMultipleNegativesRankingLoss",
]

# Of all documents, of each query's own documents, of pairs.
_ALL = ("colbert_scores", "mean_colbert_scores", "xtr_scores", "XTRScores")
_OWN = ("colbert_kd_scores", "mean_colbert_kd_scores", "xtr_kd_scores", "XTRKDScores")
_PAIRS = ("colbert_scores_pairwise", "mean_colbert_scores_pairwise", "xtr_scores_pairwise")


class MultiVectorMultipleNegativesRankingLoss(original.MultiVectorMultipleNegativesRankingLoss):
    """``MultiVectorMultipleNegativesRankingLoss`` by :func:`simtile.maxsim`.

    Raises
    ------
    ValueError
        `similarity_fct` is none of the library's: colbert_scores, mean_colbert_scores, xtr_scores,
        an XTRScores, or a functools.partial of one of them.
    """

    def __init__(self, *args: Any, similarity_fct: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, similarity_fct=_served(similarity_fct, _ALL), **kwargs)


class CachedMultiVectorMultipleNegativesRankingLoss(
    original.CachedMultiVectorMultipleNegativesRankingLoss
):
    """``CachedMultiVectorMultipleNegativesRankingLoss`` by :func:`simtile.maxsim`.

    Raises
    ------
    ValueError
        As :class:`MultiVectorMultipleNegativesRankingLoss`.
    """

    def __init__(self, *args: Any, similarity_fct: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, similarity_fct=_served(similarity_fct, _ALL), **kwargs)


class MultiVectorDistillKLDivLoss(original.MultiVectorDistillKLDivLoss):
    """``MultiVectorDistillKLDivLoss`` by :func:`simtile.maxsim`.

    Raises
    ------
    ValueError
        `similarity_fct` is none of the library's: colbert_kd_scores, mean_colbert_kd_scores,
        xtr_kd_scores, an XTRKDScores, or a functools.partial of one of them.
    """

    def __init__(self, *args: Any, similarity_fct: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, similarity_fct=_served(similarity_fct, _OWN), **kwargs)


class MultiVectorMarginMSELoss(original.MultiVectorMarginMSELoss):
    """``MultiVectorMarginMSELoss`` by :func:`simtile.maxsim_pairwise`.

    Raises
    ------
    ValueError
        `similarity_fct` is none of the library's: colbert_scores_pairwise,
        mean_colbert_scores_pairwise, xtr_scores_pairwise, or a functools.partial of one of them.
    """

    def __init__(self, *args: Any, similarity_fct: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, similarity_fct=_served(similarity_fct, _PAIRS), **kwargs)


def _served(function: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """simtile's function of the same name; the first of `names` for None."""
    if function is None:
        return getattr(scoring, names[0])  # type: ignore[no-any-return]
    if type(function) is partial:
        return partial(_served(function.func, names), *function.args, **function.keywords)
    for name in names:
        ours, theirs = getattr(scoring, name), getattr(original_scoring, name)
        if function in (ours, theirs):
            return ours  # type: ignore[no-any-return]
        if type(function) is ours:
            return function  # type: ignore[no-any-return]
        if type(function) is theirs:
            return ours(**vars(function))  # type: ignore[no-any-return]
    name = getattr(function, "__name__", repr(function))
    raise ValueError(
        f"similarity_fct: found {name}, expected one of {', '.join(names)} of "
        "sentence_transformers.multi_vector_encoder.scoring"
    )
