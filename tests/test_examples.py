"""The examples that train MiniLM, for a few steps, where what they need is installed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simtile.demo import minilm

pytestmark = pytest.mark.deep

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name, *needed):
    try:
        minilm.find_model()
    except minilm.MissingModel as error:
        pytest.skip(str(error))
    for package in needed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    command = [sys.executable, EXAMPLES / name, "--steps", "2", "--batch", "8"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize("name", ["simcse_unsupervised.py", "simcse_supervised.py"])
def test_simcse(name):
    before, step, after = run(name).splitlines()
    recalls = [re.search(r"recall@10 (0\.\d+)", line) for line in (before, after)]
    # Two steps change little of what MiniLM finds, and chance is 10 of hundreds.
    assert all(float(found[1]) > 0.5 for found in recalls)
    assert float(re.fullmatch(r"step +1  loss (\S+)", step)[1]) < 3.0


def test_trainer():
    table, largest = run("trainer.py", "accelerate", "datasets").strip().rsplit("\n", 1)
    assert "step  sentence-transformers  simtile" in table
    assert float(re.fullmatch(r"largest difference of 2 steps: (\S+)", largest)[1]) < 1e-4
