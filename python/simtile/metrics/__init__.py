"""Measure a retrieval: rankings, compressed indexes, prefixes, sentence pairs, geometry.

Libraries do the arithmetic that has one: ir-measures that of rankings (it runs TREC's own
trec_eval), scipy that of correlations. They, rich and matplotlib are imported by the function that
needs them: ``pip install 'simtile[metrics]'`` has all.
"""

from __future__ import annotations

from simtile.metrics._geometry import Geometry, geometry
from simtile.metrics._pairs import Correlation, correlation, similarity_correlation
from simtile.metrics._plots import plot_geometry, plot_quality
from simtile.metrics._quality import Quality, overlap, quality_by_bytes, quality_by_width
from simtile.metrics._ranking import evaluate
from simtile.metrics._tables import markdown, rich_table

__all__ = [
    "Correlation",
    "Geometry",
    "Quality",
    "correlation",
    "evaluate",
    "geometry",
    "markdown",
    "overlap",
    "plot_geometry",
    "plot_quality",
    "quality_by_bytes",
    "quality_by_width",
    "rich_table",
    "similarity_correlation",
]
