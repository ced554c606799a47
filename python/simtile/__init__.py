"""Fused similarity kernels for text embeddings that never store the similarity matrix."""

from simtile._core import __version__
from simtile._cpu import cpu_info, set_num_threads

__all__ = ["__version__", "cpu_info", "set_num_threads"]
