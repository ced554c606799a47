"""The GPU's half of `simtile doctor` on a device that is none: the CPU's memory and results.

What no GPU has run is tested here as far as that goes: which checks there are, that a right result
passes each of them and a wrong one fails, how times and shares follow, and what breaks.
"""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import test_doctor

import simtile
from simtile import _pairwise, doctor
from simtile.doctor import found, info_nce
from simtile.reference import topk_numpy

torch = pytest.importorskip("torch")

from simtile.doctor import device as devices  # noqa: E402 - it needs torch
from simtile.doctor import (  # noqa: E402
    gpu,
    info_nce_family,
    maxsim,
    maxsim_topk,
    pairwise,
    pool,
    siglip,
    topk,
)

TINY = (info_nce.Case(5, 6, 7, 1, ids=True), info_nce.Case(4, 4, 3, normalize=False))
LARGE = info_nce.Case(9, 11, 8)
BEST_CASE = maxsim_topk.Case(2, 3, 40, 9, 8, 5, candidates=60, allow=True)
FAMILY = (
    info_nce_family.Case("guide", 9, 7, {"directions": info_nce_family.EVERY}, True, 1),
    info_nce_family.Case("margin", 5, 6, {"false_negative_margin": 0.1}),
)
SECOND = 1e-3  # what every call takes on the device that is none


class Device(devices.TorchDevice):
    """The CPU, which says that it is an H100; a call takes a millisecond."""

    facts = types.SimpleNamespace(
        name="Fake",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=80 << 30,
        L2_cache_size=1 << 10,
        clock_rate=1_000_000,
        gcnArchName="gfx942",
    )
    cuda = True
    free = 64 << 30

    def __init__(self):
        super().__init__("cpu")
        self.log = []

    @property
    def properties(self):
        return self.facts

    @property
    def is_cuda(self):
        return self.cuda

    def free_bytes(self):
        return self.free

    def _elapsed(self, call):
        self.log.append("write" if getattr(call, "__name__", "") == "zero_" else "call")
        call()
        return SECOND


def info_nce_by_cpu(queries, documents, *, backend, precision=None, **options):
    """What the GPU's backends should give."""
    assert backend in ("triton", "cuda")
    assert (precision is not None) == (backend == "triton" and queries.dtype == torch.float32)
    assert backend == "triton" or not queries.requires_grad
    return simtile.info_nce(queries, documents, backend="cpu", **options)


def maxsim_by_cpu(*inputs, backend, **options):
    assert backend in ("triton", "cuda")
    assert backend == "triton" or not inputs[0].requires_grad
    return simtile.maxsim(*inputs, backend="cpu", **options)


def best_by_cpu(*inputs, backend, **options):
    """`simtile.maxsim_packed`, of tensors of the CPU."""
    assert backend == "cuda"
    return simtile.maxsim_packed(*inputs, **options)


PAIRS = pairwise.Case(40, 6, 5, "euclidean")
SIGMOID = siglip.Case(30, 40, 6)
POOLED = (pool.Case(3, 5, 7, 6), pool.Case(3, 5, 7, 6, "max"))


def chosen_by_cpu(device, case, x, labels):
    found = _pairwise.hardest_pairs(
        x.double().numpy(), "float64", labels.numpy(), case.metric, False, 1
    )
    return found.positive, found.negative


def by_cpu(function):
    """`function` on the CPU whatever backend is named."""
    return lambda *arguments, backend, **options: function(*arguments, **options)


PAIRWISE = types.SimpleNamespace(
    uniformity=by_cpu(simtile.uniformity),
    batch_hard_triplet_loss=by_cpu(simtile.batch_hard_triplet_loss),
)
BEST = types.SimpleNamespace(maxsim_packed=best_by_cpu, quantize=simtile.quantize)


def as_numpy(x):
    if not isinstance(x, torch.Tensor):
        return x
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def topk_by_numpy(*arguments):
    """`simtile.ops.topk.search`, of tensors of the CPU."""
    *operands, k, allow, rank, candidates = map(as_numpy, arguments)
    dtype = np.int32 if operands[1] == "hamming" else np.float32
    shape = (len(operands[2]), k)
    scores, ids = np.empty(shape, dtype), np.empty(shape, np.int64)
    topk_numpy.topk(*operands, k, allow, rank, candidates, 1, scores, ids)
    return torch.from_numpy(scores), torch.from_numpy(ids)


@pytest.fixture
def fake(monkeypatch):
    """A device, kernels that are right, and sizes that take no time."""
    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=info_nce_by_cpu))
    monkeypatch.setattr(topk, "topk", types.SimpleNamespace(search=topk_by_numpy))
    monkeypatch.setattr(maxsim, "simtile", types.SimpleNamespace(maxsim=maxsim_by_cpu))
    monkeypatch.setattr(maxsim, "SMALL", (maxsim.Case(2, 3, 4, 5, 6, normalize=True),))
    monkeypatch.setattr(maxsim, "SMOOTH", maxsim.Case(2, 3, 4, 5, 6, temperature=0.5))
    monkeypatch.setattr(maxsim, "REPEATED", maxsim.Case(2, 3, 4, 5, 6))
    monkeypatch.setattr(maxsim_topk, "simtile", BEST)
    monkeypatch.setattr(maxsim_topk, "CASES", (BEST_CASE,))
    family = types.SimpleNamespace(info_nce=by_cpu(simtile.info_nce))
    monkeypatch.setattr(info_nce_family, "simtile", family)
    monkeypatch.setattr(info_nce_family, "CASES", FAMILY)
    monkeypatch.setattr(info_nce_family, "REPEATED", FAMILY[0])
    monkeypatch.setattr(pairwise, "simtile", PAIRWISE)
    monkeypatch.setattr(pairwise, "chosen", chosen_by_cpu)
    monkeypatch.setattr(pairwise, "CASES", (PAIRS,))
    monkeypatch.setattr(pairwise, "REPEATED", PAIRS)
    by_name = types.SimpleNamespace(siglip_loss=by_cpu(simtile.siglip_loss))
    monkeypatch.setattr(siglip, "simtile", by_name)
    monkeypatch.setattr(siglip, "CASES", (SIGMOID,))
    monkeypatch.setattr(siglip, "REPEATED", SIGMOID)
    monkeypatch.setattr(pool, "simtile", types.SimpleNamespace(pool=by_cpu(simtile.pool)))
    monkeypatch.setattr(pool, "CASES", POOLED)
    monkeypatch.setattr(pool, "REPEATED", POOLED[0])
    monkeypatch.setattr(info_nce, "SMALL", TINY)
    monkeypatch.setattr(gpu, "LARGE", (LARGE,))
    monkeypatch.setattr(gpu, "REPEATED", LARGE)
    monkeypatch.setattr(gpu, "TIMED", (LARGE, LARGE))
    monkeypatch.setattr(gpu, "BATCH", LARGE)
    monkeypatch.setattr(gpu, "TIMED_REPEATS", 3)
    monkeypatch.setattr(topk, "SMALL", (topk.Case(9, 33, 31, 5, few=True),))
    monkeypatch.setattr(topk, "LARGE", (topk.Case(2, 40, 24, 50, allow=True),))
    monkeypatch.setattr(devices, "LEAST_FLUSH", 1 << 10)
    monkeypatch.setattr(devices, "COPIED", 1 << 12)
    monkeypatch.setattr(devices, "MATRIX", 32)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    beyond, beyond_31_bits = gpu._beyond, topk.beyond_31_bits
    monkeypatch.setattr(gpu, "_beyond", lambda device, variant: beyond(device, variant, 67))
    monkeypatch.setattr(
        topk, "beyond_31_bits", lambda device, kind: beyond_31_bits(device, kind, 99)
    )
    monkeypatch.setattr(Device, "poison", lambda self: None)
    return Device()


@pytest.fixture
def report_of(fake, monkeypatch, tmp_path, capsys):
    """Run the command with the device in place; its CPU half is left out."""
    monkeypatch.setattr(doctor, "_cpu", lambda *arguments: None)
    monkeypatch.setattr(devices, "TorchDevice", lambda: fake)
    monkeypatch.setattr(found, "facts", list)
    for why in ("why_no_gpu", "why_no_triton", "why_no_cuda"):
        monkeypatch.setattr(found, why, lambda: "")
    monkeypatch.setattr(gpu, "SEARCHED", (100, 200))
    return lambda *arguments: test_doctor.run_cli(tmp_path, capsys, *arguments)


def names(checks):
    return {(check["kernel"], check["backend"], check["dtype"]) for check in checks}


EVERY_FAMILY = {("info_nce_family", "triton", dtype) for dtype in info_nce_family.DTYPES}
EVERY = {
    ("info_nce", "triton", "float32"),
    ("info_nce", "triton", "float32 (tf32x3)"),
    ("info_nce", "triton", "float32 (tf32)"),
    ("info_nce", "triton", "bfloat16"),
    ("info_nce", "triton", "float16"),
    ("info_nce", "cuda", "bfloat16"),
    *(("topk", "cuda", kind) for kind in topk.KINDS),
}


MAXSIM = {
    *(("maxsim", backend, dtype) for backend in ("triton", "cuda") for dtype in maxsim.DTYPES),
    *(("maxsim_topk", "cuda", kind) for kind in maxsim_topk.KINDS),
}
ALL_PAIRS = {
    *((loss, "triton", dtype) for loss in pairwise.LOSSES for dtype in pairwise.DTYPES),
    *(("siglip", "triton", dtype) for dtype in siglip.DTYPES),
    *(("pool", "triton", dtype) for dtype in pool.DTYPES),
}


def test_a_whole_run(report_of):
    status, shown, stored = report_of()
    assert stored["failures"] == []
    assert status == 0
    half = stored["gpu"]
    assert half["device"] == "Fake, sm_90, 132 multiprocessors, 80 GiB, L2 0 MiB"
    assert names(half["checks"]) == EVERY | EVERY_FAMILY | MAXSIM | ALL_PAIRS
    assert names(half["timings"]) == EVERY
    whats = {(check["kernel"], check["what"]) for check in half["checks"]}
    assert whats == {
        ("info_nce", "values"),
        ("info_nce", "beside the CPU's float64 kernel"),
        ("info_nce", "same bits"),
        ("info_nce", "beyond 2^31 elements"),
        ("info_nce_family", "beside the CPU's float64 kernel"),
        ("info_nce_family", "same bits"),
        ("topk", "equal to NumPy's"),
        ("topk", "beyond 2^31 bytes"),
        ("maxsim", "values"),
        ("maxsim", "same bits"),
        ("maxsim_topk", "the best of all scores"),
        *((loss, what) for loss in pairwise.LOSSES for what in ("values", "same bits")),
        *((kernel, what) for kernel in ("siglip", "pool") for what in ("values", "same bits")),
    }
    for check in half["checks"]:
        outputs = " ".join(c["output"] for c in check["comparisons"])
        if check["kernel"] in (*pairwise.LOSSES, "siglip"):
            assert "loss" in outputs, check
            assert "grad" in outputs, check
        elif check["kernel"] == "pool":
            assert outputs.startswith("vectors"), check
            assert "grad_tokens" in outputs, check
        elif check["kernel"] == "info_nce_family":
            assert "losses" in outputs, check
            assert "grad_queries" in outputs, check
            assert "grad_documents" in outputs, check
        elif check["kernel"] == "maxsim_topk":
            assert outputs == "scores, differing ids, differing", check
        elif check["kernel"] == "maxsim":
            assert "token_scores" in outputs, check
            assert ("grad_documents" in outputs) == (check["backend"] == "triton"), check
        elif check["backend"] == "triton" and not check["what"].startswith("beyond"):
            assert "losses" in outputs, check
            for reduction in ("none", "mean"):
                for name in ("queries", "documents", "temperature"):
                    assert f"{reduction}.grad_{name}" in outputs, check
        elif check["kernel"] == "info_nce":
            assert "grad" not in outputs, check
    assert stored["not_checked"] == []
    assert "info_nce (triton)" in shown
    assert "topk (cuda)" in shown


def test_quick_leaves_out_the_largest_and_says_so(report_of):
    status, shown, stored = report_of("--quick")
    assert status == 0
    assert names(stored["gpu"]["checks"]) == EVERY | EVERY_FAMILY | MAXSIM | ALL_PAIRS
    assert not any("beyond" in check["what"] for check in stored["gpu"]["checks"])
    assert "sizes beyond 2^31 elements on the GPU: --quick" in shown


def test_a_device_with_little_memory(report_of, fake):
    fake.free = 8 << 30
    status, shown, stored = report_of()
    assert status == 0
    assert not any("beyond" in check["what"] for check in stored["gpu"]["checks"])
    assert "8.0 GiB of its memory are free, 16 GiB are needed" in shown


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_one_wrong_output_of_maxsim_fails(backend, place, fake, monkeypatch):
    def wrong(*inputs, **options):
        found = list(maxsim_by_cpu(*inputs, **options))
        changed = found[place].detach().clone().view(-1)
        changed[0] = -1 - changed[0]
        found[place] = found[place] + (changed.view(found[place].shape) - found[place].detach())
        return tuple(found)

    case = maxsim.Case(2, 3, 4, 5, 6)
    assert all(c.ok for c in maxsim.values(fake, backend, "bfloat16", case))
    monkeypatch.setattr(maxsim, "simtile", types.SimpleNamespace(maxsim=wrong))
    assert sum(not c.ok for c in maxsim.values(fake, backend, "bfloat16", case)) == 1


@pytest.mark.parametrize("kind", maxsim_topk.KINDS)
@pytest.mark.parametrize("place", [0, 1])
def test_one_wrong_document_fails(place, kind, fake, monkeypatch):
    def wrong(*inputs, **options):
        found = best_by_cpu(*inputs, **options)
        if "k" in options:
            found = [x.clone() for x in found]
            found[place][1, 2] += 1
        return found

    assert all(c.ok for c in maxsim_topk.values(fake, kind, BEST_CASE))
    monkeypatch.setattr(
        maxsim_topk, "simtile", types.SimpleNamespace(**{**vars(BEST), "maxsim_packed": wrong})
    )
    differing = [c.error for c in maxsim_topk.values(fake, kind, BEST_CASE)]
    assert differing == [place == 0, place == 1]


@pytest.mark.parametrize("dtype", pairwise.DTYPES)
@pytest.mark.parametrize("loss", pairwise.LOSSES)
@pytest.mark.parametrize("part", ["loss", "gradient", "positive", "negative"])
def test_one_wrong_part_of_a_loss_over_all_pairs_fails(part, loss, dtype, fake, monkeypatch):
    def wrong_loss(name, case, x, labels, backend):
        value, grad = right_loss(name, case, x, labels, backend)
        if backend == "triton" and part == "loss":
            value = value * 1.001
        elif backend == "triton" and part == "gradient":
            grad[np.unravel_index(np.abs(grad).argmax(), grad.shape)] *= 1.05
        return value, grad

    def wrong_choice(device, case, x, labels):
        pairs = chosen_by_cpu(device, case, x, labels)
        if part in ("positive", "negative"):
            side = pairs[part == "negative"]
            same = labels == labels[0]
            allowed = same if part == "positive" else ~same
            allowed[0] = False
            others = np.flatnonzero(allowed.numpy())
            side[0] = others[others != side[0]][0]
        return pairs

    right_loss = pairwise.loss_of
    assert all(c.ok for c in pairwise.values(fake, loss, dtype, PAIRS))
    monkeypatch.setattr(pairwise, "loss_of", wrong_loss)
    monkeypatch.setattr(pairwise, "chosen", wrong_choice)
    failed = {c.output for c in pairwise.values(fake, loss, dtype, PAIRS) if not c.ok}
    if loss == "uniformity" and part in ("positive", "negative"):
        assert not failed
    else:
        assert part in failed


@pytest.mark.parametrize("dtype", siglip.DTYPES)
@pytest.mark.parametrize("name", siglip.OUTPUTS)
def test_one_wrong_part_of_a_sigmoid_loss_fails(name, dtype, fake, monkeypatch):
    def wrong(case, inputs, backend):
        found = right(case, inputs, backend)
        if backend == "triton":
            largest = np.unravel_index(np.abs(found[name]).argmax(), found[name].shape)
            found[name][largest] *= 1.1
        return found

    right = siglip.outputs_of
    assert all(c.ok for c in siglip.values(fake, dtype, SIGMOID))
    monkeypatch.setattr(siglip, "outputs_of", wrong)
    assert [c.output for c in siglip.values(fake, dtype, SIGMOID) if not c.ok] == [name]


@pytest.mark.parametrize("dtype", pool.DTYPES)
@pytest.mark.parametrize("name", pool.OUTPUTS)
def test_one_wrong_number_of_pooling_fails(name, dtype, fake, monkeypatch):
    def wrong(case, inputs, backend):
        found = right(case, inputs, backend)
        if backend == "triton":
            largest = np.unravel_index(np.abs(found[name]).argmax(), found[name].shape)
            found[name][largest] *= 1.1
        return found

    right = pool.outputs_of
    assert all(c.ok for case in POOLED for c in pool.values(fake, dtype, case))
    monkeypatch.setattr(pool, "outputs_of", wrong)
    assert [c.output for c in pool.values(fake, dtype, POOLED[0]) if not c.ok] == [name]


@pytest.mark.parametrize("part", ["losses", "grad_queries", "grad_documents", "grad_negatives"])
@pytest.mark.parametrize("dtype", info_nce_family.DTYPES)
def test_one_wrong_number_of_the_family_fails(part, dtype, fake, monkeypatch):
    def wrong(case, inputs, guide, backend):
        found = right(case, inputs, guide, backend)
        if backend == "triton":
            x = found[part]
            x[np.unravel_index(np.abs(x).argmax(), x.shape)] *= 1.2
        return found

    right = info_nce_family.run
    case = info_nce_family.CASES[0]
    assert all(c.ok for c in info_nce_family.values(fake, dtype, case))
    monkeypatch.setattr(info_nce_family, "run", wrong)
    failed = [c.output for c in info_nce_family.values(fake, dtype, case) if not c.ok]
    assert failed == [part]


@pytest.mark.parametrize("variant", gpu.INFO_NCE, ids=lambda x: f"{x.backend} {x.label}")
def test_one_wrong_loss_fails(variant, report_of, monkeypatch):
    def wrong(queries, documents, **options):
        losses = info_nce_by_cpu(queries, documents, **options)
        chosen = (options["backend"], options.get("precision"), str(queries.dtype)[6:])
        if chosen == (variant.backend, variant.precision, variant.dtype) and losses.dim():
            losses = losses + torch.tensor([0.5] + [0.0] * (len(losses) - 1))
        return losses

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=wrong))
    status, shown, stored = report_of("--quick")
    assert status == 1
    failed = [check for check in stored["gpu"]["checks"] if check["status"] == "failed"]
    assert names(failed) == {("info_nce", variant.backend, variant.label)}
    assert {check["what"] for check in failed} >= {"values", "beside the CPU's float64 kernel"}
    assert f"FAILED info_nce {variant.backend} {variant.label}" in shown


@pytest.mark.parametrize("variant", gpu.INFO_NCE[:5], ids=lambda x: x.label)
@pytest.mark.parametrize("name", ["queries", "documents", "negatives", "temperature"])
def test_one_wrong_gradient_fails(variant, name, fake, monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad.view(-1)[-1] += grad.abs().max()
            return grad

    def wrong(**options):
        queries, documents = options.pop("queries"), options.pop("documents")
        changed = {"queries": queries, "documents": documents, **options}
        changed[name] = Wrong.apply(changed[name])
        return info_nce_by_cpu(changed.pop("queries"), changed.pop("documents"), **changed)

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=wrong))
    found = {c.output: c.ok for c in gpu._small(fake, variant, TINY[0])}
    failed = {output for output, ok in found.items() if not ok}
    assert failed == {f"none.grad_{name}", f"mean.grad_{name}"}


@pytest.mark.parametrize("kind", topk.KINDS)
@pytest.mark.parametrize("place", [0, 1])
def test_one_wrong_id_or_score_fails(kind, place, report_of, monkeypatch):
    def wrong(*arguments):
        result = topk_by_numpy(*arguments)
        if arguments[0] == kind:
            result[place][-1, 0] += 1
        return result

    monkeypatch.setattr(topk.topk, "search", wrong)
    monkeypatch.setattr(gpu, "INFO_NCE", ())
    status, _, stored = report_of()
    assert status == 1
    failed = [check for check in stored["gpu"]["checks"] if check["status"] == "failed"]
    assert {check["dtype"] for check in failed} == {kind}
    whats = {"equal to NumPy's", *(["beyond 2^31 bytes"] if kind in topk.BEYOND else [])}
    assert {check["what"] for check in failed} == whats


def test_results_that_change_between_calls_fail(fake, monkeypatch):
    calls = iter(range(100))

    def restless(queries, documents, **options):
        return info_nce_by_cpu(queries, documents, **options) + next(calls) * 1e-6

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=restless))
    changed = {c.output: c.error for c in gpu._same_bits(fake, gpu.INFO_NCE[0])}
    assert changed["losses, repeats that differ"] == gpu.REPEATS


def test_an_address_that_wraps_around_fails(fake, monkeypatch):
    def wrapping(queries, documents, *, targets, **options):
        return info_nce_by_cpu(queries, documents, targets=targets % 32, **options)

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=wrapping))
    assert not any(c.ok for c in gpu._beyond(fake, gpu.INFO_NCE[3]))


def test_an_output_of_another_type_or_shape_fails(fake, monkeypatch):
    for change in (lambda s, i: (s.long(), i), lambda s, i: (s[:, :-1], i[:, :-1])):
        monkeypatch.setattr(topk.topk, "search", lambda *a: change(*topk_by_numpy(*a)))  # noqa: B023
        with pytest.raises(RuntimeError, match=r"scores: .*, expected int32 \(9, 5\)"):
            list(topk.values(fake, "packed", topk.SMALL[0]))


def test_a_kernel_that_cannot_run_fails_alone(report_of, monkeypatch):
    def broken(queries, documents, **options):
        if options["backend"] == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available")
        return info_nce_by_cpu(queries, documents, **options)

    monkeypatch.setattr(gpu, "simtile", types.SimpleNamespace(info_nce=broken))
    status, _, stored = report_of("--quick")
    assert status == 1
    assert all("no kernel image" in failure for failure in stored["failures"])
    failed = [check for check in stored["gpu"]["checks"] if check["status"] == "failed"]
    assert names(failed) == {("info_nce", "cuda", "bfloat16")}
    assert any("no kernel image" in item["why"] for item in stored["not_checked"])


def test_a_device_that_cannot_be_asked_is_a_failure(report_of, fake, monkeypatch):
    monkeypatch.setattr(Device, "description", test_doctor.raises(RuntimeError("unplugged")))
    status, _, stored = report_of()
    assert status == 1
    assert "RuntimeError: unplugged" in stored["failures"][0]


def test_a_backend_that_is_not_there_is_left_out(report_of, monkeypatch):
    monkeypatch.setattr(found, "why_no_cuda", lambda: "no CUDA module")
    status, shown, stored = report_of("--quick")
    assert status == 0
    assert {check["backend"] for check in stored["gpu"]["checks"]} == {"triton"}
    assert "backend 'cuda': no CUDA module" in shown


# -- time --


def test_a_call_finds_cold_caches_and_no_launch_in_its_time(fake):
    calls = []
    samples = fake.seconds(lambda: calls.append(len(fake.log)), 3)
    assert samples == [SECOND] * 3
    assert len(calls) == 2 + 1 + 3
    assert fake.log == ["write"] * 5 + ["call"] * 3
    assert fake._flush.numel() >= 2 * fake.l2_bytes


def test_shares_follow_from_times_and_peaks(fake):
    variant = gpu.INFO_NCE[1]  # tf32x3
    timing = gpu._step(fake, variant, info_nce.Case(10, 20, 30))
    operations = 2 * 3 * 10 * 20 * 30
    traffic = 2 * 4 * (10 + 20) * 30
    assert (timing.operations, timing.traffic) == (operations, traffic)
    peaks = [
        {"name": name, "rate": rate, "unit": "", "measured": True, "how": ""}
        for name, rate in (("memory read", 1e9), ("tf32 matmul", 1e8), ("tf32 mma.sync", None))
    ]
    result = gpu.measure(fake, timing, peaks)
    assert result["median"] == SECOND
    assert result["shares"] == [
        {"of": "memory read", "products": 1, "share": pytest.approx(traffic / SECOND / 1e9)},
        {"of": "tf32 matmul", "products": 3, "share": pytest.approx(3 * operations / SECOND / 1e8)},
    ]


@pytest.mark.parametrize(
    ("major", "mma_sync", "how"),
    [(8, False, "(cuBLAS)"), (9, True, "(cuBLAS, by wgmma)"), (10, True, "(cuBLAS, by tcgen05)")],
)
def test_peaks(major, mma_sync, how, fake, monkeypatch):
    monkeypatch.setattr(fake.facts, "major", major)
    peaks = {peak["name"]: peak for peak in fake.peaks()}
    assert peaks["memory copy"]["rate"] == pytest.approx(2 * 4096 / SECOND)
    assert peaks["memory read"]["rate"] == pytest.approx(4096 / SECOND)
    for name in ("float32", "tf32", "float16", "bfloat16", "int8"):
        peak = peaks[f"{name} matmul"]
        assert peak["measured"], peak["how"]
        assert peak["rate"] == pytest.approx(2 * 32**3 / SECOND)
    assert peaks["bfloat16 matmul"]["how"].endswith(how)
    assert peaks["float32 matmul"]["how"].endswith("(cuBLAS)")
    assert ("bfloat16 mma.sync" in peaks) == mma_sync
    if mma_sync:
        peak = peaks["bfloat16 mma.sync"]
        assert not peak["measured"]
        assert peak["how"].startswith("not measured")
        expected = 0.629 * 4096 * 132 * 1e9 if major == 9 else None
        assert peak["rate"] == (None if expected is None else pytest.approx(expected))


def test_a_peak_that_cannot_be_measured_says_why(fake, monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", test_doctor.raises(RuntimeError("no int8 here")))
    peaks = {peak["name"]: peak for peak in fake.peaks()}
    assert peaks["int8 matmul"]["rate"] is None
    assert not peaks["int8 matmul"]["measured"]
    assert "RuntimeError: no int8 here" in peaks["int8 matmul"]["how"]
    assert peaks["tf32 matmul"]["measured"]


def test_amd_has_other_names(fake):
    fake.cuda = False
    assert "gfx942" in fake.description()
    peaks = {peak["name"]: peak for peak in fake.peaks()}
    assert "(hipBLASLt or rocBLAS)" in peaks["bfloat16 matmul"]["how"]
    assert not any("mma.sync" in name for name in peaks)


def test_older_torch_tells_less_of_a_device(fake, monkeypatch):
    for name in ("L2_cache_size", "clock_rate"):
        monkeypatch.delattr(fake.facts, name)
    assert "L2 0 MiB" in fake.description()
    assert [p["rate"] for p in fake.peaks() if "mma.sync" in p["name"]] == [None] * 4


# -- arrays --


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_go_there_and_back(dtype, fake):
    inputs = info_nce.make_inputs(TINY[0], dtype)
    for name, stored in inputs.stored.items():
        tensor = fake.upload(stored)
        assert str(tensor.dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(fake.download(tensor), inputs.values[name])


def test_memory_is_poisoned(monkeypatch):
    filled = []
    empty = torch.empty

    def recorded(*arguments, **options):
        filled.append(empty(64, **options))
        return filled[-1]

    monkeypatch.setattr(torch, "empty", recorded)
    devices.TorchDevice("cpu").poison()
    assert len(filled) > 1
    assert all((block == 0xFF).all() for block in filled)


# -- the kernels themselves, in Triton's interpreter --

INTERPRETED = """
import json
from simtile.doctor import gpu, info_nce, info_nce_family, maxsim, pairwise, pool, siglip
from simtile.doctor.device import TorchDevice
from simtile.doctor.results import run_check
from simtile.kernels.info_nce import triton_configs as configs
from simtile.ops import info_nce_triton
tile = configs.Tile(32, 64, 32, 1, 1)  # the pinned ones take minutes
info_nce_triton._pinned = lambda *arguments: configs.Config(tile, tile)
configs.ROW_PADDING = 64
info_nce.SMALL = (info_nce.Case(5, 6, 7, 1, own=True, targets=True, ids=True),)
gpu.LARGE, gpu.REPEATED, gpu.REPEATS = (), info_nce.SMALL[0], 1
options = {"directions": info_nce_family.EVERY, "false_negative_margin": 0.1}
info_nce_family.CASES = (info_nce_family.Case("guide", 5, 6, options, True, 1),)
info_nce_family.REPEATED = info_nce_family.Case("plain", 3, 6, {"directions": ("doc_to_query",)})
maxsim.SMALL = (maxsim.Case(2, 5, 3, 7, 9, normalize=True),)
maxsim.SMOOTH = maxsim.Case(2, 5, 3, 7, 9, temperature=0.5)
maxsim.REPEATED, maxsim.REPEATS = maxsim.SMALL[0], 1
pairwise.CASES, pairwise.REPEATED = (pairwise.Case(20, 7, 4),), pairwise.Case(9, 5, 2)
siglip.CASES, siglip.REPEATED = (siglip.Case(9, 11, 7),), siglip.Case(5, 5, 3)
pool.CASES = (pool.CASES[0], pool.Case(3, 9, 40, 33, "max"))
pool.REPEATED = pool.Case(3, 5, 4, 4)
checks = gpu.checks(TorchDevice("cpu"), ("triton",), quick=True)
checks = [c for c in checks if c.what != "same bits"]  # the interpreter has one order
print(json.dumps([run_check(check) for check in checks]))
"""


@pytest.mark.deep
def test_the_triton_kernels_pass_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout.splitlines()[-1])
    assert [check["message"] for check in checks if check["status"] != "passed"] == []
    assert names(checks) == {
        name for name in EVERY | EVERY_FAMILY | MAXSIM | ALL_PAIRS if name[1] == "triton"
    }
    # of info_nce, its family, MaxSim (two checks), all pairs, the sigmoid loss, pooling (two)
    assert len(checks) == 5 + 3 + 3 * 2 + 6 + 3 + 2 * 3
