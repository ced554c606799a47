"""Fused similarity kernels for text embeddings that never store the similarity matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simtile._core import __version__
from simtile._cpu import cpu_info, set_num_threads
from simtile.info_nce import info_nce, info_nce_grad

if TYPE_CHECKING:
    from simtile import nn

__all__ = ["__version__", "cpu_info", "info_nce", "info_nce_grad", "nn", "set_num_threads"]


def __getattr__(name: str) -> Any:
    # The modules need torch, which `import simtile` does not import.
    if name == "nn":
        import importlib

        return importlib.import_module("simtile.nn")
    raise AttributeError(f"module 'simtile' has no attribute {name!r}")
