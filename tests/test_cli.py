"""The `simtile` command: what it prints, and how it says no."""

import os
import subprocess
import sys

import pytest

import simtile
from simtile import cli


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"simtile {simtile.__version__}\n"


def test_without_a_command_it_shows_the_help(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert "info" in shown
    assert "demo" in shown
    assert "--quick" not in shown


def test_info(capsys):
    assert cli.main(["info"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    info = simtile.cpu_info()
    assert shown["simtile"] == simtile.__version__
    assert shown["threads"] == f"{info['threads']} (from {info['threads_source']})"
    assert info["level"] in shown["ISA"]


def test_info_needs_numpy_only():
    hidden = "import sys\nfor name in ('rich', 'matplotlib', 'torch'): sys.modules[name] = None\n"
    code = hidden + "from simtile.cli import main\nsys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ISA level" in done.stdout


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "unknown"), (49152, "48 KiB"), (2 << 20, "2 MiB"), (1310720, "1.25 MiB")],
)
def test_sizes(size, text):
    assert cli._size(size) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["demo", "--threads", "0"], "--threads: found '0', expected a whole number from 1 to"),
        (["demo", "--threads", "two"], "--threads: found 'two', expected a whole number"),
        (["demo", "--seed", "-1"], "--seed: found '-1', expected a whole number from 0"),
        (["demo", "--corpus", "x.jsonl"], "--corpus: its texts must be embedded, which needs"),
    ],
)
def test_usage_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "named"),
    [(("rich",), "rich"), (("rich", "matplotlib"), "rich and matplotlib")],
)
def test_missing_packages_are_named(missing, named, monkeypatch, capsys):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert f"the demo needs {named}: pip install 'simtile[demo]'" in error


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "file" / "plots")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"simtile: error: --output {tmp_path}")
    assert "cannot write there" in error


def test_interrupt(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_demo", interrupted)
    assert cli.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_closed_pipe(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "simtile.cli", "demo", "--quick", "--output", str(tmp_path)],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ""
