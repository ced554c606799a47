"""Fused similarity kernels for text embeddings that never store the similarity matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simtile import _inputs
from simtile._core import __version__
from simtile._cpu import cpu_info, set_num_threads
from simtile._statistics import ContrastiveStatistics
from simtile.batches import DistinctIdsBatchSampler, audit_batch
from simtile.cascade_index import CascadeIndex
from simtile.flat_index import FlatIndex
from simtile.info_nce import info_nce, info_nce_grad
from simtile.maxsim import maxsim, maxsim_packed, maxsim_pairwise
from simtile.mining import mine_hard_negatives
from simtile.multi_vector_index import MultiVectorIndex
from simtile.pool import pool
from simtile.quantize import quantize
from simtile.quantized import Quantized
from simtile.residual import ResidualCodec, ResidualTokens
from simtile.search import merge_topk, range_search, topk
from simtile.siglip import siglip_loss
from simtile.triplet import batch_hard_triplet_loss, triplet_loss
from simtile.uniformity import alignment, anisotropy, uniformity
from simtile.xtr import xtr_scores

if TYPE_CHECKING:
    from simtile import distributed as distributed
    from simtile import metrics as metrics
    from simtile import nn as nn

# Without `nn` and `distributed`, which `from simtile import *` would import with torch.
__all__ = [
    "CascadeIndex",
    "ContrastiveStatistics",
    "DistinctIdsBatchSampler",
    "FlatIndex",
    "MultiVectorIndex",
    "Quantized",
    "ResidualCodec",
    "ResidualTokens",
    "__version__",
    "alignment",
    "anisotropy",
    "audit_batch",
    "batch_hard_triplet_loss",
    "cpu_info",
    "info_nce",
    "info_nce_grad",
    "maxsim",
    "maxsim_packed",
    "maxsim_pairwise",
    "merge_topk",
    "metrics",
    "mine_hard_negatives",
    "pool",
    "quantize",
    "range_search",
    "set_num_threads",
    "siglip_loss",
    "topk",
    "triplet_loss",
    "uniformity",
    "xtr_scores",
]


_MODULES = ("nn", "distributed", "metrics")  # imported when they are first asked for


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'simtile' has no attribute {name!r}")
    import importlib

    try:
        return importlib.import_module(f"simtile.{name}")
    except ModuleNotFoundError as error:
        raise _inputs.explain_missing(error, f"simtile.{name} is made for torch") from None
