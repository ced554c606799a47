"""Operations whose Triton kernels several modules launch, seen as one by triton_launches."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import triton
import triton_launches

HOSTS = {
    "info_nce": (
        "info_nce_triton",
        "info_nce_triton_blocks",
        "info_nce_triton_call",
        "info_nce_triton_contrast",
        "info_nce_triton_gradients",
    ),
    "maxsim": ("maxsim_triton", "maxsim_triton_call", "maxsim_triton_gradients"),
}


@contextmanager
def intercepted(operation: str, do: Callable[[triton_launches.Launch], None]) -> Iterator[None]:
    """Within it, what a call of the operation would launch is `do(launch)`."""
    with ExitStack() as stack:
        for name in HOSTS[operation]:
            host = importlib.import_module(f"simtile.ops.{name}")
            for attribute, value in list(vars(host).items()):
                if isinstance(value, ModuleType) and _has_kernels(value):
                    stack.enter_context(triton_launches.intercepted(host, do, attribute))
        yield


def _has_kernels(module: ModuleType) -> bool:
    return module.__name__.startswith("simtile.kernels.") and any(
        isinstance(value, triton.JITFunction) for value in vars(module).values()
    )
