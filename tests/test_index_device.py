"""Indexes with device="cuda": equal to the CPU to the last bit; without a GPU on a stand-in.

The stand-in's memory is the CPU's, its kernels are the CPU's, and its copies are late: they happen
when something waits for them, and not before.
"""

import numpy as np
import pytest
import torch

import simtile
from simtile import CascadeIndex, FlatIndex, _core, _index_device, _search_call, _storage

DIM = 13
RANGES = np.array([[-3.0] * DIM, [3.0] * DIM], np.float32)
DTYPES = ("float32", "float16", "bfloat16", "int8", "uint8", "int4", "binary")
DTYPES += ("int8_vector", "int4_vector")
KINDS = [
    *((dtype, metric) for dtype in DTYPES for metric in ("cosine", "dot", "l2")),
    ("binary", "hamming"),
]


class Stream:
    """Runs what was put into it when it is waited for; the current one runs at once."""

    def __init__(self, device=None):
        self.work = []

    def synchronize(self):
        while self.work:
            self.work.pop(0)()

    def wait_event(self, event):
        event.synchronize()

    def wait_stream(self, other):
        other.synchronize()


class Event:
    stream = None

    def record(self, stream):
        self.stream, self.seen = stream, len(stream.work)
        self.done = []
        stream.work.append(lambda: self.done.append(True))

    def synchronize(self):
        while self.stream is not None and not self.done and self.stream.work:
            self.stream.work.pop(0)()


class StandIn:
    """For torch.cuda and for simtile.ops.topk."""

    def __init__(self):
        self.current = Stream()
        self.free = 1 << 40
        self.calls = []
        self.uploaded = 0
        self.Event = Event
        self.Stream = Stream

    def current_stream(self, device):
        return self.current

    def mem_get_info(self, device):
        return self.free, 1 << 40

    def search(self, *arguments):
        *fixed, k, allow, rank, candidates = (as_array(x) for x in arguments)
        assert isinstance(arguments[3], torch.Tensor)
        queries, documents, metric = fixed[2], fixed[3], fixed[1]
        self.calls.append(("search", len(documents)))
        scores = np.empty((len(queries), k), np.int32 if metric == "hamming" else np.float32)
        ids = np.empty((len(queries), k), np.int64)
        own = None  # a part of a permutation is none for the CPU
        if rank is not None:
            own = np.argsort(np.argsort(rank)).astype(np.uint32)
        _core.topk(*fixed, k, allow, own, candidates, 1, scores, ids)
        if rank is not None:
            ids = np.where(ids < 0, -1, np.sort(rank).astype(np.int64)[ids])
        return torch.from_numpy(scores), torch.from_numpy(ids)

    def score_rows(self, *arguments):
        *fixed, candidates = (as_array(x) for x in arguments)
        self.calls.append(("score_rows", len(fixed[3])))
        dtype = np.int32 if fixed[1] == "hamming" else np.float32
        scores = np.empty(candidates.shape, dtype)
        _core.score_rows(*fixed, np.ascontiguousarray(candidates), 1, scores)
        return torch.from_numpy(scores)

    def merge(self, metric, first, second, k):
        self.calls.append(("merge", k))
        for scores, ids in (first, second):
            assert scores.is_contiguous()
            assert ids.is_contiguous()
        return simtile.merge_topk([first, second], metric=metric, k=k)


def as_array(x):
    return x.numpy() if isinstance(x, torch.Tensor) else x


@pytest.fixture
def device(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(_index_device, "_cuda_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(_index_device, "_cuda", lambda: stand_in)
    monkeypatch.setattr(_index_device, "_ops", lambda: stand_in)
    monkeypatch.setattr(_search_call, "_cuda", lambda: stand_in)
    monkeypatch.setattr(
        _index_device,
        "_copy",
        lambda target, source, stream: stream.work.append(lambda: target.copy_(source)),
    )
    empty = torch.empty

    def poisoned(shape, dtype, device=None, pin_memory=False):
        return empty(shape, dtype=dtype).view(torch.uint8).fill_(0xA5).view(dtype)

    monkeypatch.setattr(torch, "empty", poisoned)
    return stand_in


def new_index(dtype, metric, device):
    ranges = RANGES if dtype in ("int8", "uint8", "int4") else None
    return FlatIndex(DIM, dtype, metric=metric, ranges=ranges, device=device)


def vectors(rng, count):
    return rng.integers(-2, 3, (count, DIM)).astype(np.float32)


def assert_same(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


def change_both(indexes, rng, explicit):
    """A few hundred documents in several segments, with ties, updates and removals."""
    names = rng.permutation(5000)
    for first, last in ((0, 200), (200, 201), (201, 333)):
        x = vectors(rng, last - first)
        for index in indexes:
            index.add(x, names[first:last] if explicit else None)
    ids = rng.permutation(indexes[0].ids)
    x = vectors(rng, 20)
    for index in indexes:
        index.update(x, ids[:20])
        index.remove(ids[10:40])


def check_like_cpu(cpu, gpu, rng):
    q = vectors(rng, 5)
    masks = rng.random((5, len(cpu))) < 0.3
    for allow in (None, masks[0], masks, cpu.ids[masks[1]], []):
        for k in (1, 10, 400):
            expected = cpu.search(q, k, allow=allow)
            assert_same(gpu.search(q, k, allow=allow), expected)
    assert_same(
        gpu.search(torch.from_numpy(q), 10), [torch.from_numpy(x) for x in cpu.search(q, 10)]
    )
    candidates = rng.permutation(cpu.ids)[:35].reshape(5, 7)
    candidates[:, 2] = -1
    assert_same([gpu.score(q, candidates)], [cpu.score(q, candidates)])
    with_nan = q.copy()
    with_nan[3, 3] = np.nan
    assert_same(gpu.search(with_nan, 9, nan="ignore"), cpu.search(with_nan, 9, nan="ignore"))
    assert_same(
        [gpu.score(with_nan, candidates, nan="ignore")],
        [cpu.score(with_nan, candidates, nan="ignore")],
    )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("dtype", "metric"), KINDS)
def test_stand_in(monkeypatch, device, dtype, metric, streamed):
    explicit = (KINDS.index((dtype, metric)) + streamed) % 2 == 0
    check_kind(monkeypatch, dtype, metric, streamed, explicit, "cuda", device)


def check_kind(monkeypatch, dtype, metric, streamed, explicit, where, stand_in=None):
    rng = np.random.default_rng(KINDS.index((dtype, metric)))
    monkeypatch.setattr(_storage, "COPIED_BYTES", 0)
    if streamed:
        monkeypatch.setattr(_index_device, "RESIDENT_SHARE", 0)
        monkeypatch.setattr(_index_device, "BLOCK_BYTES", 90 if dtype == "binary" else 800)
    cpu, gpu = new_index(dtype, metric, "cpu"), new_index(dtype, metric, where)
    change_both((cpu, gpu), rng, explicit)
    check_like_cpu(cpu, gpu, rng)
    if stand_in is not None:
        assert any(call[0] == "merge" for call in stand_in.calls) == streamed
        assert max(rows for call, rows in stand_in.calls if call == "search") < 240


def test_rows_are_uploaded_once(monkeypatch, device):
    """And those that are added later by themselves."""
    uploads = []
    upload = _index_device.DeviceSearch.upload
    monkeypatch.setattr(
        _index_device.DeviceSearch,
        "upload",
        lambda self, array: (uploads.append(np.asarray(array).nbytes), upload(self, array))[1],
    )
    rng = np.random.default_rng(0)
    gpu, cpu = new_index("int8_vector", "dot", "cuda"), new_index("int8_vector", "dot", "cpu")
    q = vectors(rng, 2)
    for index in (gpu, cpu):
        index.add(vectors(np.random.default_rng(1), 1000))
        index.add(vectors(np.random.default_rng(2), 500))
    assert_same(gpu.search(q, 3), cpu.search(q, 3))
    assert 1500 * (DIM + 4) <= sum(uploads) < 1500 * (DIM + 4) + 200
    uploads.clear()
    gpu.search(q, 3)
    assert sum(uploads) < 200
    for index in (gpu, cpu):
        index.add(np.full((7, DIM), 2.0))
    assert_same(gpu.search(q, 3), cpu.search(q, 3))
    assert sum(uploads) < 7 * (DIM + 4) + 400
    assert len(gpu._devices[0]._mirrors) == len(gpu._storage.snapshot.segments)
    gpu.remove(np.arange(1200))  # compacted: other rooms, the old ones are given up
    cpu.remove(np.arange(1200))
    assert_same(gpu.search(q, 3), cpu.search(q, 3))
    assert len(gpu._devices[0]._mirrors) == len(gpu._storage.snapshot.segments) == 1


def test_what_does_not_fit_is_streamed(device, tmp_path):
    """Also from a mapped file, and not kept; then kept again when there is room."""
    rng = np.random.default_rng(0)
    cpu = new_index("uint8", "l2", "cpu")
    cpu.add(vectors(rng, 1000))
    cpu.save(tmp_path / "a")
    gpu = FlatIndex.load(tmp_path / "a", device="cuda")
    q = vectors(rng, 3)
    device.free = 1000 * (DIM + 4) - 1
    assert_same(gpu.search(q, 5), cpu.search(q, 5))
    assert gpu._devices[0]._mirrors == []
    device.free = 1000 * (DIM + 4) * 2
    assert_same(gpu.search(q, 5), cpu.search(q, 5))
    assert len(gpu._devices[0]._mirrors) == 1
    gpu.save(tmp_path / "b")
    assert_same(FlatIndex.load(tmp_path / "b").search(q, 5), cpu.search(q, 5))


def test_an_empty_index_on_a_device(device):
    index = FlatIndex(DIM, "int8", device="cuda")
    _, ids = index.search(np.ones((2, DIM)), 3)
    assert ids.tolist() == [[-1] * 3] * 2
    assert index.score(np.ones((2, DIM)), [[-1], [-1]]).tolist() == [[-np.inf]] * 2


def test_a_failed_search_waits_for_its_copies(monkeypatch, device):
    """Else they would go on into memory that is somebody else's."""
    monkeypatch.setattr(_index_device, "RESIDENT_SHARE", 0)
    monkeypatch.setattr(_index_device, "BLOCK_BYTES", 100)
    streams = []

    class Seen(Stream):
        def __init__(self, device=None):
            super().__init__()
            streams.append(self)

    device.Stream = Seen
    index = new_index("int8", "dot", "cuda")
    index.add(vectors(np.random.default_rng(0), 50))
    monkeypatch.setattr(device, "search", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.search(np.ones((1, DIM)), 3)
    assert len(streams) == 1
    assert streams[0].work == []


def test_what_a_device_does_not_do(monkeypatch, device):
    index = new_index("int8", "dot", "cuda")
    with pytest.raises(RuntimeError, match="range_search runs on the CPU"):
        index.range_search(np.ones((1, DIM)), 0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(RuntimeError, match=r"no CUDA module|torch finds no CUDA device"):
        FlatIndex(DIM, "int8", device="cuda")
    for name in ("tpu", "meta", 3.5):
        with pytest.raises(ValueError, match="device: found"):
            FlatIndex(DIM, "int8", device=name)
    FlatIndex(DIM).save(tmp_path / "a")
    with pytest.raises(ValueError, match="device: found 'tpu'"):
        FlatIndex.load(tmp_path / "a", device="tpu")


CASCADES = [
    (("binary", "int8"), "cosine"),
    (("binary", "int8", "float32"), "l2"),
    (("binary", "int4_vector", "bfloat16"), "dot"),
    (("int4", "uint8", "float16"), "cosine"),
    (("int8_vector", "float32"), "dot"),
]


def check_cascade(monkeypatch, stages, metric, streamed, where):
    explicit = (CASCADES.index((stages, metric)) + streamed) % 2 == 0
    rng = np.random.default_rng(CASCADES.index((stages, metric)))
    monkeypatch.setattr(_storage, "COPIED_BYTES", 0)
    if streamed:
        monkeypatch.setattr(_index_device, "RESIDENT_SHARE", 0)
        monkeypatch.setattr(_index_device, "BLOCK_BYTES", 90 if stages[0] == "binary" else 800)
    few = [2] * (len(stages) - 1)
    cpu, gpu = (
        CascadeIndex(
            DIM,
            stages,
            metric=metric,
            oversample=few,
            ranges=RANGES if {"int4", "int8", "uint8"} & set(stages) else None,
            device=device,
        )
        for device in ("cpu", where)
    )
    change_both((cpu, gpu), rng, explicit)
    check_like_cpu(cpu, gpu, rng)
    q = vectors(rng, 5)
    q[2, 5] = np.nan
    masks = rng.random((5, len(cpu))) < 0.3
    for allow in (None, masks, cpu.ids[:4]):
        certified = {"allow": allow, "nan": "ignore", "certify": True}
        assert_same(gpu.search(q, 7, **certified), cpu.search(q, 7, **certified))
    return cpu, gpu


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("stages", "metric"), CASCADES)
def test_stand_in_cascade(monkeypatch, device, stages, metric, streamed):
    _, gpu = check_cascade(monkeypatch, stages, metric, streamed, "cuda")
    # Whole stages are kept where they fit; of the others candidates came and went.
    assert bool(gpu._devices[0]._mirrors) != streamed
    assert all(one._mirrors == [] for one in gpu._devices[1:-1])


def test_a_cascade_copies_candidates_only(monkeypatch, device, tmp_path):
    """Of the second stage, also from a mapped file."""
    x = vectors(np.random.default_rng(1), 2000)
    cpu = CascadeIndex(DIM, ("binary", "float32"), oversample=4)
    cpu.add(x)
    cpu.save(tmp_path / "a")
    gpu = CascadeIndex.load(tmp_path / "a", device="cuda")
    assert_same(gpu.search(x[:2], 5), cpu.search(x[:2], 5))
    assert gpu._devices[1]._mirrors == []
    rescored = [rows for call, rows in device.calls if call == "search"][1:]
    assert len(rescored) == 1
    assert rescored[0] <= 2 * 5 * 4
    gpu.save(tmp_path / "b")
    assert_same(CascadeIndex.load(tmp_path / "b").search(x[:2], 5), cpu.search(x[:2], 5))


def test_what_a_cascade_does_not_do_on_a_device(device):
    x = vectors(np.random.default_rng(1), 3000)
    index = CascadeIndex(DIM, ("binary", "float32"), device="cuda", oversample=40)
    index.add(x)
    with pytest.raises(RuntimeError, match="range_search runs on the CPU"):
        index.range_search(x[:1], 0.5)
    with pytest.raises(ValueError, match=r"k: found 65537, .* at most 65536 on"):
        index.search(x[:1], 65537)
    assert (index.search(x[:1], 2000)[1] >= 0).sum() == 2000  # no more are kept than there are


@pytest.mark.gpu
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("stages", "metric"), CASCADES)
def test_gpu_cascade(monkeypatch, stages, metric, streamed):
    check_cascade(monkeypatch, stages, metric, streamed, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("dtype", "metric"), KINDS)
def test_gpu(monkeypatch, dtype, metric, streamed):
    explicit = (KINDS.index((dtype, metric)) + streamed) % 2 == 0
    check_kind(monkeypatch, dtype, metric, streamed, explicit, "cuda")


@pytest.mark.gpu
def test_gpu_streams_many_blocks(monkeypatch):
    """Blocks of 1 MB, so that copies and searches overlap."""
    monkeypatch.setattr(_index_device, "RESIDENT_SHARE", 0)
    monkeypatch.setattr(_index_device, "BLOCK_BYTES", 1 << 20)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200_000, 96)).astype(np.float32)
    cpu, gpu = FlatIndex(96, "int8"), FlatIndex(96, "int8", device="cuda")
    for index in (cpu, gpu):
        index.add(x)
    q = rng.standard_normal((17, 96)).astype(np.float32)
    assert_same(gpu.search(q, 100), cpu.search(q, 100))
    on_gpu = gpu.search(torch.from_numpy(q).cuda(), 100)
    assert all(found.is_cuda for found in on_gpu)
    assert_same([found.cpu().numpy() for found in on_gpu], cpu.search(q, 100))
