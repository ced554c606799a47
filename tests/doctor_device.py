"""A device that is none for tests of `simtile doctor`: the CPU's memory and results."""

import types

import numpy as np
import torch
from doctor_reports import run_cli

import simtile
from simtile import _pairwise, doctor
from simtile.doctor import device as devices
from simtile.doctor import (
    found,
    gpu,
    info_nce,
    info_nce_family,
    maxsim,
    maxsim_topk,
    pairwise,
    pool,
    siglip,
    topk,
)
from simtile.reference import topk_numpy

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


def fake_device(monkeypatch):
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


def reports_of(fake, monkeypatch, tmp_path, capsys):
    """Run the command with the device in place; its CPU half is left out."""
    monkeypatch.setattr(doctor, "_cpu", lambda *arguments: None)
    monkeypatch.setattr(devices, "TorchDevice", lambda: fake)
    monkeypatch.setattr(found, "facts", list)
    for why in ("why_no_gpu", "why_no_triton", "why_no_cuda"):
        monkeypatch.setattr(found, why, lambda: "")
    monkeypatch.setattr(gpu, "SEARCHED", (100, 200))
    return lambda *arguments: run_cli(tmp_path, capsys, *arguments)


def names(checks):
    return {(check["kernel"], check["backend"], check["dtype"]) for check in checks}
