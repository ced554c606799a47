"""No index file crashes, hangs or fills memory where it is opened: those that did, and new ones."""

import pytest
from fuzz_files import fuzz

TARGETS = ["FlatIndex", "CascadeIndex", "MultiVectorIndex"]


def check(target, folder, **until):
    number, failures = fuzz(target, keep=folder, **until)
    assert not failures, "\n".join(failures)
    assert number > 0


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files(target, tmp_path):
    check(target, tmp_path, seconds=60, files=40)


@pytest.mark.deep
@pytest.mark.parametrize("target", TARGETS)
def test_more_damaged_files(target, tmp_path):
    check(target, tmp_path, seconds=8, seed=1)
