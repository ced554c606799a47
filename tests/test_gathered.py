"""Losses of this rank's rows against all ranks' candidates, beside the originals on 2 processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Two processes that import transformers.
pytestmark = pytest.mark.deep

RANKS = 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gathered")
    worker = Path(__file__).with_name("gathered_worker.py")
    logs = [directory / f"rank{rank}.txt" for rank in range(RANKS)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, worker, str(rank), str(RANKS), directory], stderr=file
                )
            )
    try:
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(directory / f"rank{r}.pt", weights_only=False) for r in range(RANKS)]


def test_loss_and_gradients(results):
    assert results[0][0].keys() == results[1][0].keys()
    assert len(results[0][0]) == 27
    for found, _ in results:
        for name, (*theirs, ours) in found.items():
            for one in theirs:
                for expected, mine in zip(one, ours, strict=True):
                    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-5
                    torch.testing.assert_close(
                        mine,
                        expected,
                        rtol=tolerance,
                        atol=tolerance,
                        msg=lambda m, n=name: f"{n}: {m}",
                    )


def test_ranks_with_different_numbers_of_rows_are_refused(results):
    for _, message in results:
        assert message == (
            "gather_across_devices: found [3, 4] rows on the ranks, expected as many on each"
        )
