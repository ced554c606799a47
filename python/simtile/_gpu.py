"""What there is to run CUDA kernels on, and the compiled module that does."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

BUILD_HINT = (
    "build simtile with nvcc of CUDA 12.8 or newer on PATH and SIMTILE_CUDA=ON "
    "(pip install --config-settings=cmake.define.SIMTILE_CUDA=ON .)"
)


def cuda_module() -> ModuleType:
    """simtile._cuda.

    Raises
    ------
    RuntimeError
        It was not built, or does not load; it loads without a driver.
    """
    try:
        return importlib.import_module("simtile._cuda")
    except ModuleNotFoundError as error:
        if error.name != "simtile._cuda":
            raise
        raise RuntimeError(
            f"this installation of simtile has no CUDA module (simtile._cuda); {BUILD_HINT}"
        ) from None
    except ImportError as error:
        raise RuntimeError(f"simtile's CUDA module does not load: {error}; {BUILD_HINT}") from error


def gpu_info() -> dict[str, Any]:
    """Say what the CUDA module was built for and what it finds; raises nothing.

    Returns
    -------
    dict
        ``built``: whether the module is there and loads (bool);
        ``architectures``: what it has code for, as ``CMAKE_CUDA_ARCHITECTURES`` writes them
        (list of str): ``"86-real"`` is machine code, ``"120"`` machine code and PTX;
        ``runtime``, ``driver``: CUDA versions, ``"13.0"`` (str or None);
        ``devices``: a dict each with ``name``, ``compute_capability`` (``"9.0"``),
        ``multiprocessors``, ``shared_bytes_per_block``, ``memory_bytes``, ``l2_bytes``, or with
        ``error`` for one that cannot be used;
        ``error``: what is missing (str), None where kernels can run.
    """
    info: dict[str, Any] = {
        "built": False,
        "architectures": [],
        "runtime": None,
        "driver": None,
        "devices": [],
        "error": None,
    }
    try:
        cuda = cuda_module()
        info["built"] = True
        info["architectures"] = cuda.architectures()
        info["runtime"] = _version(cuda.runtime_version())
        info["driver"] = _version(cuda.driver_version())
        info["devices"] = [_device(cuda, index) for index in range(cuda.device_count())]
        if all("error" in device for device in info["devices"]):
            info["error"] = info["devices"][0]["error"] if info["devices"] else "no CUDA device"
    except Exception as error:  # whatever a broken installation raises is what is to be told
        info["error"] = str(error) or repr(error)
    return info


def _device(cuda: ModuleType, index: int) -> dict[str, Any]:
    try:
        info: dict[str, Any] = cuda.device_info(index)
    except Exception as error:
        return {"error": str(error)}
    major, minor = divmod(info["compute_capability"], 10)
    return {**info, "compute_capability": f"{major}.{minor}"}


def _version(number: int) -> str | None:
    """CUDA writes 13000 for 13.0, and 0 for a driver that is not there."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
