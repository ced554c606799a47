"""A short check of info_nce on the ISA level that is the argument; test_info_nce.py runs it."""

import json
import os
import sys

os.environ["SIMTILE_ISA"] = sys.argv[1]

from info_nce_cases import DTYPES, Case, check_case, run_kernel

from simtile import _core

count = 0
for dtype in DTYPES:
    for n, dim, negatives, own in (
        (1, 1, None, False),
        (7, 3, 1, True),
        (16, 16, 2, False),
        (33, 111, None, False),
        (111, 64, 1, False),
        (200, 515, 1, True),
    ):
        case = Case(n, n + 2, dim, negatives, dtype, own=own, ids=n % 2 == 0, seed=count)
        check_case(case, run_kernel(case, threads=2))
        count += 1
json.dump({"level": _core.cpu_info()["level"], "cases": count}, sys.stdout)
