"""SECURITY.md: nothing in the package executes what it reads."""

import ast
from pathlib import Path

import pytest

import simtile

PACKAGE = Path(simtile.__file__).parent
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Of a module or an object: torch.load, yaml.load, and torch.distributed's, which pickle.
METHODS = {"load_module", "unsafe_load", "read_pickle"}
PICKLING = {"broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list"}


def found(source):
    """Line and word of everything that could execute data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from ((node.lineno, n) for n in names if n.partition(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        if isinstance(call, ast.Name) and call.id in BUILTINS:
            yield node.lineno, call.id
        if not isinstance(call, ast.Attribute):
            continue
        if call.attr in METHODS | PICKLING:
            yield node.lineno, call.attr
        if call.attr == "load" and isinstance(call.value, ast.Name):
            options = {k.arg: k.value for k in node.keywords}
            refused = options.get("allow_pickle")
            numpy = call.value.id in ("np", "numpy")
            plain = numpy and isinstance(refused, ast.Constant) and refused.value is False
            if not plain and call.value.id in ("np", "numpy", "torch", "yaml"):
                yield node.lineno, f"{call.value.id}.load"


def test_nothing_that_is_read_is_executed():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    bad = {str(f.relative_to(PACKAGE)): list(found(f.read_text())) for f in files}
    assert {name: calls for name, calls in bad.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.externals",
        "eval(text)",
        "exec(text)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=given)",
        "torch.load(file, weights_only=False)",
        "dist.all_gather_object(out, x)",
    ],
)
def test_what_is_looked_for_is_found(source):
    assert len(list(found(source))) == 1


@pytest.mark.parametrize(
    "source", ["np.load(f, allow_pickle=False)", "FlatIndex.load(f)", "model.eval()", "import ast"]
)
def test_what_is_harmless_is_not(source):
    assert list(found(source)) == []
