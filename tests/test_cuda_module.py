"""simtile._cuda without a device: it loads, and every call says the same of what is missing.

SIMTILE_EXPECT_CUDA=1 in the environment: it must have been built; 0: it must not.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from device_fakes import InterfaceArray, aligned

from simtile import _gpu
from simtile.ops import _backends, topk

BUILT = importlib.util.find_spec("simtile._cuda") is not None
needs_module = pytest.mark.skipif(
    not BUILT, reason="simtile._cuda is not built; configuring with SIMTILE_CUDA=ON says why"
)

TOPK = {
    "kind": "int8",
    "metric": "dot",
    "queries": 2,
    "documents": 5,
    "dim": 16,
    "queries_data": 4096,
    "queries_stride": 64,
    "documents_data": 4096,
    "documents_stride": 16,
    **dict.fromkeys(("scale", "offset", "factor", "addend", "query_scale"), 0),
    **dict.fromkeys(("allow", "allow_bits", "allow_stride"), 0),
    **dict.fromkeys(("rank", "candidates", "candidate_count", "first_id"), 0),
    "k": 3,
    "scores": 4096,
    "ids": 4096,
}
MERGE = {
    "metric": "dot",
    "queries": 2,
    "k": 3,
    "first_count": 2,
    "second_count": 2,
    **{f"{which}_{what}": 4096 for which in ("first", "second") for what in ("scores", "ids")},
    "scores": 4096,
    "ids": 4096,
    "device": 0,
    "stream": 1,
}
INFO_NCE = {
    "rows": 2,
    "documents": 5,
    "negatives": 0,
    "dimensions": 8,
    "queries_data": 4096,
    "queries_stride": 8,
    "documents_data": 4096,
    "documents_stride": 8,
    "negatives_data": 0,
    "negatives_stride": 0,
    "temperature_data": 0,
    "temperature": 0.05,
    "normalize": True,
    "own_negatives": False,
    "targets": 0,
    "query_ids": 0,
    "document_ids": 0,
    "losses": 4096,
    "row_maxima": 0,
    "row_log_sums": 0,
}

# Runs in a process that sees no device, even where there is one.
CALLS = f"""
import json, sys
from simtile import _cuda
topk, info_nce = _cuda.TopkArgs(**{TOPK}), _cuda.InfoNceForwardArgs(**{INFO_NCE})
calls = {{
    "device_count": lambda: _cuda.device_count(),
    "device_info": lambda: _cuda.device_info(0),
    "device_of": lambda: _cuda.device_of(4096),
    "device_of null": lambda: _cuda.device_of(0),
    "wait_for_stream": lambda: _cuda.wait_for_stream(0, 1, 2),
    "topk_workspace_bytes": lambda: _cuda.topk_workspace_bytes(topk, 0, False),
    "topk": lambda: _cuda.topk(topk, 0, 1, 4096, 1 << 20, False),
    "topk_merge": lambda: _cuda.topk_merge(**{MERGE}),
    "info_nce_forward": lambda: _cuda.info_nce_forward(info_nce, 0, 1),
}}
said = {{}}
for name, call in calls.items():
    try:
        said[name] = repr(call())
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
libraries = [line.split("/")[-1].strip() for line in open("/proc/self/maps") if ".so" in line]
print(json.dumps({{"said": said, "driver": _cuda.driver_version(), "torch": "torch" in sys.modules,
                   "libraries": sorted(set(libraries))}}))
"""


@pytest.fixture(scope="module")
def without_device():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(
        [sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_built_as_expected():
    expected = os.environ.get("SIMTILE_EXPECT_CUDA", "")
    assert expected in ("", "0", "1")
    assert BUILT in {"": (False, True), "0": (False,), "1": (True,)}[expected]


@needs_module
def test_it_says_what_it_was_built_for():
    cuda = _gpu.cuda_module()
    assert cuda.architectures()
    for architecture in cuda.architectures():
        assert re.fullmatch(r"\d{2,3}[af]?(-real|-virtual)?", architecture)
    assert cuda.runtime_version() >= 12080


@needs_module
def test_it_loads_alone(without_device):
    needed = [
        name for name in without_device["libraries"] if re.match(r"lib(cudart|torch|c10)", name)
    ]
    assert not needed
    assert not without_device["torch"]


@needs_module
def test_every_call_raises_the_one_error(without_device):
    said = without_device["said"]
    types, texts = zip(*said.values(), strict=True)
    assert set(types) == {"RuntimeError"}
    (text,) = set(texts)
    if without_device["driver"]:
        assert text.startswith("CUDA: cudaGetDeviceCount: cudaErrorNoDevice (100): ")
        assert "the NVIDIA driver shows no device; look at nvidia-smi and at CUDA_VIS" in text
    else:
        assert text.startswith("CUDA: cudaGetDeviceCount: cudaErrorInsufficientDriver (35): ")
        assert "no NVIDIA driver was found; install one of CUDA 1" in text
    assert text.endswith("or use the CPU kernels")


def array(shape, dtype):
    return InterfaceArray(aligned(shape, dtype))


def search(queries, documents):
    return topk.search("packed", "hamming", queries, documents, 128, *[None] * 5, 3)


@needs_module
@pytest.mark.skipif(
    BUILT and bool(_gpu.gpu_info()["devices"]), reason="there is a device: nothing is missing"
)
def test_python_functions_raise_it_as_well():
    queries, documents = array((2, 16), "uint8"), array((5, 16), "uint8")
    with pytest.raises(RuntimeError, match=r"^CUDA: cudaGetDeviceCount: .*use the CPU kernels$"):
        search(queries, documents)
    info = _gpu.gpu_info()
    assert info["built"]
    assert info["devices"] == []
    assert info["error"].startswith("CUDA: cudaGetDeviceCount: ")


@needs_module
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "int16"}, "kind: found 'int16', expected 'packed', 'bits', 'int4'"),
        ({"metric": "ip"}, "metric: found 'ip', expected 'hamming', 'dot', 'cosine' or 'l2'"),
        ({"k": 0}, "k: found 0, expected at least 1"),
        ({"queries": -1}, "queries: found -1, expected at least 0"),
        ({"dim": 0}, "dim: found 0, expected at least 1"),
        ({"first_id": -1}, "first_id: found -1, expected at least 0"),
        ({"documents_stride": -16}, "documents_stride: found -16, expected at least 0"),
        ({"queries_data": 0}, "queries_data: found a null pointer, expected device memory"),
    ],
)
def test_topk_arguments_that_are_refused(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        _gpu.cuda_module().TopkArgs(**{**TOPK, **changes})


@needs_module
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows: found 0, expected at least 1"),
        ({"dimensions": 0}, "dimensions: found 0, expected at least 1"),
        ({"queries_stride": -8}, "queries_stride: found -8, expected at least 0"),
        ({"documents_data": 0}, "documents_data: found a null pointer, expected device memory"),
        ({"negatives": 2}, "negatives_data: found a null pointer, expected device memory"),
        ({"query_ids": 4096}, "query_ids, document_ids: found one, expected both or neither"),
        ({"rows": 6}, "documents: found fewer than rows without targets"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0"),
        ({"temperature": float("nan")}, "temperature: expected a finite number above 0"),
    ],
)
def test_info_nce_arguments_that_are_refused(changes, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        _gpu.cuda_module().InfoNceForwardArgs(**{**INFO_NCE, **changes})


@pytest.fixture
def without_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "simtile._cuda", None)
    monkeypatch.delattr("simtile._cuda", raising=False)


@pytest.mark.usefixtures("without_module")
def test_an_installation_without_it_says_how_to_get_it():
    hint = r"nvcc of CUDA 12\.8 or newer .*SIMTILE_CUDA=ON"
    with pytest.raises(RuntimeError, match=r"has no CUDA module \(simtile\._cuda\); .*" + hint):
        _gpu.cuda_module()
    with pytest.raises(RuntimeError, match=r"has no CUDA module .*" + hint):
        search(array((2, 16), "uint8"), array((5, 16), "uint8"))
    with pytest.raises(RuntimeError, match=r"^backend: 'cuda' is not available, .*SIMTILE_CUDA=ON"):
        _backends.check_available("cuda")
    info = _gpu.gpu_info()
    assert not info["built"]
    assert info["error"].startswith("this installation of simtile has no CUDA module")
