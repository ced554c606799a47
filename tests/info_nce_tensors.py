"""info_nce of the tests' cases as tensors."""

import numpy as np
import torch
from info_nce_cases import as_tensor

import simtile
from simtile._contrast import SCOPES, Contrast

REDUCTIONS = ["mean", "sum", "none"]
OPTIONS = ("normalize", "negatives_scope", "targets", "query_ids", "document_ids")


def tensors(case, *, requires_grad=True):
    """queries, documents and negatives."""
    inputs = [as_tensor(x) for x in case.inputs]
    for x in inputs:
        if x is not None and requires_grad:
            x.requires_grad_()
    return inputs


def tensor_options(case):
    """The keyword arguments of info_nce without the temperature."""
    values = {name: case.options[name] for name in OPTIONS}
    arrays = {k: as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return {**arrays, "threads": 1}


def loss_of(case, inputs, temperature=None, **more):
    temperature = case.temperature if temperature is None else temperature
    return simtile.info_nce(*inputs, temperature=temperature, **tensor_options(case), **more)


def assert_same_bits(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            x, y = torch.as_tensor(x), torch.as_tensor(y)
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def op_arguments(case, reduction, need=(True, True, True, True)):
    """The arguments of the operator simtile::info_nce."""
    temperature = torch.tensor(case.temperature, dtype=torch.float64)
    inputs = [*tensors(case, requires_grad=False), temperature]
    inputs = [
        x if x is None else x.clone().requires_grad_(n) for x, n in zip(inputs, need, strict=True)
    ]
    need = [x is not None and n for x, n in zip(inputs, need, strict=True)]
    indices = [as_tensor(case[name]) for name in ("targets", "query_ids", "document_ids")]
    dtype = getattr(torch, case.dtype)
    contrast = Contrast(scope=SCOPES["own" if case.own else "all"]).numbers()
    options = (case.normalize, contrast, dtype, need, "cpu", "ieee", 1, reduction, False)
    return (*inputs, *indices, None, None, None, *options)
