"""Every wrong argument raises, naming the argument, what was found and what was expected."""

import math
import re

import ml_dtypes
import numpy as np
import pytest
import torch

import simtile
from simtile._contrast import Contrast

Q = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
D = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
X = np.random.default_rng(2).normal(size=(4, 2, 6)).astype(np.float32)
IDS = np.arange(4)


def with_numpy(**arguments):
    arguments = {"queries": Q, "documents": D, **arguments}
    return simtile.info_nce_grad(**arguments)


def as_tensors(value):
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return tuple(map(as_tensors, value)) if isinstance(value, tuple) else value


def with_torch(**arguments):
    arguments = {"queries": Q, "documents": D, **arguments}
    return simtile.info_nce(**{name: as_tensors(value) for name, value in arguments.items()})


BOTH = pytest.mark.parametrize("call", [with_numpy, with_torch])

SHAPES = [
    ({"queries": Q[0]}, "queries: found shape [6], expected [N, D]; a single vector is x[None, :]"),
    ({"documents": D[0]}, "documents: found shape [6], expected [M, D]"),
    ({"queries": X}, "queries: found shape [4, 2, 6], expected [N, D]"),
    ({"queries": Q[:0]}, "queries: found shape [0, 6], expected at least one row; the loss of an"),
    (
        {"queries": Q[:, :0], "documents": D[:, :0]},
        "queries: found shape [4, 0], expected at least",
    ),
    (
        {"documents": D[:, :5]},
        "documents: found shape [5, 5], expected [M, 6] because queries are [4, 6]",
    ),
    ({"documents": D[:3]}, "documents: found 3 rows for 4 queries, expected at least 4"),
    ({"documents": D[:0]}, "documents: found 0 rows for 4 queries"),
    ({"negatives": X[:3]}, "negatives: found shape [3, 2, 6], expected [4, K, 6]"),
    ({"negatives": X[:, :, :5]}, "negatives: found shape [4, 2, 5], expected [4, K, 6]"),
    ({"negatives": Q}, "negatives: found shape [4, 6], expected [4, K, 6] because queries are"),
    ({"negatives": Q}, "one negative per query is x[:, None, :]"),
    ({"targets": IDS[:3]}, "targets: found shape [3], expected [4], one per query"),
    ({"targets": IDS[:, None]}, "targets: found shape [4, 1], expected [4]"),
    ({"query_ids": IDS[:2]}, "query_ids: found shape [2], expected [4], one per query"),
    ({"document_ids": IDS}, "document_ids: found shape [4], expected [5], one per document"),
    ({"query_ids": IDS}, "document_ids: found None with query_ids [4], 5 documents; expected [5]"),
    (
        {"query_ids": IDS, "documents": D[:4], "targets": IDS[::-1]},
        "document_ids: found None with query_ids [4], 4 documents and targets; expected [4]",
    ),
]

VALUES = [
    ({"temperature": 0.0}, "temperature: found 0.0, expected a finite number above 0"),
    ({"temperature": -1}, "temperature: found -1.0, expected a finite number above 0"),
    ({"temperature": float("nan")}, "temperature: found nan, expected a finite number above 0"),
    ({"temperature": float("inf")}, "temperature: found inf, expected a finite number above 0"),
    ({"targets": np.array([0, 1, 5, 2])}, "targets: found 5 at [2], expected 0 to 4 because there"),
    ({"targets": np.array([0, -1, 1, 2])}, "targets: found -1 at [1], expected 0 to 4"),
    ({"query_ids": list("abcd")}, "query_ids: found <U1 [4], expected integers; np.unique"),
    ({"targets": [0, None, 1, 2]}, "targets: found object [4], expected integers"),
    ({"reduction": "avg"}, "reduction: found 'avg', expected one of 'mean', 'sum', 'none'"),
    ({"reduction": None}, "reduction: found None, expected one of 'mean', 'sum', 'none'"),
    (
        {"negatives_scope": "mine"},
        "negatives_scope: found 'mine', expected one of 'all', 'queries', 'own'",
    ),
    ({"partition": "x"}, "partition: found 'x', expected one of 'joint', 'per_direction'"),
    ({"directions": ("up",)}, "directions: found 'up', expected one of 'query_to_doc'"),
    ({"directions": "query_to_doc"}, "expected a tuple of some of 'query_to_doc', "),
    ({"directions": ()}, "directions: found (), expected at least one, each once"),
    ({"directions": ("doc_to_query",) * 2}, "expected at least one, each once"),
    (
        {"directions": ("query_to_query",)},
        "directions: found ('query_to_query',) with partition 'joint', expected the pair itself",
    ),
    (
        {"directions": ("query_to_doc", "doc_to_doc"), "partition": "per_direction"},
        "with partition 'per_direction', expected the pair itself among the candidates",
    ),
    (
        {"directions": ("doc_to_query",), "targets": np.arange(4)},
        "targets: found with directions ('doc_to_query',), expected None",
    ),
    ({"hardness": "hard"}, "hardness: found 'hard', expected one of 'in_batch_negatives'"),
    ({"hardness_strength": 1.0}, "hardness_strength: found 1.0 without hardness"),
    (
        {"hardness": "all_negatives", "hardness_strength": -1.0},
        "hardness_strength: found -1.0, expected a number of at least 0",
    ),
    (
        {"hardness": "all_negatives", "directions": ("doc_to_query",)},
        "hardness: found 'all_negatives' with directions ('doc_to_query',), expected query_to_doc",
    ),
    ({"false_negative_margin": float("nan")}, "false_negative_margin: found nan, expected a"),
    ({"guide_margin": 0.1}, "guide_margin: found 0.1 without guide, expected a guide"),
    (
        {"guide_margin_strategy": "x"},
        "guide_margin_strategy: found 'x', expected one of 'absolute'",
    ),
    ({"guide": (Q,)}, "guide: found 1 of them without negatives, expected (queries, documents)"),
    ({"guide": (Q, D[:3])}, "guide: found documents of shape [3, "),
    ({"guide": (Q[0], D)}, "guide: found queries of shape ["),
    ({"backend": "gpu"}, "backend: found 'gpu', expected one of 'auto', 'cpu', 'triton', 'cuda'"),
    ({"precision": "fp16"}, "precision: found 'fp16', expected one of 'ieee', 'tf32', 'tf32x3'"),
    ({"threads": 0}, "threads: found 0, expected 1 to 1024, or None for the default"),
    ({"bias": math.inf}, "bias: found inf, expected a finite number"),
    ({"threads": -2}, "threads: found -2, expected 1 to 1024"),
    ({"threads": 2**40}, "threads: found 1099511627776, expected 1 to 1024"),
]


@BOTH
@pytest.mark.parametrize(("arguments", "message"), SHAPES + VALUES)
def test_wrong_shapes_and_values(call, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(**arguments)


@BOTH
def test_words_are_no_flags(call):
    with pytest.raises(TypeError, match="normalize: found 'no', expected True or False"):
        call(normalize="no")


@BOTH
def test_a_large_value_is_not_printed_whole(call):
    with pytest.raises((TypeError, ValueError), match="guide") as error:
        call(guide=np.zeros((100, 100)))
    assert len(str(error.value)) < 200


@BOTH
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_named_backend_never_falls_back(call, backend):
    # Arrays, and tensors of the CPU, with or without a GPU beside them.
    with pytest.raises((RuntimeError, ValueError), match=f"'{backend}'"):
        call(backend=backend)


@BOTH
@pytest.mark.parametrize("threads", [1.5, "2", True])
def test_threads_that_are_no_integer(call, threads):
    with pytest.raises(TypeError, match=r"threads: found .*, expected an int or None"):
        call(threads=threads)


@BOTH
@pytest.mark.parametrize("temperature", ["0.05", None, [0.05]])
def test_a_temperature_that_is_no_number(call, temperature):
    with pytest.raises(TypeError, match=r"temperature: found .*, expected a number"):
        call(temperature=temperature)


@BOTH
@pytest.mark.parametrize("name", ["targets", "query_ids", "document_ids"])
@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_indices_that_are_no_integers(call, name, dtype):
    with pytest.raises(
        ValueError, match=f"{name}: found .*{np.dtype(dtype).name}.*, expected .*int"
    ):
        call(**{name: np.zeros(5 if name == "document_ids" else 4, dtype)})


@pytest.mark.parametrize("name", ["queries", "documents", "negatives"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64", "S3"])
def test_arrays_of_other_types(name, dtype):
    array = {"queries": Q, "documents": D, "negatives": X}[name].astype(dtype)
    message = f"{name}: found {array.dtype} \\[[45], .*\\], expected float32, float64, float16 or"
    with pytest.raises(ValueError, match=message):
        with_numpy(**{name: array})


def test_integers_say_how_to_convert_them():
    with pytest.raises(ValueError, match=re.escape("convert with x.astype(np.float32)")):
        with_numpy(queries=Q.astype(np.int8))


def test_uint16_is_never_read_as_bfloat16():
    bits = Q.astype(ml_dtypes.bfloat16).view(np.uint16)
    with pytest.raises(ValueError, match="uint16 is never read as bfloat16"):
        with_numpy(queries=bits)


def test_objects():
    with pytest.raises(ValueError, match="queries: found object"):
        with_numpy(queries=[object()])


def test_arrays_of_temperatures():
    with pytest.raises(
        ValueError, match=r"temperature: found an array of shape \[4\], expected one"
    ):
        with_numpy(temperature=np.full(4, 0.05))


def test_ids_that_are_strings():
    with pytest.raises(ValueError, match=r"np\.unique\(x, return_inverse=True\)"):
        with_numpy(query_ids=np.array(list("abcd")), documents=D[:4])


def test_tensors_for_info_nce_grad():
    with pytest.raises(TypeError, match=r"queries: found a torch\.Tensor.*use simtile\.info_nce"):
        with_numpy(queries=torch.zeros(4, 6))


@pytest.mark.parametrize("name", ["queries", "documents", "negatives"])
def test_arrays_for_info_nce(name):
    arguments = {"queries": torch.zeros(4, 6), "documents": torch.zeros(5, 6), name: X}
    with pytest.raises(
        TypeError, match=f"{name}: found ndarray, expected a torch.Tensor; .* simtile.info_nce_grad"
    ):
        simtile.info_nce(**arguments)


@pytest.mark.parametrize("name", ["queries", "documents", "negatives"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint16, torch.complex64, torch.bool])
def test_tensors_of_other_types(name, dtype):
    array = {"queries": Q, "documents": D, "negatives": X}[name]
    with pytest.raises(ValueError, match=f"{name}: found {dtype}, expected float32, float64"):
        with_torch(**{name: torch.zeros(array.shape, dtype=dtype)})


def test_sparse_tensors():
    with pytest.raises(
        ValueError, match=r"queries: found layout torch\.sparse_coo, expected a dense"
    ):
        with_torch(queries=torch.eye(6).to_sparse())


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (torch.tensor([0.1, 0.2]), r"temperature: found shape \[2\], expected a tensor with one"),
        (torch.tensor([[0.1]]), r"temperature: found shape \[1, 1\], expected a tensor with one"),
        (torch.tensor(1), r"temperature: found torch\.int64, expected a floating-point tensor"),
        (torch.tensor(0.0), "temperature: found 0.0, expected a finite number above 0"),
        (torch.tensor(-0.5, requires_grad=True), "temperature: found -0.5, expected a finite"),
        (torch.tensor(float("nan")), "temperature: found nan, expected a finite"),
    ],
)
def test_temperatures_that_are_tensors(temperature, message):
    with pytest.raises(ValueError, match=message):
        with_torch(temperature=temperature)


class OnAnotherDevice(torch.Tensor):
    """What a CUDA tensor looks like, on machines that have none."""

    is_cpu = False
    device = torch.device("cuda:0")


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("name", ["documents", "negatives", "targets", "temperature"])
def test_tensors_on_another_device(name, backend):
    values = {"documents": D, "negatives": X, "targets": IDS}
    tensor = torch.tensor(0.1) if name == "temperature" else torch.from_numpy(values[name].copy())
    message = f"{name}: found a tensor on cuda:0, expected cpu because queries are there"
    with pytest.raises(ValueError, match=message):
        with_torch(**{name: tensor.as_subclass(OnAnotherDevice)}, backend=backend)


def test_documents_on_the_cpu_beside_queries_on_a_gpu():
    queries = torch.from_numpy(Q.copy()).as_subclass(OnAnotherDevice)
    with pytest.raises(ValueError, match="documents: found a tensor on cpu, expected cuda:0"):
        with_torch(queries=queries)


class TestChoice:
    """Which backend runs tensors that are on a GPU."""

    def choose(self, backend, dtype=torch.float32):
        from simtile.ops._backends import choose

        return choose(backend, "queries", torch.ones(1).as_subclass(OnAnotherDevice), dtype)

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_the_cpu_is_not_a_gpu(self, backend):
        with pytest.raises(ValueError, match="found a tensor on cuda:0, expected the CPU because"):
            self.choose(backend)

    def test_auto_is_triton(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert self.choose("auto") == "triton"
        assert self.choose("triton", torch.bfloat16) == "triton"

    def test_no_float64(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(ValueError, match=r"queries: found torch\.float64 on cuda:0, expected"):
            self.choose("auto", torch.float64)

    def test_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for backend in ("auto", "triton"):
            with pytest.raises(RuntimeError, match="'triton' is not available, torch finds no GPU"):
                self.choose(backend)

    def test_no_triton(self, monkeypatch):
        import importlib.util

        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "triton" else found(name)
        )
        with pytest.raises(RuntimeError, match=r"triton is not installed: pip install"):
            self.choose("auto")


def test_the_kernel_checks_again():
    # The last line of defence: what Python has let through must not reach memory.
    from simtile import _core

    losses = np.empty(4)

    def launch(queries=Q, documents=D, dtype="float32", targets=None, grad=None, losses=losses):
        options = (
            None,
            dtype,
            0.05,
            True,
            targets,
            None,
            None,
            *Contrast(),
            *[None] * 3,
            1.0,
            None,
        )
        _core.info_nce(queries, documents, *options, losses, grad, None, None, 1)

    launch()
    for wrong in (
        {"queries": Q[:, ::2]},
        {"documents": D[:, :5]},
        {"dtype": "float64"},
        {"dtype": "int8"},
        {"targets": np.full(4, 9)},
        {"targets": np.arange(4, dtype=np.int32)},
        {"grad": np.empty((4, 6))},
        {"grad": np.empty((5, 6), np.float32)},
        {"losses": np.empty(3)},
        {"losses": np.empty(4, np.float32)},
    ):
        with pytest.raises(ValueError, match=": "):
            launch(**wrong)
