"""What tests of `simtile doctor` share: a check, the stored report, and what raises."""

import json
import types
import typing

from simtile import cli
from simtile.doctor import report
from simtile.doctor.results import Check


def check_of(compare):
    return Check("kernel", "cpu", "float32", "7", "values", compare)


def conforms(value, wanted, where="report"):
    """Fail unless plain JSON data has the form of a TypedDict."""
    if typing.is_typeddict(wanted):
        assert isinstance(value, dict), where
        hints = typing.get_type_hints(wanted)
        assert value.keys() == hints.keys(), where
        for key, hint in hints.items():
            conforms(value[key], hint, f"{where}.{key}")
    elif typing.get_origin(wanted) is list:
        assert isinstance(value, list), where
        for i, item in enumerate(value):
            conforms(item, typing.get_args(wanted)[0], f"{where}[{i}]")
    elif typing.get_origin(wanted) is dict:
        assert isinstance(value, dict), where
    elif typing.get_origin(wanted) in (typing.Union, types.UnionType):
        assert isinstance(value, typing.get_args(wanted)), where
    elif wanted is float:
        # nan and inf are strings, which JSON has
        assert type(value) in (int, float) or value in ("nan", "inf", "-inf"), where
    else:
        assert type(value) is wanted, where


def run_cli(tmp_path, capsys, *arguments):
    """Exit status, what was printed, and the stored report."""
    path = tmp_path / "report.json"
    status = cli.main(["doctor", "--output", str(path), *arguments])
    stored = json.loads(path.read_text())
    conforms(stored, report.Report)
    assert list(tmp_path.iterdir()) == [path]
    return status, capsys.readouterr().out, stored


def raises(error):
    def function(*arguments, **options):
        raise error

    return function
