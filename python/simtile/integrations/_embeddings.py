"""Embeddings as sentence-transformers' users hold them, arrays, tensors or lists, and its results.

torch is never imported here: where there is a tensor, its owner has done so.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from simtile._tensors import is_tensor

Array = npt.NDArray[Any]
Hits = list[list[dict[str, Any]]]


def to_numpy(name: str, x: Any) -> Array:
    """An array or a dense tensor as an array, bfloat16 as float32."""
    if not is_tensor(x):
        return np.asarray(x)
    x = dense(name, x)
    if str(x.dtype) == "torch.bfloat16":
        x = x.float()
    array: Array = x.cpu().numpy()
    return array


def dense(name: str, tensor: Any) -> Any:
    """The tensor without its gradient."""
    if tensor.layout != sys.modules["torch"].strided:
        raise TypeError(f"{name}: found a {tensor.layout} tensor, expected a dense one: to_dense()")
    return tensor.detach()


def common(queries: Any, documents: Any) -> tuple[Any, Any]:
    """Queries [Q, D] and documents: both arrays, or both tensors on the documents' device."""
    queries = _stacked("query_embeddings", queries)
    documents = _stacked("corpus_embeddings", documents)
    if is_tensor(documents) and documents.device.type != "cpu":
        documents = dense("corpus_embeddings", documents)
        if is_tensor(queries):
            queries = dense("query_embeddings", queries).to(documents.device)
        else:
            queries = documents.new_tensor(queries)
    else:
        queries = to_numpy("query_embeddings", queries)
        documents = to_numpy("corpus_embeddings", documents)
    return (queries[None] if queries.ndim == 1 else queries), documents


def hits(scores: Any, ids: Any) -> Hits:
    """[Q, k] arrays or tensors as lists of dictionaries, without the places that are empty."""
    return [
        [
            {"corpus_id": id, "score": float(score)}
            for id, score in zip(own_ids, own_scores, strict=True)
            if id >= 0
        ]
        for own_ids, own_scores in zip(ids.tolist(), scores.tolist(), strict=True)
    ]


def _stacked(name: str, x: Any) -> Any:
    """A list of vectors as a matrix; plain numbers become float32, as torch has them."""
    if is_tensor(x) or isinstance(x, np.ndarray):
        return x
    if len(x) and (is_tensor(x[0]) or isinstance(x[0], np.ndarray)):
        return np.stack([to_numpy(name, row) for row in x])
    return np.asarray(x, np.float32)
