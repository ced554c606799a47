"""Checks of arguments: each error names the argument, what was found and what was expected.

Nothing here imports torch, and the shape checks see only shapes, so they serve arrays and tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._tensors import to_array

Array = npt.NDArray[Any]
Shape = Sequence[int]

BACKENDS = ("auto", "cpu", "triton", "cuda", "reference")
PRECISIONS = ("ieee", "tf32", "tf32x3")
REDUCTIONS = ("mean", "sum", "none")
MOST_THREADS = 1024

# The four element types of the kernels by NumPy dtype; bfloat16 comes from a package that is not
# imported here and joins when it is first seen.
_DTYPE_NAMES: dict[Any, str] = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float64): "float64",
    np.dtype(np.float16): "float16",
}


def explain_missing(error: ModuleNotFoundError, why: str) -> ModuleNotFoundError:
    """What to raise when an import of torch has failed; `error` itself if it is about another."""
    if error.name != "torch":
        return error
    return ModuleNotFoundError(
        f"{why} and torch is not installed: pip install 'simtile[torch]', or use "
        "simtile.info_nce_grad with NumPy arrays",
        name="torch",
    )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of the strings in `choices`."""
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: found {value!r}, expected one of {expected}")


def to_int(name: str, value: Any, expected: str = "an int") -> int:
    """A whole number of any type but bool."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: found {value!r}, expected {expected}") from None


NO_NUMBERS = (bool, np.bool_, str, bytes, complex, np.complexfloating)


def to_float(name: str, value: Any, expected: str = "a number") -> float:
    """A number of any type but bool; no text."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)  # also what torch compiles, which knows no more of it
        if isinstance(value, NO_NUMBERS) or not hasattr(value, "__float__"):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: found {value!r}, expected {expected}") from None
    except OverflowError:
        raise ValueError(f"{name}: found an int beyond every float, expected {expected}") from None


def check_flag(name: str, value: Any) -> bool:
    """True or False, as Python takes any one object."""
    if isinstance(value, (str, bytes)):  # "no" would be True
        raise TypeError(f"{name}: found {value!r}, expected True or False")
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: found {type(value).__name__} {list(np.shape(value))}, expected True or False"
        ) from None


def check_array_backend(backend: str, function: str = "simtile.info_nce") -> str:
    """The backend that runs NumPy arrays; `function` is the one that takes tensors."""
    check_choice("backend", backend, BACKENDS)
    if backend in ("triton", "cuda"):
        raise RuntimeError(
            f"backend: {backend!r} runs on torch tensors on a GPU; for NumPy arrays use 'cpu' (or "
            f"'auto'), or give the tensors to {function}"
        )
    return "cpu" if backend == "auto" else backend


def check_precision(precision: str) -> str:
    check_choice("precision", precision, PRECISIONS)
    return precision


def check_threads(threads: int | None, name: str = "threads") -> int:
    """The number of threads, 0 for the default."""
    if threads is None:
        return 0
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"{name}: found {threads!r}, expected an int or None")
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(
            f"{name}: found {threads}, expected 1 to {MOST_THREADS}, or None for the default"
        )
    return int(threads)


OF_A_LOSS = "it divides the similarities; a scale of 20 is a temperature of 0.05"


def check_temperature(temperature: object, hint: str = OF_A_LOSS) -> float:
    """The temperature as a finite float above 0."""
    if isinstance(temperature, float):
        value = temperature
    else:
        if isinstance(temperature, np.ndarray) and temperature.ndim != 0:
            raise ValueError(
                f"temperature: found an array of shape {_axes(temperature.shape)}, expected one "
                "number"
            )
        value = to_float("temperature", temperature)
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature: found {value}, expected a finite number above 0 ({hint})")
    return value


def check_shapes(
    queries: Shape,
    documents: Shape,
    negatives: Shape | None,
    targets: Shape | None,
    query_ids: Shape | None,
    document_ids: Shape | None,
) -> None:
    """Check that shapes fit: [N, D], [M, D], [N, K, D], [N], [N] and [M]."""
    if len(queries) != 2:
        raise _not_a_matrix("queries", queries, "N")
    if len(documents) != 2:
        raise _not_a_matrix("documents", documents, "M")
    n, dim = queries
    m = documents[0]
    if n == 0:
        raise ValueError(
            f"queries: found shape {_axes(queries)}, expected at least one row; "
            "the loss of an empty batch is not defined, skip it"
        )
    if dim == 0:
        raise ValueError(f"queries: found shape {_axes(queries)}, expected at least one dimension")
    if documents[1] != dim:
        raise ValueError(
            f"documents: found shape {_axes(documents)}, expected [M, {dim}] because queries are "
            f"{_axes(queries)}"
        )
    if negatives is not None and (len(negatives) != 3 or negatives[0] != n or negatives[2] != dim):
        hint = "; one negative per query is x[:, None, :]" if len(negatives) == 2 else ""
        raise ValueError(
            f"negatives: found shape {_axes(negatives)}, expected [{n}, K, {dim}] because queries "
            f"are {_axes(queries)}{hint}"
        )
    if targets is None:
        if m < n:
            raise ValueError(
                f"documents: found {m} rows for {n} queries, expected at least {n} because "
                "document i belongs to query i; when queries share documents, say which with "
                "targets=[N]"
            )
    elif len(targets) != 1 or targets[0] != n:
        raise ValueError(f"targets: found shape {_axes(targets)}, expected [{n}], one per query")
    if query_ids is not None:
        if len(query_ids) != 1 or query_ids[0] != n:
            raise ValueError(
                f"query_ids: found shape {_axes(query_ids)}, expected [{n}], one per query"
            )
        if document_ids is None and (m != n or targets is not None):
            raise ValueError(
                f"document_ids: found None with query_ids [{n}], {m} documents"
                f"{' and targets' if targets is not None else ''}; expected [{m}]: only when "
                "document i belongs to query i and there are no others do query_ids serve for both"
            )
    if document_ids is not None and (len(document_ids) != 1 or document_ids[0] != m):
        raise ValueError(
            f"document_ids: found shape {_axes(document_ids)}, expected [{m}], one per document"
        )


def check_targets(targets: Array, documents: int) -> None:
    """Raise unless every target is the row of a document."""
    wrong = (targets < 0) | (targets >= documents)
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(
            f"targets: found {targets[first]} at [{first}], expected 0 to {documents - 1} "
            f"because there are {documents} documents"
        )


def complete_ids(
    query_ids: Array | None, document_ids: Array | None, targets: Array | None, queries: int
) -> tuple[Array | None, Array | None]:
    """Both id arrays from either: a query's document has the query's id."""
    if document_ids is None:
        return query_ids, query_ids
    if query_ids is None:
        query_ids = document_ids[:queries] if targets is None else document_ids[targets]
    return query_ids, document_ids


def float_array(name: str, x: object, tensors_go_to: str = "") -> tuple[Array, str]:
    """`x` as an array and the name of its element type.

    `tensors_go_to` is another function, for the hint; without it some arguments are arrays.
    """
    if type(x) is not np.ndarray:
        if type(x).__module__.partition(".")[0] == "torch":
            hint = f"; use {tensors_go_to}, or" if tensors_go_to else " as others here are;"
            raise TypeError(
                f"{name}: found a torch.Tensor, expected an array{hint} pass "
                "x.detach().cpu().numpy()"
            )
        x = to_array(name, x)
    dtype = x.dtype
    found = _DTYPE_NAMES.get(dtype)
    if found is None:
        if dtype.name == "bfloat16":
            if not dtype.isnative:
                return x.astype(dtype.newbyteorder("=")), "bfloat16"
            found = _DTYPE_NAMES[dtype] = "bfloat16"
        elif dtype.kind == "f" and dtype.newbyteorder("=") in _DTYPE_NAMES:  # foreign byte order
            x = x.astype(dtype.newbyteorder("="))
            found = _DTYPE_NAMES[x.dtype]
        else:
            raise ValueError(
                f"{name}: found {dtype} {_axes(x.shape)}, expected float32, float64, float16 or "
                f"ml_dtypes.bfloat16{_dtype_hint(dtype)}"
            )
    return x, found


def promote(names: Sequence[str]) -> str:
    """The element type that holds all of `names`, as torch and NumPy promote."""
    first = names[0]
    if all(name == first for name in names):
        return first
    return "float64" if "float64" in names else "float32"


def int_array(name: str, x: object) -> Array:
    """`x` as a contiguous int64 array."""
    array = to_array(name, x)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: found {array.dtype} {_axes(array.shape)}, expected integers"
            + (
                "; np.unique(x, return_inverse=True)[1] numbers any values"
                if name.endswith("_ids") or name == "labels"
                else ""
            )
        )
    return np.require(array, np.int64, ["C", "ALIGNED"])


def kernel_rows(x: Array) -> Array:
    """`x`, or a copy, with unit stride in the last axis and one stride for all rows."""
    strides = x.strides
    if strides[-1] == x.itemsize and strides[0] >= 0 and x.flags.aligned:
        if len(strides) == 2 and strides[0] % x.itemsize == 0:
            return x
        if len(strides) == 3 and strides[0] == x.shape[1] * strides[1] and strides[1] >= 0:
            return x
    return np.require(x, requirements=["C", "ALIGNED"])


def _axes(shape: Shape) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _not_a_matrix(name: str, shape: Shape, rows: str) -> ValueError:
    hint = "; a single vector is x[None, :]" if len(shape) == 1 else ""
    return ValueError(f"{name}: found shape {_axes(shape)}, expected [{rows}, D]{hint}")


def _dtype_hint(dtype: np.dtype[Any]) -> str:
    if dtype == np.uint16:
        return (
            "; uint16 is never read as bfloat16: pass x.view(ml_dtypes.bfloat16) if these are its "
            "bits"
        )
    if dtype.kind in "iub":
        return "; convert with x.astype(np.float32)"
    if dtype.kind in "US":
        return "; a model makes vectors of texts first, for example by its encode()"
    return ""
