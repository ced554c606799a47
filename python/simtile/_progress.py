"""How far a long call has come, told to the caller's function or shown by rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], object]


@contextmanager
def reporter(progress: bool | Report | None, what: str) -> Iterator[Report]:
    """A function of how much is done and how much there is.

    Raises
    ------
    TypeError
        `progress` is neither a bool nor callable.
    ModuleNotFoundError
        It is True and rich is not installed.
    """
    if progress is None or progress is False:
        yield lambda done, total: None
    elif callable(progress):
        yield progress
    elif progress is True:
        with _bar(what) as report:
            yield report
    else:
        raise TypeError(
            f"progress: found {progress!r}, expected True, or a function of (done, total)"
        )


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    try:
        from rich.progress import Progress
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "rich":
            raise
        raise ModuleNotFoundError(
            "progress: True shows a bar with rich, which is not installed: pip install rich, or "
            "pass a function of (done, total)",
            name="rich",
        ) from None
    with Progress() as shown:
        task = shown.add_task(what)
        yield lambda done, total: shown.update(task, completed=done, total=total)
