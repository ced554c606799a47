"""Imported before NumPy: removes a setting that would slow a contender down."""

from __future__ import annotations

import os

# It forces the kernels of an older CPU on NumPy's BLAS, which reads it when it is loaded.
OPENBLAS_CORETYPE = os.environ.pop("OPENBLAS_CORETYPE", None)
