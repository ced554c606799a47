"""A GPU by way of torch: arrays there and back, cold-cache times, and the rates it reaches."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simtile.doctor.report import Peak
from simtile.doctor.results import describe

LEAST_FLUSH = 512 << 20  # bytes: more than caches torch does not tell of, as MI300's 256 MiB
COPIED = 1 << 30  # bytes
MATRIX = 8192  # rows and columns of the matrix products that peaks are measured with
PEAK_REPEATS = 10

# What cuBLAS multiplies with where that is more than mma.sync, by major compute capability.
LIBRARY_UNITS = {9: ", by wgmma", 10: ", by tcgen05"}
# Hopper's mma.sync, which cuBLAS does not use there: 62.9 % of the tensor cores' peak on average
# (Luo et al. 2024, arXiv:2402.13499), that peak being these operations a clock and multiprocessor.
MMA_SYNC_SHARE = 0.629
HOPPER_OPERATIONS = {"tf32": 2048, "float16": 4096, "bfloat16": 4096, "int8": 8192}


class TorchDevice:
    """One device of torch's; what the registry of GPU checks runs on."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)
        self._flush: Tensor | None = None
        self._flush_seconds = 0.0

    # -- what it is --

    @property
    def properties(self) -> Any:
        return torch.cuda.get_device_properties(self.device)

    @property
    def is_cuda(self) -> bool:
        return torch.version.cuda is not None

    @property
    def capability(self) -> int:
        """10 · major + minor of an NVIDIA GPU: 80, 90, 120."""
        return int(10 * self.properties.major + self.properties.minor)

    @property
    def l2_bytes(self) -> int:
        return int(getattr(self.properties, "L2_cache_size", 0))  # older torch does not tell

    def description(self) -> str:
        found = self.properties
        kind = f"sm_{self.capability}" if self.is_cuda else found.gcnArchName
        return (
            f"{found.name}, {kind}, {found.multi_processor_count} multiprocessors, "
            f"{found.total_memory / 2**30:.0f} GiB, L2 {self.l2_bytes / 2**20:.0f} MiB"
        )

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0])

    # -- arrays --

    def upload(self, stored: npt.NDArray[Any]) -> Tensor:
        """A copy on the device; uint16 holds the bits of bfloat16."""
        if stored.dtype == np.uint16:
            bits = torch.from_numpy(stored.view(np.int16).copy())
            return bits.to(self.device).view(torch.bfloat16)
        return torch.from_numpy(stored.copy()).to(self.device)

    def download(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy in NumPy's memory; of bfloat16 in float32, which holds it exactly."""
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return np.array(tensor.cpu().numpy())

    def poison(self) -> None:
        """Fill memory that torch hands out next with NaN: nothing may rely on what was there."""
        sizes = (64 << 20, *[512 << 10] * 16)
        blocks = [torch.empty(n, dtype=torch.uint8, device=self.device) for n in sizes]
        for block in blocks:
            block.fill_(0xFF)

    # -- time --

    def seconds(self, call: Callable[[], object], repeats: int) -> list[float]:
        """Time on the device of single calls that find nothing in its caches.

        Before each call a buffer larger than the L2 cache is written, often enough that the host
        has queued the call before the writes are done: launches are not in the time.
        """
        for _ in range(2):  # compiled, loaded, memory allocated
            call()
        buffer = self._flush_buffer()
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
        writes = 1 + math.ceil(host / self._flush_seconds)
        samples = []
        for _ in range(repeats):
            for _ in range(writes):
                buffer.zero_()
            samples.append(self._elapsed(call))
        return samples

    def _elapsed(self, call: Callable[[], object]) -> float:
        new_event: Any = torch.cuda.Event
        before, after = new_event(enable_timing=True), new_event(enable_timing=True)
        before.record()
        call()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    def _flush_buffer(self) -> Tensor:
        if self._flush is None:
            size = max(2 * self.l2_bytes, LEAST_FLUSH)
            self._flush = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._flush.zero_()
            times = [self._elapsed(self._flush.zero_) for _ in range(5)]
            self._flush_seconds = max(statistics.median(times), 1e-6)
        return self._flush

    # -- peaks --

    def peaks(self) -> list[Peak]:
        """Rates that torch's own kernels reach, and what mma.sync reaches where that is less."""
        count = min(COPIED, self.free_bytes() // 8) // 4
        copied = f"of {4 * count / 2**20:.0f} MiB"
        found = [
            self._peak("memory copy", "bytes/s", f"Tensor.copy_ {copied}", self._copy, count),
            self._peak("memory read", "bytes/s", f"Tensor.sum {copied}", self._read, count),
        ]
        generation = self.capability // 10 if self.is_cuda else 0
        library = "cuBLAS" if self.is_cuda else "hipBLASLt or rocBLAS"
        for name in ("float32", "tf32", "float16", "bfloat16", "int8"):
            function = "torch._int_mm" if name == "int8" else "torch.mm"
            unit = "" if name == "float32" else LIBRARY_UNITS.get(generation, "")
            how = f"{function} of {MATRIX} x {MATRIX} ({library}{unit})"
            found.append(self._peak(f"{name} matmul", "operations/s", how, self._matmul, name))
        if generation in LIBRARY_UNITS:
            found += [self._mma_sync(name) for name in HOPPER_OPERATIONS]
        return found

    def _peak(
        self, name: str, unit: str, how: str, measure: Callable[[Any], float], argument: object
    ) -> Peak:
        rate = None
        try:
            rate = measure(argument)
        except Exception as error:
            how = f"not measured by {how}: {describe(error)}"
        return {"name": name, "rate": rate, "unit": unit, "measured": rate is not None, "how": how}

    def _rate(self, work: float, call: Callable[[], object]) -> float:
        call()
        return work / statistics.median(self._elapsed(call) for _ in range(PEAK_REPEATS))

    def _copy(self, count: int) -> float:
        source = torch.ones(count, device=self.device)
        target = torch.empty_like(source)
        return self._rate(8.0 * count, lambda: target.copy_(source))

    def _read(self, count: int) -> float:
        source = torch.ones(count, device=self.device)
        return self._rate(4.0 * count, source.sum)

    def _matmul(self, name: str) -> float:
        # random values: on zeros the chip draws less power and clocks higher
        shape = (MATRIX, MATRIX)
        if name == "int8":
            a, b = (
                torch.randint(-128, 128, shape, dtype=torch.int8, device=self.device)
                for _ in range(2)
            )
            b = b.t()  # both by rows of the inner dimension: the other way is many times slower
            multiply = torch._int_mm
        else:
            dtype = torch.float32 if name == "tf32" else getattr(torch, name)
            a, b = (torch.randn(shape, device=self.device).to(dtype) for _ in range(2))
            multiply = torch.mm
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        try:
            return self._rate(2.0 * MATRIX**3, lambda: multiply(a, b))
        finally:
            torch.set_float32_matmul_precision(before)

    def _mma_sync(self, name: str) -> Peak:
        rate, how = None, "not measured: no figure for mma.sync on this architecture is known to us"
        clock = getattr(self.properties, "clock_rate", 0)  # kHz
        if self.capability // 10 == 9 and clock:
            per_clock = HOPPER_OPERATIONS[name] * self.properties.multi_processor_count
            rate = MMA_SYNC_SHARE * per_clock * clock * 1e3
            how = (
                f"not measured: {MMA_SYNC_SHARE:.1%} (Luo et al. 2024, arXiv:2402.13499) of "
                f"{HOPPER_OPERATIONS[name]} operations a clock and multiprocessor at {clock} kHz"
            )
        return {
            "name": f"{name} mma.sync",
            "rate": rate,
            "unit": "operations/s",
            "measured": False,
            "how": how,
        }
