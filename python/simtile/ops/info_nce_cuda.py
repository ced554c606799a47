"""The CUDA forward of info_nce on tensors of torch: `kernels/info_nce/cuda.cuh` through `_cuda`.

Nothing here waits for the device or reads from it, so a call can be captured in a CUDA graph. What
could only be checked by reading (the values of targets and of a temperature tensor) makes the
result NaN where it is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simtile import _device, _gpu
from simtile.ops._tensors import address, as_index, complete_ids, temperature_on


def info_nce_losses(
    queries: Tensor,
    documents: Tensor,
    negatives: Tensor | None,
    *,
    dtype: torch.dtype,
    temperature: float | Tensor,
    normalize: bool = True,
    targets: Tensor | None = None,
    query_ids: Tensor | None = None,
    document_ids: Tensor | None = None,
    own_negatives: bool = False,
) -> Tensor:
    """The losses, float32 [N], on the current stream of the queries' device.

    Shapes and devices have been checked. `dtype` is what the inputs are converted to.

    Raises
    ------
    ValueError
        `dtype` is not bfloat16, or a tensor is not on a CUDA device.
    RuntimeError
        There is no CUDA module, driver or device, or CUDA reports an error.
    """
    if dtype != torch.bfloat16:
        raise ValueError(
            f"backend: 'cuda' found {str(dtype).removeprefix('torch.')} inputs, expected bfloat16; "
            "use x.bfloat16(), or 'triton' (or 'auto'), which takes float32 and float16 as well"
        )
    device, stream = queries.device, _device.call_stream(queries)
    n, m = queries.shape[0], documents.shape[0]
    k = 0 if negatives is None else negatives.shape[1]
    rows = {"queries": queries, "documents": documents}
    if k and negatives is not None:
        rows["negatives"] = negatives
    memory = {name: _device.view(name, _rows(x), stream) for name, x in rows.items()}
    query_ids, document_ids = complete_ids(query_ids, document_ids, targets, n, device)
    targets = as_index(targets, device)
    number = temperature_on(temperature, device) if isinstance(temperature, Tensor) else None
    losses = torch.empty((n,), dtype=torch.float32, device=device)

    def data(name: str) -> int:
        return memory[name].pointer if name in memory else 0

    def stride(name: str) -> int:  # in elements
        return memory[name].strides[0] // memory[name].itemsize if name in memory else 0

    cuda = _gpu.cuda_module()
    arguments = cuda.InfoNceForwardArgs(
        rows=n,
        documents=m,
        negatives=k,
        dimensions=queries.shape[1],
        queries_data=data("queries"),
        queries_stride=stride("queries"),
        documents_data=data("documents"),
        documents_stride=stride("documents"),
        negatives_data=data("negatives"),
        negatives_stride=stride("negatives"),
        temperature_data=address(number),
        temperature=1.0 if isinstance(temperature, Tensor) else temperature,
        normalize=normalize,
        own_negatives=own_negatives,
        targets=address(targets),
        query_ids=address(query_ids),
        document_ids=address(document_ids),
        losses=losses.data_ptr(),
        row_maxima=0,
        row_log_sums=0,
    )
    # Copies made here may be freed as soon as this returns: torch gives their memory to nothing
    # that runs before the kernel, which is on the same stream.
    cuda.info_nce_forward(arguments, device=memory["queries"].device, stream=stream)
    return losses


def _rows(x: Tensor) -> Tensor:
    """bfloat16 rows [n, D] of x [n, D] or [N, K, D], each without gaps."""
    x = x.detach().to(torch.bfloat16)
    if x.ndim == 3:
        x = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
