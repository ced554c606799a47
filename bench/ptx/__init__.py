"""One file per GPU kernel: what bench/ptx_counts.py runs of it."""
