"""Search by every backend that can be tested, behind the arguments of `_core.topk`.

`reference` is the lists of Python; `cpu[...]` every level of this machine. All are compared with
the NumPy oracle, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from info_nce_backends import cpu_level
from search_cases import DIMS, DOCUMENTS, KINDS, QUERIES, Lists, cases

from simtile import _core


@dataclass(frozen=True)
class Backend:
    """`call(run)` is `run(module)` with a module that has the functions of `_core`."""

    name: str
    call: Callable[[Callable[[Any], Any]], Any]
    kinds: tuple[str, ...] = KINDS
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    share: float = 1.0  # of the profile's examples

    def search(self, test: Callable[..., None], *others: Any, **fixed: Any) -> None:
        """`test(case, …)` for as many cases as the profile and the backend's share ask."""
        sizes = {"documents": DOCUMENTS, "queries": QUERIES, "dims": DIMS, **self.sizes}
        drawn = given(cases(**{"kinds": self.kinds, **sizes, **fixed}), *others)
        examples = max(3, round(settings.default.max_examples * self.share))
        settings(max_examples=examples)(drawn(test))()


def on_level(level):
    def call(run):
        with cpu_level(level):
            return run(_core)

    return call


SMALL = {"documents": (0, 1, 7, 33), "queries": (0, 1, 3), "dims": (1, 3, 7, 33, 70)}
LEVELS = _core.cpu_info()["detected"]
# One level is searched in full, what lies below it with a part of the examples.
BACKENDS = [
    Backend("reference", lambda run: run(Lists), sizes=SMALL, share=0.2),
    *(
        Backend(f"cpu[{level}]", on_level(level), share=1.0 if level == LEVELS[-1] else 0.2)
        for level in LEVELS
    ),
]
THREADS = (1, 2, 5)
threads = st.sampled_from(THREADS)


def every_backend(*, without=()):
    """Parametrises a test by `backend`."""
    return pytest.mark.parametrize(
        "backend", [pytest.param(b, id=b.name) for b in BACKENDS if b.name not in without]
    )
