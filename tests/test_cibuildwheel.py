"""The configuration of releases in pyproject.toml, as cibuildwheel reads it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="cibuildwheel needs Python 3.11 or newer"
)

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ["cp310", "cp311", "cp312", "cp313", "cp314"]
BUILDS = {
    "linux": [f"{p}-manylinux_{cpu}" for cpu in ("x86_64", "aarch64") for p in PYTHONS],
    "macos": [f"{p}-macosx_arm64" for p in PYTHONS],
}


def identifiers(platform, project=ROOT):
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    return subprocess.run(
        [*command, "--platform", platform, str(project)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("platform", BUILDS)
def test_what_is_built(platform):
    result = identifiers(platform)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split()) == sorted(BUILDS[platform])


def test_an_option_that_cibuildwheel_does_not_know_is_an_error(tmp_path):
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text.replace("test-command =", "test-comand ="))
    result = identifiers("linux", tmp_path)
    assert result.returncode != 0
    assert "test-comand" in result.stderr
