"""What has been done with each GPU kernel, from what is stored: a table for docs/gpu.md.

Compiled: bench/results/gpu_report.json. PTX: bench/results/ptx. Run on a GPU: the reports that
`simtile doctor --output FILE` wrote on machines with one, kept in bench/results/doctor.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import gpu_measured  # noqa: E402
import tables  # noqa: E402

Json = dict[str, Any]

# The test that runs all kernels of an operation on the CPU, in `make test`.
TESTS = {
    ("info_nce", "triton"): "tests/test_info_nce_backends.py",
    ("info_nce", "cuda"): "tests/test_info_nce_cuda_host.py",
    ("maxsim", "triton"): "tests/test_maxsim_triton.py",
    ("maxsim", "cuda"): "tests/test_maxsim_cuda_host.py",
    ("pairwise", "triton"): "tests/test_pairwise_triton.py",
    ("pool", "triton"): "tests/test_pool_triton.py",
    ("quantize", "triton"): "tests/test_quantize_triton.py",
    ("siglip", "triton"): "tests/test_siglip_triton.py",
    ("topk", "cuda"): "tests/test_topk.py",
}
# A file of bench/results/ptx. A run in it names its kernel; one of top-k, a whole call, names all.
PTX: dict[tuple[str, str], str] = {
    ("info_nce", "triton"): "info_nce_triton",
    ("info_nce", "cuda"): "info_nce_cuda",
    ("maxsim", "triton"): "maxsim_triton",
    ("maxsim", "cuda"): "maxsim_cuda",
    ("pairwise", "triton"): "pairwise_triton",
    ("pool", "triton"): "pool",
    ("quantize", "triton"): "quantize",
    ("siglip", "triton"): "siglip_triton",
    ("topk", "cuda"): "topk",
}
# What `simtile doctor` calls the operation of a kernel, by element type; other types: all of them.
CHECKS: dict[str, dict[str, str]] = {
    "info_nce": {"": "info_nce"},
    "maxsim": {"": "maxsim"},
    "pairwise": {"": "batch_hard_triplet"},
    "pool": {"": "pool"},
    "quantize": {"": "quantize"},
    "siglip": {"": "siglip"},
    "topk": {"": "topk"},
}

# Kernels that only some calls launch: of InfoNCE the rest of the family, of MaxSim a search for the
# best documents or one of residuals, and those of the second loss over all pairs: their test, and
# what `simtile doctor` calls them (residuals it does not check).
FAMILY = r"(own_)?block_scores|pair_scores"
SOME_CALLS = {
    FAMILY: ("tests/test_contrastive_triton.py", "info_nce_family"),
    r"maxsim_(choose|keep|order)|topk_\w+": ("tests/test_maxsim_cuda_topk.py", "maxsim_topk"),
    r"maxsim_centroids": ("tests/test_maxsim_cuda_residual.py", "maxsim_residual"),
    r"exponent_sums|potential_gradients": ("tests/test_pairwise_triton.py", "uniformity"),
}

NOTES = """“no” has not been done, “–” cannot be. A test file is run by `make test`. Within budget
([all figures](gpu-report.md)): no spills, fits the shared memory of a block, and multiplies
with the instructions meant. PTX: executed by an interpreter on a CPU, compared with the reference.
"""

HEADER = [
    "kernel",
    "language",
    "Triton's interpreter",
    "CUDA on the CPU",
    "compiled within budget",
    "PTX executed",
    "run on a GPU",
]


def markdown(results: Path, tests: Path = ROOT) -> str:
    """A row for each kernel of gpu_report.json; "–" is what there cannot be."""
    report: Json = json.loads((results / "gpu_report.json").read_text())
    doctors = gpu_measured.load(results)
    rows = []
    for source, half in report.items():
        for (operation, kernel), compiled in _by_kernel(half["kernels"]).items():
            test, names = TESTS[operation, source], CHECKS[operation]
            for pattern, own in SOME_CALLS.items():
                if operation != "topk" and re.fullmatch(pattern, kernel):
                    test, names = own[0], {"": own[1]}
            tested = f"`{test}`" if (tests / test).is_file() else "no"
            executed_in = PTX[operation, source]
            if (operation, source) == ("info_nce", "triton") and re.fullmatch(FAMILY, kernel):
                executed_in = "info_nce_contrast"
            path = results / "ptx" / f"{executed_in}.json"
            counts = json.loads(path.read_text()) if path.is_file() else {}
            rows.append(
                [
                    f"{operation} `{kernel}`",
                    gpu_report.gpu_page.LANGUAGES[source],
                    tested if source == "triton" else "–",
                    tested if source == "cuda" else "–",
                    within_budget(compiled),
                    executed(kernel, counts),
                    on_hardware(names, source, {row["dtype"] for row in compiled}, doctors),
                ]
            )
    return f"{tables.table(HEADER, rows)}\n{NOTES}"


def within_budget(compiled: Iterable[Json]) -> str:
    """The architectures, and those where a variant spills, does not fit, or the like."""
    good: dict[str, bool] = {}
    for row in compiled:
        good[row["arch"]] = good.get(row["arch"], True) and not gpu_report.faults(row)
    order = [arch for arch in gpu_report.SHARED_LIMIT if arch in good]
    bad = [arch for arch in order if not good[arch]]
    listed = ", ".join(arch for arch in order if good[arch]) or "no"
    return listed + f"; **not {', '.join(bad)}**" * bool(bad)


def executed(kernel: str, counts: Mapping[str, Any]) -> str:
    """Architectures whose PTX gave the oracle's result in every run of a complete file."""
    if not counts or counts["failures"] or not counts["complete"]:
        return "no"
    named = rf"\b{kernel}(I|\b)"  # and templates, whose arguments follow in a mangled name
    arches = {run["arch"] for run in counts["runs"] if re.search(named, run["kernel"])}
    return ", ".join(f"sm_{arch}" for arch in sorted(arches)) or "no"


def on_hardware(
    names: Mapping[str, str], source: str, dtypes: Iterable[str], doctors: Sequence[Json]
) -> str:
    """Devices of stored doctor reports in which every check of this kernel's operation passed.

    `names`: what the doctor calls it, by element type; one of CHECKS.
    """
    wanted = {names[dtype] for dtype in dtypes if dtype in names} or set(names.values())
    found = []
    for doctor in doctors:
        checks = [
            check
            for check in doctor["gpu"]["checks"]
            if check["kernel"] in wanted and check["backend"] == source
        ]
        if {check["kernel"] for check in checks} != wanted:
            continue
        passed = all(check["status"] == "passed" for check in checks)
        device = gpu_measured.device(doctor)
        found.append(device if passed else f"**failed on {device}**")
    return ", ".join(found) or "no"


def _by_kernel(rows: Iterable[Json]) -> dict[tuple[str, str], list[Json]]:
    groups: dict[tuple[str, str], list[Json]] = {}
    for row in rows:
        groups.setdefault((row["operation"], row["kernel"]), []).append(row)
    return groups
