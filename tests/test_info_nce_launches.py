"""What the host code of the Triton kernels does around them, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import triton_hosts
from simtile.kernels.info_nce import triton_configs as configs
from torch.utils._python_dispatch import TorchDispatchMode

from simtile.ops import info_nce, info_nce_triton
from simtile.ops._tensors import temperature_on


def inputs(n, m, dim, negatives=None, dtype=torch.bfloat16):
    def rows(*shape):
        return torch.zeros(shape, dtype=dtype)

    return rows(n, dim), rows(m, dim), None if negatives is None else rows(n, negatives, dim)


def run(arrays, dtype=torch.bfloat16, **options):
    name = str(dtype).removeprefix("torch.")
    return info_nce_triton.run(
        *arrays,
        dtype=dtype,
        **{"temperature": 0.05, "need_grad": (True,) * 4, **options},
        tiles=configs.config("sm80", name, options.get("precision", "ieee")),
    )


def masks(n, m):
    return {
        "targets": torch.zeros(n, dtype=torch.int64),
        "query_ids": torch.arange(n),
        "document_ids": torch.arange(m),
        "row_weights": torch.ones(n),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_compilation_for_all_lengths_and_masks(dtype):
    compiled = {}

    def record(launch):
        compiled.setdefault(launch.name, {}).setdefault(launch.key, []).append(launch.grid)

    with triton_hosts.intercepted("info_nce", record):
        for n in (1, 2, 7, 16, 33, 111, 989, 2048):
            for negatives, own in ((None, False), (3, False), (1, True), (5, True)):
                for given in ({}, masks(n, n + n % 3)):
                    arrays = inputs(n, n + n % 3, 768, negatives, dtype)
                    run(arrays, dtype, own_negatives=own, **given)
    assert {name: len(keys) for name, keys in compiled.items()} == {
        "prepare": 1,
        "own_scores": 1,
        "scores": 1,
        "row_losses": 1,
        "coefficients": 1,
        "products": 1,
        "own_gradients": 1,
        "finish": 1,
    }


KINDS = [("float32", precision) for precision in configs.PRECISIONS]
KINDS += [("bfloat16", "ieee"), ("float16", "ieee")]


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_what_is_compiled_ahead_of_time_is_what_is_launched(dtype, precision):
    launched = {}

    def record(launch):
        names = list(launch.signature)
        compiled_in = {names[i]: value for (i,), value in launch.constexprs.items()}
        divisible = {names[i] for (i,), attributes in launch.attributes.items() if attributes}
        key = launch.name, compiled_in.get("STORE")
        warps = launch.options["num_warps"]
        launched.setdefault(key, (launch.signature, compiled_in, divisible, warps))

    options = {"precision": precision, **masks(70, 75)}
    with triton_hosts.intercepted("info_nce", record):
        for need in ((True,) * 4, (False,) * 4):
            arrays = inputs(70, 75, 768, 2, getattr(torch, dtype))
            run(arrays, getattr(torch, dtype), need_grad=need, own_negatives=True, **options)
    variants = {}
    for variant in configs.plain_variants("sm80"):
        kind, *more = variant.name.partition("[")[2].rstrip("]").split(", ")
        if kind == dtype and (dtype != "float32" or not more or more[0] == precision):
            variants[variant.kernel.__name__, variant.constexprs.get("STORE")] = (
                variant.signature,
                variant.constexprs,
                set(variant.divisible),
                variant.num_warps,
            )
    assert launched == variants


class NoReading(TorchDispatchMode):
    """Raises where the host would wait for a tensor's values."""

    READING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(self.READING):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


def test_reading_is_seen():
    with NoReading(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(1).item()


@pytest.mark.parametrize("own", [False, True])
def test_the_host_waits_for_nothing(own):
    arrays = inputs(70, 75, 33, 2)
    temperature = torch.tensor(0.05)
    with triton_hosts.intercepted("info_nce", lambda launch: None), NoReading():
        run(arrays, temperature=temperature, own_negatives=own, **masks(70, 75))


@pytest.mark.parametrize("wrong", [0.0, -0.05, float("inf"), float("-inf"), float("nan")])
def test_a_temperature_that_nobody_reads(wrong):
    with NoReading():
        number = temperature_on(torch.tensor(wrong, dtype=torch.float64), torch.device("cpu"))
        right = temperature_on(torch.tensor([0.5]), torch.device("cpu"))
    assert number.dtype == torch.float32
    assert number.isnan().all()
    assert right.tolist() == [0.5]


class Allocated(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there have been."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        import weakref

        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            key = storage._cdata
            if key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key, None)
        self.most = max(self.most, sum(self.alive.values()))
        return result


def test_memory():
    # Nothing is computed, and pages that are not touched are not there.
    n, dim = 65536, 768
    empty = torch.empty
    with Allocated() as memory:
        arrays = [empty(n, dim, dtype=torch.bfloat16) for _ in range(2)]
        with triton_hosts.intercepted("info_nce", lambda launch: None):
            result = run((*arrays, None), need_grad=(True, True, False, True))
        assert result.grad_documents is not None
    assert 0.8e9 < memory.most < 1e9


def test_memory_of_the_backward(monkeypatch):
    monkeypatch.setattr(info_nce, "_graph_is_kept", lambda: True)
    grads = [torch.ones(1024, 64) for _ in range(2)]
    saved = SimpleNamespace(
        saved_tensors=grads, options=None, dtypes=[torch.bfloat16, torch.bfloat16]
    )
    with Allocated() as memory, torch.no_grad():
        *scaled, _, _ = info_nce._EagerInfoNCE.backward(saved, torch.tensor(3.0))
    assert all(x.dtype == torch.bfloat16 and x.eq(3).all() for x in scaled)
    assert memory.most < 2 * 1024 * 64 * 2 + 1000  # the results, and nothing in float32
