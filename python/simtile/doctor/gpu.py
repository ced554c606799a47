"""The GPU's half: the registry of checks and timings on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import simtile
from simtile.doctor import (
    info_nce,
    info_nce_family,
    limits,
    maxsim,
    maxsim_topk,
    pairwise,
    pool,
    siglip,
    topk,
)
from simtile.doctor.cpu import differing_bits
from simtile.doctor.device import TorchDevice
from simtile.doctor.info_nce import Array, Case, Exact, Inputs
from simtile.doctor.report import NotChecked, Peak, Share, TimingResult
from simtile.doctor.results import Check, Comparison, Timing, timing_result

LARGE = (
    Case(4096, 4096, 768, seed=10),
    Case(3001, 5000, 515, 1, targets=True, ids=True, seed=11),
)
REPEATED = Case(2001, 2010, 333, 1, ids=True, seed=12)
REPEATS = 5
TIMED = (Case(64, 64, 384), Case(1024, 1024, 384), Case(4096, 4096, 768))
BATCH = Case(65536, 65536, 768)  # as large as training makes them; in bfloat16 only
SEARCHED = (1_000_000, 100_000)  # documents of a timed search, the second with --quick
TIMED_REPEATS = 21
# bytes that a check beyond 2^31 needs free: its documents twice, for what is computed from them
BEYOND_BYTES = 16 << 30


@dataclass(frozen=True)
class Variant:
    """One way to run info_nce on a GPU."""

    backend: str
    label: str  # in the report, and of limits.GPU
    dtype: str
    precision: str | None
    gradients: bool
    unit: str  # the matrix peak that bounds it
    products: int = 1  # of that unit for one multiply-add


INFO_NCE = (
    Variant("triton", "float32", "float32", "ieee", True, "float32"),
    Variant("triton", "float32 (tf32x3)", "float32", "tf32x3", True, "tf32", 3),
    Variant("triton", "float32 (tf32)", "float32", "tf32", True, "tf32"),
    Variant("triton", "bfloat16", "bfloat16", None, True, "bfloat16"),
    Variant("triton", "float16", "float16", None, True, "float16"),
    Variant("cuda", "bfloat16", "bfloat16", None, False, "bfloat16"),
)


def checks(device: TorchDevice, backends: Sequence[str], *, quick: bool) -> list[Check]:
    """The registry: a later operation adds its lines here."""
    found = []
    for variant in INFO_NCE:
        if variant.backend not in backends:
            continue
        add = partial(Check, "info_nce", variant.backend, variant.label)
        for case in info_nce.SMALL:
            found.append(add(str(case), "values", partial(_small, device, variant, case)))
        for case in LARGE[:1] if quick else LARGE:
            large = partial(_large, device, variant, case)
            found.append(add(str(case), "beside the CPU's float64 kernel", large))
        found.append(add(str(REPEATED), "same bits", partial(_same_bits, device, variant)))
        if variant.dtype == "bfloat16" and not quick:
            what = "beyond 2^31 elements"
            found.append(add("4 x 2^21 x 1024", what, partial(_beyond, device, variant)))
    for kind in topk.KINDS if "cuda" in backends else ():
        add = partial(Check, "topk", "cuda", kind)
        for topk_case in list(topk.SMALL) if quick else [*topk.SMALL, *topk.LARGE]:
            exact = partial(topk.values, device, kind, topk_case)
            found.append(add(str(topk_case), "equal to NumPy's", exact))
        if not quick and kind in topk.BEYOND:
            what = "beyond 2^31 bytes"
            beyond = partial(topk.beyond_31_bits, device, kind)
            found.append(add("1 x (2^24 + 5) x 128 bytes, k = 1", what, beyond))
    for backend in backends:
        for dtype in maxsim.DTYPES:
            add = partial(Check, "maxsim", backend, dtype)
            for maxsim_case in maxsim.cases(backend):
                exact = partial(maxsim.values, device, backend, dtype, maxsim_case)
                found.append(add(str(maxsim_case), "values", exact))
            same = partial(maxsim.same_bits, device, backend, dtype)
            found.append(add(str(maxsim.REPEATED), "same bits", same))
    for dtype in info_nce_family.DTYPES if "triton" in backends else ():
        add = partial(Check, "info_nce_family", "triton", dtype)
        for family_case in info_nce_family.CASES[:2] if quick else info_nce_family.CASES:
            family = partial(info_nce_family.values, device, dtype, family_case)
            found.append(add(str(family_case), "beside the CPU's float64 kernel", family))
        repeated = partial(info_nce_family.same_bits, device, dtype)
        found.append(add(str(info_nce_family.REPEATED), "same bits", repeated))
    for loss in pairwise.LOSSES if "triton" in backends else ():
        for dtype in pairwise.DTYPES:
            add = partial(Check, loss, "triton", dtype)
            for pairs_case in pairwise.CASES[:2] if quick else pairwise.CASES:
                compared = partial(pairwise.values, device, loss, dtype, pairs_case)
                found.append(add(str(pairs_case), "values", compared))
            same = partial(pairwise.same_bits, device, loss, dtype)
            found.append(add(str(pairwise.REPEATED), "same bits", same))
    for dtype in siglip.DTYPES if "triton" in backends else ():
        add = partial(Check, "siglip", "triton", dtype)
        for siglip_case in siglip.CASES[:2] if quick else siglip.CASES:
            compared = partial(siglip.values, device, dtype, siglip_case)
            found.append(add(str(siglip_case), "values", compared))
        same = partial(siglip.same_bits, device, dtype)
        found.append(add(str(siglip.REPEATED), "same bits", same))
    for dtype in pool.DTYPES if "triton" in backends else ():
        add = partial(Check, "pool", "triton", dtype)
        for pool_case in pool.CASES[:3] if quick else pool.CASES:
            compared = partial(pool.values, device, dtype, pool_case)
            found.append(add(str(pool_case), "values", compared))
        found.append(add(str(pool.REPEATED), "same bits", partial(pool.same_bits, device, dtype)))
    for kind in maxsim_topk.KINDS if "cuda" in backends else ():
        add = partial(Check, "maxsim_topk", "cuda", kind)
        for best_case in maxsim_topk.CASES:
            exact = partial(maxsim_topk.values, device, kind, best_case)
            found.append(add(str(best_case), "the best of all scores", exact))
    return [check for check in found if _fits(device, check)]


def left_out(device: TorchDevice, *, quick: bool) -> list[NotChecked]:
    """What the registry has and this run does not."""
    what = "sizes beyond 2^31 elements on the GPU"
    if quick:
        return [{"what": what, "why": "--quick"}]
    if device.free_bytes() < BEYOND_BYTES:
        free = f"{device.free_bytes() / 2**30:.1f} GiB of its memory are free"
        return [{"what": what, "why": f"{free}, {BEYOND_BYTES >> 30} GiB are needed"}]
    return []


def _fits(device: TorchDevice, check: Check) -> bool:
    return not check.what.startswith("beyond 2^31") or device.free_bytes() >= BEYOND_BYTES


# -- info_nce --


def _arguments(device: TorchDevice, case: Case, inputs: Inputs) -> dict[str, Any]:
    integers = {
        "targets": inputs.targets,
        "query_ids": inputs.query_ids,
        "document_ids": inputs.document_ids,
    }
    return {
        **{name: device.upload(x) for name, x in inputs.stored.items()},
        **{name: device.upload(x) for name, x in integers.items() if x is not None},
        "normalize": case.normalize,
        "negatives_scope": "own" if case.own else "all",
    }


def _options(variant: Variant) -> dict[str, Any]:
    options: dict[str, Any] = {"backend": variant.backend}
    if variant.precision is not None:
        options["precision"] = variant.precision
    return options


def run(
    device: TorchDevice, variant: Variant, case: Case, arguments: dict[str, Any], reduction: Any
) -> dict[str, Array]:
    """Losses ("none") and, where the variant has them, gradients of their mean."""
    temperature: float | Tensor = case.temperature
    leaves: dict[str, Tensor] = {}
    if variant.gradients:
        temperature = torch.tensor(case.temperature, dtype=torch.float64, device=device.device)
        leaves = {
            name: arguments[name].detach().requires_grad_()
            for name in ("queries", "documents", "negatives")
            if name in arguments
        }
        leaves["temperature"] = temperature.requires_grad_()
    loss = simtile.info_nce(
        **{**arguments, "temperature": temperature, **leaves},
        reduction=reduction,
        **_options(variant),
    )
    outputs = {"losses": device.download(loss)} if reduction == "none" else {}
    if leaves:
        weights = torch.full_like(loss, 1 / case.queries) if reduction == "none" else None
        torch.autograd.backward(loss, weights)
    for name, leaf in leaves.items():
        if leaf.grad is None:
            raise RuntimeError(f"{name}: no gradient came back")
        outputs[f"{reduction}.grad_{name}"] = device.download(leaf.grad)
    return outputs


def _compared(
    device: TorchDevice, variant: Variant, case: Case, inputs: Inputs, expected: Exact
) -> Iterator[Comparison]:
    arguments = _arguments(device, case, inputs)
    for reduction in ("none", "mean") if variant.gradients else ("none",):
        device.poison()
        outputs = run(device, variant, case, arguments, reduction)
        yield from _stored_as(variant, outputs, expected)


def _stored_as(
    variant: Variant, outputs: dict[str, Array], expected: Exact
) -> Iterator[Comparison]:
    """Compare; gradients of 16-bit inputs come in that type, one rounding more."""
    rounding = limits.ROUNDOFF[variant.dtype] if variant.dtype != "float32" else 0.0
    smallest = 2.0**-25 if variant.dtype == "float16" else 1e-37  # half of float16's least step
    for comparison in info_nce.compare(outputs, expected, limits.GPU[variant.label], smallest):
        wider = comparison.output.rpartition(".")[2] in limits.WITH_COEFFICIENTS
        yield comparison._replace(allowed=comparison.allowed + (rounding if wider else 0.0))


def _small(device: TorchDevice, variant: Variant, case: Case) -> Iterator[Comparison]:
    inputs = info_nce.make_inputs(case, variant.dtype)
    yield from _compared(device, variant, case, inputs, info_nce.exact(case, inputs))


def _large(device: TorchDevice, variant: Variant, case: Case) -> Iterator[Comparison]:
    inputs = info_nce.make_inputs(case, variant.dtype)
    yield from _compared(device, variant, case, inputs, info_nce.exact_by_cpu(case, inputs))


def _same_bits(device: TorchDevice, variant: Variant) -> Iterator[Comparison]:
    arguments = _arguments(device, REPEATED, info_nce.make_inputs(REPEATED, variant.dtype))

    def call() -> dict[str, Array]:
        device.poison()
        outputs = run(device, variant, REPEATED, arguments, "none")
        if variant.gradients:
            outputs.update(run(device, variant, REPEATED, arguments, "mean"))
        return outputs

    yield from differing_bits(call, REPEATS)


def _beyond(device: TorchDevice, variant: Variant, m: int = 2**21 + 3) -> Iterator[Comparison]:
    """Losses where the documents have more than 2^31 elements and the positives are the last."""
    torch.cuda.empty_cache()
    n, dim, temperature = 4, 1024, 0.2
    shape = (m, dim)
    documents = torch.empty(shape, dtype=torch.bfloat16, device=device.device).normal_()
    queries = documents[-n:].clone()
    targets = torch.arange(m - n, m, device=device.device)
    unit_queries = F.normalize(queries.double(), dim=-1)
    chunks = [
        torch.logsumexp(unit_queries @ F.normalize(chunk.double(), dim=-1).T / temperature, 1)
        for chunk in torch.split(documents, 1 << 16)
    ]
    expected = torch.logsumexp(torch.stack(chunks), 0) - 1 / temperature
    with torch.no_grad():
        losses = simtile.info_nce(
            queries,
            documents,
            targets=targets,
            temperature=temperature,
            reduction="none",
            **_options(variant),
        )
    error = np.abs(device.download(losses) - device.download(expected)).max()
    # an address that wraps around gives an error above 1
    yield Comparison("losses", float(error), 1e-3)


# -- time --


def timings(device: TorchDevice, backends: Sequence[str], *, quick: bool) -> list[Timing]:
    """The calls whose time is reported."""
    found = []
    for variant in INFO_NCE:
        if variant.backend in backends:
            cases = list(TIMED[1:2] if quick else TIMED)
            if (variant.backend, variant.dtype) == ("triton", "bfloat16") and not quick:
                cases.append(BATCH)
            found += [_step(device, variant, case) for case in cases]
    if "cuda" in backends:
        for kind in topk.KINDS:
            found += [_search(device, kind, queries, quick) for queries in (1, 100)]
    return found


def _step(device: TorchDevice, variant: Variant, case: Case) -> Timing:
    def prepare() -> Callable[[], None]:
        stored = info_nce.make_inputs(case, variant.dtype).stored
        queries, documents = (
            device.upload(stored[name]).requires_grad_(variant.gradients)
            for name in ("queries", "documents")
        )

        def call() -> None:
            queries.grad = documents.grad = None
            loss = simtile.info_nce(
                queries,
                documents,
                temperature=case.temperature,
                reduction="mean" if variant.gradients else "none",
                **_options(variant),
            )
            if variant.gradients:
                torch.autograd.backward(loss)

        return call

    products = 3 if variant.gradients else 1  # similarities, and one for each gradient
    size = 4 if variant.dtype == "float32" else 2  # bytes of an element
    stored = float(size * (case.queries + case.documents) * case.dimensions)
    return Timing(
        "info_nce",
        variant.backend,
        variant.label,
        str(case),
        "forward + backward" if variant.gradients else "forward",
        prepare,
        2.0 * products * case.queries * case.documents * case.dimensions,
        2 * stored if variant.gradients else stored,
        variant.unit,
        variant.products,
    )


def _search(device: TorchDevice, kind: str, queries: int, quick: bool) -> Timing:
    dim, count = (1024 if kind == "packed" else 768), SEARCHED[quick]

    def prepare() -> Callable[[], object]:
        inputs = topk.timed_inputs(device, kind, queries, count, dim)
        return lambda: topk.run(kind, dim, 10, inputs)

    return Timing(
        "topk",
        "cuda",
        kind,
        f"{queries} x {count} x {dim}, k = 10",
        "search",
        prepare,
        2.0 * queries * count * dim,
        float(count * topk.width_of(kind, dim)),
        "int8" if topk.PLANES[kind] == 2 else "",
        topk.PLANES[kind],
    )


def measure(device: TorchDevice, timing: Timing, peaks: Sequence[Peak]) -> TimingResult:
    """Cold-cache times, and the shares of the peaks that bound the call."""
    samples = device.seconds(timing.prepare(), TIMED_REPEATS)
    median = float(np.median(samples))
    shares: list[Share] = []
    bounds = {"memory read": (timing.traffic, 1)}
    for kind in ("matmul", "mma.sync"):
        bounds[f"{timing.unit} {kind}"] = (timing.operations, timing.products)
    for peak in peaks:
        if peak["rate"] and peak["name"] in bounds:
            work, products = bounds[peak["name"]]
            share = products * work / median / peak["rate"]
            shares.append({"of": peak["name"], "products": products, "share": share})
    return timing_result(timing, samples, shares)
