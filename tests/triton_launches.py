"""Launches of Triton kernels seen as a GPU would get them, without one.

Host code runs as it is, on tensors of the CPU; what it would launch is handed to a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import triton
from triton.backends import compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature


class Launch(NamedTuple):
    """One launch: what Triton would compile for it, and what it would pass."""

    kernel: triton.JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # without those that are compiled in
    signature: dict[str, str]
    constexprs: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]  # num_warps, num_stages

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def key(self) -> str:
        """Equal for launches of the same machine code."""
        parts = (self.signature, self.constexprs, self.attributes, self.options)
        return f"{self.name} {parts}"

    def compile(self, arch: int) -> Any:
        """The kernel for sm_`arch`, as `launch` of a GPU of that kind would compile it."""
        if hasattr(self.kernel, "_pack_args"):
            source = ASTSource(self.kernel, self.signature, self.constexprs, self.attributes)
        else:  # Triton 3.2
            source = ASTSource(
                self.kernel,
                {n: kind for n, kind in self.signature.items() if kind != "constexpr"},
                {self.kernel.arg_names[i]: value for (i,), value in self.constexprs.items()},
                compiler.AttrsDescriptor.from_hints(
                    {i: 16 for (i,), own in self.attributes.items() if own}
                ),
            )
        target = GPUTarget("cuda", arch, 32)
        options = make_backend(target).parse_options(dict(self.options))
        return triton.compile(source, target=target, options=options.__dict__)


class _Intercepted:
    """In the place of a kernel: kernel[grid](…)."""

    def __init__(self, kernel: triton.JITFunction, do: Callable[[Launch], None]):
        self.kernel, self.do = kernel, do
        self.backend = make_backend(GPUTarget("cuda", 80, 32))
        self.bind = create_function_from_signature(kernel.signature, kernel.params, self.backend)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            bound, specialization, *_, options = self.bind(*args, **kwargs)
            if hasattr(self.kernel, "_pack_args"):
                _, signature, constexprs, attributes = self.kernel._pack_args(
                    self.backend, kwargs, bound, specialization, options
                )
            else:
                signature, constexprs, attributes = self.packed(bound, specialization)
            passed = {n: x for n, x in bound.items() if signature[n] != "constexpr"}
            self.do(Launch(self.kernel, grid, passed, signature, constexprs, attributes, options))

        return launch

    def packed(self, bound: dict[str, Any], types: tuple[str, ...]) -> tuple[dict[Any, Any], ...]:
        """What Triton 3.2 finds out for a launch, as `_pack_args` of newer ones gives it."""
        params = self.kernel.params
        found = self.backend.get_attrs_descriptor(params, tuple(bound.values()))
        compiled_in = {
            p.num: bound[p.name]
            for p in params
            if p.is_constexpr or bound[p.name] is None or p.num in found.get_constants()
        }
        of_arguments = iter(types)
        kinds = {p.name: "constexpr" if p.is_constexpr else next(of_arguments) for p in params}
        return (
            {p.name: "constexpr" if p.num in compiled_in else kinds[p.name] for p in params},
            {(i,): value for i, value in compiled_in.items()},
            {
                (i,): [["tt.divisibility", 16]]
                for i in found.arg_properties["tt.divisibility"]
                if i not in compiled_in
            },
        )


@contextmanager
def intercepted(host: Any, do: Callable[[Launch], None], name: str = "kernels") -> Iterator[None]:
    """Within it, `host` launching a kernel of its module `name` is `do(launch)`."""
    module = getattr(host, name)
    replaced = {
        kernel_name: _Intercepted(kernel, do)
        for kernel_name, kernel in vars(module).items()
        if isinstance(kernel, triton.JITFunction)
    }
    setattr(host, name, SimpleNamespace(**replaced))
    try:
        yield
    finally:
        setattr(host, name, module)
