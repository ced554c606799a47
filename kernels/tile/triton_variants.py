"""A Triton kernel as it is compiled ahead of time; the operations' triton_configs list theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

POINTERS = {"float32": "*fp32", "float64": "*fp64", "bfloat16": "*bf16", "float16": "*fp16"}


class Variant(NamedTuple):
    """A kernel for one family of GPUs, with its options."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    dtype: str
    expects: str | None  # "mma": a matrix instruction; "fma": float32 on no matrix unit; or None
    divisible: tuple[str, ...]  # arguments that are multiples of 16, as launches find them


def variant(
    name: str,
    kernel: Any,
    dtype: str,
    kinds: Mapping[str, str],
    constexprs: dict[str, Any],
    warps: int,
    stages: int = 1,
    expects: str | None = None,
) -> Variant:
    """`kinds` are the arguments that are not int32, in Triton's words."""
    names = [parameter.name for parameter in kernel.params]
    signature = {n: "constexpr" if n in constexprs else kinds.get(n, "i32") for n in names}
    # What a launch looks at: addresses, strides and the few sizes that are compiled for, all of
    # which 16 divides when it divides D.
    divisible = tuple(
        p.name
        for p in kernel.params
        if signature[p.name] not in ("constexpr", "fp32")
        and not (p.do_not_specialize or p.do_not_specialize_on_alignment)
    )
    return Variant(name, kernel, signature, constexprs, warps, stages, dtype, expects, divisible)
