"""What the host code of all Triton kernels asks of a device."""

from __future__ import annotations

import contextlib

import torch
import triton

from simtile.kernels.tile import triton as kernels

# TRITON_INTERPRET=1, set before the first import: kernels run in Python, on tensors of the CPU.
INTERPRETED = not isinstance(kernels.dot, triton.JITFunction)


def family(device: torch.device) -> str:
    """The row of CONFIGS for a device."""
    if INTERPRETED:
        return "sm80"
    if torch.version.hip is not None:
        name = str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
        if name.startswith("gfx9"):
            return "gfx942"
        raise RuntimeError(
            f"backend: 'triton' found the AMD device {name}, expected gfx942 or another gfx9"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise RuntimeError(
            f"backend: 'triton' found compute capability {major}.{minor}, expected 8.0 or newer"
        )
    if major == 8:
        return "sm80" if minor == 0 else "sm120"  # sm86, sm89: as little shared memory as sm120
    return {9: "sm90", 10: "sm100"}.get(major, "sm120")


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it launches are on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
