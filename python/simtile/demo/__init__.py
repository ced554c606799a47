"""The first run on real text: ``simtile demo`` and ``simtile demo --train``."""
