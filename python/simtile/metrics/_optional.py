"""Imports of what a user may not have installed."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, package: str, function: str) -> Any:
    """The module; where it is missing, an error with the function that asked and what to install.

    An error about another module, which this one needs, is passed on.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"simtile.metrics.{function} needs {package}, which is not installed: "
            f"pip install {package}, or pip install 'simtile[metrics]' for all of simtile.metrics",
            name=error.name,
        ) from None
