"""What `simtile doctor` finds on a machine, and why a GPU's backends cannot run."""

import sys
import types

import pytest
from doctor_reports import raises

from simtile.doctor import found


def test_every_probe_may_fail(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("broken")

    for name in ("load", "_cpu_info", "_driver", "_cuda_module"):
        monkeypatch.setattr(found, name, broken)
    facts = found.facts()
    failed = {fact["name"] for fact in facts if fact["error"]}
    assert failed >= {"processor", "ISA level", "threads", "numpy", "torch", "triton", "driver"}
    assert all(fact["error"].startswith("RuntimeError: broken") for fact in facts if fact["error"])
    assert found.why_no_gpu().startswith("RuntimeError: broken")
    assert found.why_no_triton().startswith("RuntimeError: broken")
    assert found.why_no_cuda().startswith("RuntimeError: broken")


def test_only_variables_that_matter_are_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    told = found.environment()
    assert told["CUDA_VISIBLE_DEVICES"] == "1"
    assert "SOME_TOKEN" not in told


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'NVIDIA H100, 580.1, 81559 MiB'", "nvidia-smi: NVIDIA H100, 580.1, 81559 MiB"),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch",
        ),
        ("exit 9", "nvidia-smi: exit status 9"),
    ],
)
def test_what_nvidia_smi_says(body, said, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert said in found._driver()


def fake_torch(monkeypatch, **cuda):
    """A torch module with a `cuda` of one's own; "zeros" may raise."""
    zeros = cuda.pop("zeros", lambda *a, **k: types.SimpleNamespace(device="cuda:0"))
    torch = types.ModuleType("torch")
    torch.__version__ = "9.9"
    torch.version = types.SimpleNamespace(
        cuda=cuda.pop("version", "13.0"), hip=cuda.pop("hip", None)
    )
    torch.cuda = types.SimpleNamespace(synchronize=lambda device: None, **cuda)
    torch.zeros = zeros
    monkeypatch.setitem(sys.modules, "torch", torch)


@pytest.mark.parametrize(
    ("cuda", "why"),
    [
        ({"is_available": lambda: True}, ""),
        ({"version": None}, "torch 9.9 is built without CUDA and ROCm"),
        (
            {
                "is_available": lambda: False,
                "zeros": raises(RuntimeError("The NVIDIA driver on your system is too old")),
            },
            "RuntimeError: The NVIDIA driver on your system is too old",
        ),
        (
            {"is_available": lambda: True, "zeros": raises(RuntimeError("CUDA error: unknown"))},
            "RuntimeError: CUDA error: unknown",
        ),
        ({"is_available": lambda: False}, "torch.cuda.is_available() is False"),
    ],
)
def test_why_there_is_no_gpu(cuda, why, monkeypatch):
    fake_torch(monkeypatch, **cuda)
    said = found.why_no_gpu()
    assert said.startswith(why)
    assert bool(said) == bool(why)


def test_why_a_backend_cannot_run(monkeypatch):
    monkeypatch.setattr(found, "load", lambda name: sys.modules.get(name))
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    gpu_info = {"error": None}
    monkeypatch.setattr("simtile._gpu.gpu_info", lambda: gpu_info)

    fake_torch(monkeypatch, get_device_capability=lambda: (9, 0))
    assert found.why_no_triton() == found.why_no_cuda() == ""
    gpu_info["error"] = "no CUDA module"
    assert found.why_no_cuda() == "no CUDA module"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET is set" in found.why_no_triton()
    monkeypatch.delenv("TRITON_INTERPRET")

    gpu_info["error"] = None
    fake_torch(monkeypatch, get_device_capability=lambda: (7, 5))
    assert "sm_75" in found.why_no_triton()
    assert "sm_75" in found.why_no_cuda()

    fake_torch(monkeypatch, version=None, hip="6.4", get_device_capability=lambda: (9, 4))
    assert found.why_no_triton() == ""
    assert "NVIDIA" in found.why_no_cuda()

    monkeypatch.delitem(sys.modules, "triton")
    assert "triton is not installed" in found.why_no_triton()
