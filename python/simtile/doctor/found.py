"""What this machine has. Every probe may fail: it then says how, and the next one goes on."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from simtile.doctor.report import Fact
from simtile.doctor.results import describe

# What decides how the kernels, torch, Triton and the drivers run, and is not a secret.
VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "ROCR_VISIBLE_DEVICES",
    "SIMTILE_ISA",
    "SIMTILE_NUM_THREADS",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
    "TRITON_OVERRIDE_ARCH",
    "TRITON_PTXAS_PATH",
)


def probe(name: str, find: Callable[[], str]) -> Fact:
    """What `find` says, or what went wrong in it."""
    try:
        return {"name": name, "value": find(), "error": ""}
    except Exception as error:
        return {"name": name, "value": "", "error": describe(error)}


def facts() -> list[Fact]:
    """Everything that was found, in the order in which it is shown."""
    return [
        probe("processor", _processor),
        probe("ISA level", _level),
        probe("threads", _threads),
        probe("system", lambda: f"{platform.platform()}, {platform.machine()}"),
        probe("Python", platform.python_version),
        probe("numpy", lambda: _version("numpy")),
        probe("torch", _torch),
        probe("triton", lambda: _version("triton")),
        probe("CUDA module", _cuda_module),
        probe("driver", _driver),
        probe("GPUs", _gpus),
    ]


def environment() -> dict[str, str]:
    """The variables that matter and are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _processor() -> str:
    info = _cpu_info()
    caches = ", ".join(f"{name} {info[name] or 'unknown'}" for name in ("l1d", "l2", "l3"))
    return f"{info['brand'] or info['vendor'] or 'unknown'}, {os.cpu_count()} CPUs, caches {caches}"


def _level() -> str:
    info = _cpu_info()
    forced = ", forced by SIMTILE_ISA" if info["forced"] else ""
    return f"{info['level']} (found: {', '.join(info['detected'])}{forced})"


def _threads() -> str:
    info = _cpu_info()
    return f"{info['threads']} (from {info['threads_source']})"


def _cpu_info() -> dict[str, Any]:
    import simtile

    return simtile.cpu_info()


def load(name: str) -> ModuleType | None:
    """The module, or None where it is not installed; any other failure is raised."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise


def _version(name: str) -> str:
    module = load(name)
    return "not installed" if module is None else str(getattr(module, "__version__", "unknown"))


def _torch() -> str:
    torch = load("torch")
    if torch is None:
        return "not installed"
    built = "without CUDA or ROCm"
    if torch.version.cuda:
        built = f"for CUDA {torch.version.cuda}"
    elif torch.version.hip:
        built = f"for ROCm {torch.version.hip}"
    return f"{torch.__version__}, built {built}"


def _cuda_module() -> str:
    from simtile._gpu import gpu_info

    info = gpu_info()
    if not info["built"]:
        return str(info["error"])
    driver = f"driver for CUDA {info['driver']}" if info["driver"] else "no driver"
    found = f"for {', '.join(info['architectures'])}, CUDA {info['runtime']}, {driver}"
    return f"{found}; {info['error']}" if info["error"] else found


def _driver() -> str:
    """The kernel module's own word, then nvidia-smi's: they differ after an update."""
    said = []
    for path in (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version")):
        if path.exists():
            line = path.read_text().splitlines()[0]
            said.append(line.partition("  Release Build")[0].strip())  # then who compiled it
    query = shutil.which("nvidia-smi")
    if query is not None:
        fields = "--query-gpu=name,driver_version,memory.total"
        done = subprocess.run(
            [query, fields, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        text = " | ".join((done.stdout + done.stderr).strip().splitlines())
        said.append(f"nvidia-smi: {text or f'exit status {done.returncode}'}")
    if not said and Path("/dev/kfd").exists():
        said.append("an AMD GPU's (/dev/kfd)")
    return "; ".join(said) or "none found"


def _gpus() -> str:
    torch = load("torch")
    if torch is None:
        return "not known: torch is not installed"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "none that torch can use"


def why_no_gpu() -> str:
    """Why kernels cannot run on a GPU here; "" if they can."""
    try:
        torch = load("torch")
        if torch is None:
            return "torch is not installed: pip install 'simtile[gpu]'"
        if not torch.version.cuda and not torch.version.hip:
            return f"torch {torch.__version__} is built without CUDA and ROCm"
        if torch.cuda.is_available():
            torch.cuda.synchronize(torch.zeros(1, device="cuda").device)  # a driver that works
            return ""
        torch.zeros(1, device="cuda")  # says what is_available() does not
        return "torch.cuda.is_available() is False"
    except Exception as error:
        return describe(error)


def why_no_triton() -> str:
    """Why the Triton kernels cannot run on the GPU that torch has; "" if they can."""
    try:
        if load("triton") is None:
            return "triton is not installed: pip install 'simtile[gpu]'"
        if os.environ.get("TRITON_INTERPRET", "0") != "0":
            return "TRITON_INTERPRET is set: kernels would run in Python; unset it"
        return _too_old()
    except Exception as error:
        return describe(error)


def why_no_cuda() -> str:
    """Why the CUDA kernels cannot run on the GPU that torch has; "" if they can."""
    try:
        torch = load("torch")
        if torch is None or not torch.version.cuda:
            return "they are for NVIDIA GPUs, and torch is not built for CUDA"
        from simtile._gpu import gpu_info

        return gpu_info()["error"] or _too_old()
    except Exception as error:
        return describe(error)


def _too_old() -> str:
    torch = importlib.import_module("torch")
    major, minor = torch.cuda.get_device_capability()
    if torch.version.cuda and major < 8:
        return f"the GPU is sm_{major}{minor}; the kernels need sm_80 or later"
    return ""
