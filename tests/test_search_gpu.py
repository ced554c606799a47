"""Search of tensors on a GPU: what reaches `simtile.ops.topk.search`, without a GPU.

Tensors of the CPU pass for those of a GPU here, and the oracle for the kernels.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search_cases import KINDS, METRICS, as_given, cases, without_nan
from topk_cases import check

import simtile
from simtile import _tensors, _vectors
from simtile.ops import topk as gpu
from simtile.reference import topk_numpy as oracle

ON_GPU = [kind for kind in KINDS if kind != "float64"]


def oracle_search(kind, metric, queries, documents, dim, *scales_k_allow):
    *scales, k, allow, rank, candidates = scales_k_allow
    assert rank is candidates is None
    given = (queries, documents, *scales, allow)
    assert all(x is None or isinstance(x, torch.Tensor) for x in given)
    assert all(x is None or x.stride(-1) == 1 or x.numel() <= 1 or x.shape[-1] <= 1 for x in given)
    arrays = [None if x is None else _tensors.as_array(x) for x in given]
    shape = (len(queries), k)
    scores, ids = np.empty(shape, oracle.score_dtype(metric)), np.empty(shape, np.int64)
    rest = (k, arrays[-1], None, None, 1, scores, ids)
    oracle.topk(kind, metric, *arrays[:2], dim, *arrays[2:-1], *rest)
    return torch.from_numpy(scores), torch.from_numpy(ids)


@pytest.fixture(autouse=True)
def gpu_that_is_none(monkeypatch):
    monkeypatch.setattr(_vectors, "gpu_of", lambda x: x.device if _tensors.is_tensor(x) else None)
    monkeypatch.setattr(gpu, "search", oracle_search, raising=False)


@pytest.mark.parametrize("kind", ON_GPU)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), backend=st.sampled_from(("auto", "cuda")))
def test_tensors_stay_tensors(kind, data, backend):
    case = data.draw(cases((kind,), rank=False, candidates=None))
    queries, documents = as_given(case, tensors=True)
    allow = None if case["allow"] is None else torch.from_numpy(case["allow"])
    found = simtile.topk(
        queries,
        documents,
        case.k,
        metric=case.metric,
        allow=allow,
        nan="ignore",
        backend=backend,
    )
    assert all(isinstance(x, torch.Tensor) for x in found)
    check(tuple(x.numpy() for x in found), without_nan(case, case.topk(oracle)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["int8_vector", "int4_vector", "int8", "uint8", "int4"])
@pytest.mark.parametrize("query_kind", ["int8_vector", "int4_vector", "int8"])
def test_quantized_queries(kind, query_kind, metric):
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(130, 17)), rng.normal(size=(150, 17))
    queries, documents = simtile.quantize(q, query_kind), simtile.quantize(d, kind)
    if kind == query_kind == "int8":  # plain integers
        queries, documents = (
            simtile.Quantized(x.codes, 1, 0, 17, kind) for x in (queries, documents)
        )
    expected = simtile.topk(queries, documents, 9, metric=metric, backend="reference")
    found = simtile.topk(queries.to("cpu"), documents.to("cpu"), 9, metric=metric)
    check(tuple(x.numpy() for x in found), expected)


def test_refused():
    x, bits = torch.ones(4, 8), torch.ones(4, 1, dtype=torch.uint8)
    for backend in ("cpu", "reference"):
        with pytest.raises(RuntimeError, match=f"'{backend}' searches on the CPU, and documents"):
            simtile.topk(bits, bits, 1, metric="hamming", backend=backend)
    with pytest.raises(RuntimeError, match="float64 documents are not searched on a GPU"):
        simtile.topk(x.double(), x.double(), 1)
    with pytest.raises(RuntimeError, match="a search by range does not run on a GPU"):
        simtile.range_search(bits, bits, 1, metric="hamming")
    with pytest.raises(ValueError, match="queries: found them on the CPU, expected cpu"):
        simtile.topk(x.numpy(), x, 1)
    with pytest.raises(ValueError, match="queries: found NaN in 1 of 4"):
        simtile.topk(x.index_fill(0, torch.tensor([2]), torch.nan), x, 1)
    with pytest.raises(ValueError, match=r"beyond the range of float32"):
        simtile.topk(1e300 * x.double(), x, 1)
