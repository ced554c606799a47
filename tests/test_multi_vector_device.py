"""MultiVectorIndex with device="cuda", whose kernels are compiled for the CPU: no GPU.

Whole numbers are exact in every type, so what is found is what the index on the CPU finds.
"""

import numpy as np
import pytest
import torch
from device_fakes import CudaTensor, pretend_cuda
from multi_vector_cases import CODES, DIM, FLOATS, assert_same, draw_documents, new_index
from test_maxsim_cuda import FakeCuda
from tolerances import ROUNDOFF, ROUNDOFFS

from simtile import MultiVectorIndex, _gpu, _index_device, _storage, _vectors
from simtile._index_device import DeviceSearch

DTYPES = (*FLOATS, *CODES)


class Device:
    """For torch.cuda, and what is copied to the device."""

    def __init__(self):
        self.free = 1 << 40
        self.uploaded = []

    def mem_get_info(self, device):
        assert device == CudaTensor.device
        return self.free, 1 << 40


@pytest.fixture(scope="module")
def kernels():
    return FakeCuda()


@pytest.fixture
def device(monkeypatch, kernels):
    found, upload = Device(), DeviceSearch.upload

    def logged(self, array):
        found.uploaded.append(array.shape)
        return upload(self, array)

    pretend_cuda(monkeypatch)
    monkeypatch.setattr(_gpu, "cuda_module", lambda: kernels)
    monkeypatch.setattr(
        _vectors, "gpu_of", lambda x: x.device if getattr(x, "is_cuda", False) else None
    )
    monkeypatch.setattr(_index_device, "_cuda_device", lambda device: CudaTensor.device)
    monkeypatch.setattr(_index_device, "_cuda", lambda: found)
    monkeypatch.setattr(DeviceSearch, "upload", logged)
    return found


def check_like_cpu(cpu, gpu, rng):
    q = draw_documents(rng, 2)
    ids = rng.choice(cpu.ids, (2, 6))
    ids[0, 0] = ids[1] = -1
    mask = rng.random((2, len(cpu))) < 0.5
    for call in (
        lambda index: index.search(q, 5, empty_score=-3),
        lambda index: index.search(q, 500, allow=mask, threads=1),
        lambda index: index.search(q, 3, prefilter=7),
        lambda index: [index.score(q, empty_score=-3)],
        lambda index: [index.score(q, ids)],
        lambda index: [index.score([], np.zeros((0, 2), int))],
    ):
        assert_same(call(gpu), call(cpu))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_finds_what_the_cpu_finds(monkeypatch, tmp_path, device, dtype, streamed):
    """Also after changes, of several segments, of a file, and where only parts fit."""
    monkeypatch.setattr(_storage, "COPIED_BYTES", 0)
    if streamed:
        device.free = 0
        monkeypatch.setattr(_index_device, "BLOCK_BYTES", 600)
    rng = np.random.default_rng(0)
    indexes = new_index(dtype), new_index(dtype, device="cuda")
    x, ids = draw_documents(rng, 24), rng.permutation(24)
    for begin in (0, 10, 20):
        for index in indexes:
            index.add(x[begin : begin + 10], ids[begin : begin + 10])
    check_like_cpu(*indexes, rng)
    for index in indexes:
        index.remove(ids[::3])
        index.update(x[:8], ids[1::3])
    check_like_cpu(*indexes, rng)
    indexes[1].save(tmp_path / "a")
    loaded = [MultiVectorIndex.load(tmp_path / "a", device=where) for where in ("cpu", "cuda")]
    check_like_cpu(*loaded, rng)
    assert device.uploaded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
def test_scores_of_real_numbers(device, dtype, normalize):
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, DIM)).astype(np.float32) for n in rng.integers(0, 30, 20)]
    q = rng.normal(size=(3, 6, DIM)).astype(np.float32)
    found = []
    for where in ("cpu", "cuda"):
        index = new_index(dtype, normalize=normalize, device=where)
        index.add(x)
        found.append(index.score(q))
    if dtype in FLOATS:
        size = max(np.abs(own @ q.reshape(-1, DIM).T).max() for own in x if len(own))
        atol = 6 * size * ROUNDOFFS["maxsim.scores"] * ROUNDOFF["float32"]
        np.testing.assert_allclose(found[1], found[0], rtol=0, atol=atol)
    else:
        assert_same([found[1]], [found[0]])


def test_tokens_are_uploaded_once(device):
    index = MultiVectorIndex(DIM, device="cuda")
    index.add(np.ones((9, 5, DIM)))
    q = np.ones((2, 3, DIM))
    index.search(q, 3)
    assert (45, DIM) in device.uploaded
    index.add(np.ones((1, 4, DIM)))  # tokens move to where there is more room
    index.search(q, 3)
    assert (49, DIM) in device.uploaded
    del device.uploaded[:]
    index.search(q, 3)
    assert {shape[0] for shape in device.uploaded} == {2}  # queries
    index.add(np.ones((2, 4, DIM)))
    index.search(q, 3)
    assert {shape[0] for shape in device.uploaded} == {2, 8}


def test_documents_that_do_not_fit_are_copied_only_where_they_are_scored(monkeypatch, device):
    device.free = 0
    index = MultiVectorIndex(DIM, device="cuda")
    index.add(np.ones((9, 5, DIM)))
    index.score(np.ones((1, 2, DIM)), [[3, 7]])
    assert max(shape[0] for shape in device.uploaded) == 10
    monkeypatch.setattr(_index_device, "BLOCK_BYTES", 1)  # less than a document
    assert index.score(np.ones((1, 2, DIM))).tolist() == [[2 * DIM] * 9]


def test_what_has_no_tokens(device):
    index = MultiVectorIndex(DIM, device="cuda")
    assert index.search(np.ones((1, DIM)), 2)[1].tolist() == [[-1, -1]]
    index.add([np.zeros((0, DIM))] * 2)
    assert index.search(np.ones((1, DIM)), 2, empty_score=4)[0].tolist() == [[4, 4]]
    index.add(np.ones((1, 3, DIM)))
    scores = index.score([np.ones((2, DIM)), np.ones((0, DIM))], empty_score=4)
    assert scores.tolist() == [[4, 4, 2 * DIM], [4, 4, 0]]


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device: found 'gpu'"):
        MultiVectorIndex(DIM, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError):
            MultiVectorIndex(DIM, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu(monkeypatch, dtype, streamed):
    if streamed:
        monkeypatch.setattr(_index_device, "RESIDENT_SHARE", 0)
        monkeypatch.setattr(_index_device, "BLOCK_BYTES", 600)
    rng = np.random.default_rng(0)
    indexes = new_index(dtype), new_index(dtype, device="cuda")
    x = draw_documents(rng, 60)
    for index in indexes:
        index.add(x, np.arange(60)[::-1])
        index.remove(np.arange(0, 60, 3))
    check_like_cpu(*indexes, rng)
