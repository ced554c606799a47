"""Public calls with arguments that are often wrong, in a process with little memory.

`python fuzz_calls.py --seconds 600`. A call may raise what its documentation says, with a message
that names an argument; or its result is that of the reference on plain copies of its arguments. No
argument may be written to. A crash, ten seconds of work or anything else is a failure, and the
call is kept in fuzz_corpus/, as a line of Python, and made first the next time.
"""

import argparse
import faulthandler
import hashlib
import inspect
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_arguments
import numpy as np
from fuzz_files import CORPUS, MOST_WORK, SLOWEST

import simtile

MEMORY = 512 << 20  # bytes beyond what the process has, for arguments of some kB
ALLOWED = (ValueError, TypeError, RuntimeError, MemoryError)
MOST_FAILURES = 20

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "float32", "float64", "longdouble", "complex64", "complex128", "bfloat16"]
DTYPES += ["object", "S3", "U3", "M8[s]", "m8[s]", "V4", "i4,f4", ">f4", ">f8", ">f2", ">i4", ">u8"]

VIEWS = ["padded({})", "odd({})", "far({})", "same({})", "frozen({})", "turned({})", "fortran({})"]
VIEWS += ["{}[::-1]", "{}[..., ::-1]", "{}[..., ::2]", "{}[::2]", "{}.T", "{}[0]", "{}[None]"]
VIEWS += ["{}[:0]", "{}[..., :0]", "poked({}, nan)", "poked({}, inf)", "poked({}, 1e15)"]
VIEWS += ["({}).tolist()", "list({})", "np.ma.masked_array({})", "({}).astype(object)", "[{}, {}]"]
VIEWS += ["tuple({})", "np.concatenate([{}, {}])", "({})[()]"]

JUNK = ["None", "True", "0", "-1", "1", "3", "2**31", "2**40", "2**63", "2**70", "-2**70", "1.5"]
JUNK += ["nan", "inf", "-inf", "1j", "''", "'x'", "b'ab'", "[]", "[[]]", "[[[]]]", "[1, 2]", "()"]
JUNK += ["[[1], [2, 3]]", "[[1.0, 2.0]]", "{}", "{1}", "object()", "range(3)"]
JUNK += ["np.float32(2)", "np.float64('nan')", "np.int64(3)", "np.uint64(2**64 - 1)", "np.True_"]
JUNK += ["array(3, int)", "array([1, 2], int)", "array(1.5, float)", "array('x', str)", "f(0)"]
JUNK += ["f(3)", "f(2, 3, 4)", "f(1, 1, 1, 1, 1)", "f(0, 7)", "f(7, 0)", "f(2, 0, 3)", "f()"]
JUNK += ["np.zeros((3, 7), bool)", "np.ones((9,), bool)", "array([0, 5, 3, 9], 'int64')"]
JUNK += ["array([0, -1, 2**62, 9], 'int64')", "array([2**63, 0], 'uint64')", "q(f(3, 7), 'int8')"]
JUNK += ["q(f(3, 16), 'binary')", "residual(3, 7)", "bits(3, 16)", "'mean'", "'cosine'", "'int8'"]


class Function(NamedTuple):
    call: Any
    draw: Any  # good arguments
    exact: bool = False  # whether the reference has the same bits

    @property
    def parameters(self):
        return inspect.signature(self.call).parameters


def index(kind="FlatIndex"):
    documents = fuzz_arguments.f(9, 7, seed=5)
    made = getattr(simtile, kind)(7)
    made.add(documents if kind == "FlatIndex" else documents[:, None], np.arange(10, 19))
    return made


def changing(change, kind="FlatIndex"):
    """A change, and what the index then is; one that is refused changes nothing."""
    signature = inspect.signature(getattr(getattr(simtile, kind), change))

    def call(**arguments):
        made = index(kind)
        before = contents(made)
        try:
            getattr(made, change)(**arguments)
        except BaseException:
            check(compare(contents(made), before, 0), "what was refused has changed the index")
            raise
        return contents(made)

    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    call.__signature__ = inspect.Signature(parameters)
    return call


def contents(made):
    queries = fuzz_arguments.f(1, 7, seed=6)
    tokens = isinstance(made, simtile.MultiVectorIndex)
    return (made.ids, *made.search(queries[None] if tokens else queries, len(made)))


FUNCTIONS = {
    name: Function(getattr(simtile, name), getattr(fuzz_arguments, name))
    for name in (
        *("info_nce_grad", "siglip_loss", "triplet_loss", "batch_hard_triplet_loss", "alignment"),
        *("uniformity", "anisotropy", "maxsim", "maxsim_pairwise", "maxsim_packed", "xtr_scores"),
        "pool",
    )
}
FUNCTIONS |= {
    name: Function(getattr(simtile, name), getattr(fuzz_arguments, name), exact=True)
    for name in ("topk", "range_search", "merge_topk", "quantize", "mine_hard_negatives")
}
FUNCTIONS |= {
    "FlatIndex.search": Function(index().search, fuzz_arguments.flat_search, True),
    "FlatIndex.score": Function(index().score, fuzz_arguments.flat_score, True),
    "FlatIndex.add": Function(changing("add"), fuzz_arguments.flat_add, True),
    "FlatIndex.remove": Function(changing("remove"), fuzz_arguments.flat_remove, True),
    "MultiVectorIndex.search": Function(
        index("MultiVectorIndex").search, fuzz_arguments.tokens_search
    ),
    "MultiVectorIndex.add": Function(
        changing("add", "MultiVectorIndex"), fuzz_arguments.tokens_add, True
    ),
}


# Lines


def drawn(seed, number):
    """The line of this number: the same every time."""
    draw = fuzz_arguments.Draw(np.random.default_rng([seed, number]))
    name = draw.of(sorted(FUNCTIONS))
    given = FUNCTIONS[name].draw(draw)
    for _ in range(draw.of((0, 1, 1, 1, 2, 3))):
        worsen(draw, given, list(FUNCTIONS[name].parameters))
    return written(name, given)


def written(name, given):
    listed = ", ".join(f"{key}={source}" for key, source in given.items())
    return f"call({name!r}, {listed})"


def worsen(draw, given, parameters):
    name = draw.of(list(given)) if draw.chance(0.8) else draw.of(parameters)
    source = given.get(name)
    if source is None or draw.chance(0.3):
        given[name] = draw.of(JUNK)
    elif draw.chance(0.3):
        given[name] = f"({source}).astype({draw.of(DTYPES)!r})"
    else:
        given[name] = draw.of(VIEWS).replace("{}", source)


class Wrong(Exception):
    """A call did what it must not."""


def check(right, message):
    if not right:
        raise Wrong(message)


class Unmade(Exception):
    """There are no such arguments."""


def make(line):
    """Make the call of a line: how it ended, or Wrong."""
    entered = False

    def call(name, **arguments):
        nonlocal entered
        entered = True
        return judged(name, arguments)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return eval(line, {**fuzz_arguments.NAMES, "call": call})
        except Exception as error:
            if entered:
                raise
            raise Unmade from error


def judged(name, arguments):
    function = FUNCTIONS[name]
    before = [x.tobytes() for x in arrays_in(arguments)]
    try:
        found = function.call(**arguments)
    except ALLOWED as error:
        names = "|".join(function.parameters)
        named = re.search(rf"\b({names})\b", str(error)) or isinstance(error, MemoryError)
        check(named, f"{type(error).__name__} names no argument: {error}")
        return "refused"
    check([x.tobytes() for x in arrays_in(arguments)] == before, "an argument was written to")
    plain_arguments = {key: plain(x) for key, x in arguments.items()}
    coded = isinstance(arguments.get("tokens"), (simtile.Quantized, simtile.ResidualTokens))
    if "backend" in function.parameters and "backend" not in arguments and not coded:
        plain_arguments["backend"] = "reference"
    expected = function.call(**plain_arguments)
    how = tolerance_of(function, arguments), not all(map(is_finite, arrays_in(arguments)))
    check(compare(found, expected, *how), f"found {found!r}, expected {expected!r}")
    return "answered"


def tolerance_of(function, arguments):
    """What is looked for is another number, not one that is a little less exact."""
    if function.exact:
        return 0
    tolerance = 0.03 if any(x.dtype.itemsize == 2 for x in arrays_in(arguments)) else 2e-3
    # exponents t |u - v|^2 are off by roundings of 4 t
    return tolerance * max(1.0, float(arguments.get("t", 1.0)))


def is_finite(x):
    is_float = x.dtype.kind == "f" or x.dtype.name == "bfloat16"
    return not is_float or bool(np.isfinite(x.astype(np.float64)).all())


def arrays_in(x):
    if isinstance(x, np.ndarray) and not x.dtype.hasobject:
        yield np.asarray(x)
    elif isinstance(x, (list, tuple)):
        for part in x:
            yield from arrays_in(part)
    elif isinstance(x, dict):
        yield from arrays_in(list(x.values()))
    elif isinstance(x, simtile.Quantized):
        yield x.codes


def plain(x):
    """A copy with rows behind each other in this machine's byte order."""
    if isinstance(x, np.ndarray) and type(x) is np.ndarray and x.dtype.names is None:
        return np.array(x, x.dtype.newbyteorder("="), order="C")
    if isinstance(x, (list, tuple)):
        return type(x)(plain(part) for part in x)
    return x


def compare(found, expected, tolerance, nan_in=False):
    if isinstance(expected, simtile.Quantized):
        found, expected = ((x.codes, x.scale, x.offset) for x in (found, expected))
    if isinstance(expected, (tuple, list)):
        same_length = isinstance(found, (tuple, list)) and len(found) == len(expected)
        return same_length and all(
            compare(*x, tolerance, nan_in) for x in zip(found, expected, strict=True)
        )
    if expected is None:
        return found is None
    a, b = np.asarray(found), np.asarray(expected)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if tolerance == 0:
        return a.tobytes() == b.tobytes() or bool(np.array_equal(a, b, equal_nan=True))
    if a.dtype.kind in "iu":  # which of almost equal ones: what they score is compared as well
        return True
    a, b = a.astype(np.float64), b.astype(np.float64)
    beyond = np.abs(b) > 1e30  # float32 may have left its range
    size = np.abs(b[np.isfinite(b) & ~beyond]).max(initial=1.0)
    near = np.isclose(a, b, rtol=tolerance, atol=tolerance * size, equal_nan=True)
    near |= nan_in & np.isnan(a)  # and NaN out, perhaps where the reference still has a number
    return bool((near | beyond | (~np.isfinite(a) & ~np.isfinite(b))).all())


# Processes


def child(folder, keep, seed, first, last, seconds):
    """Make calls until the time is over; that of `folder / "current"` is the one being made."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.register(signal.SIGPROF, chain=True)
    lines = [path.read_text() for path in kept_lines()]
    for name, function in FUNCTIONS.items():  # starts threads, loads what is loaded late
        given = function.draw(fuzz_arguments.Draw(np.random.default_rng(0)))
        make(written(name, given))
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    number, end, failures = first, time.monotonic() + seconds, 0
    ended = {"refused": 0, "answered": 0, "unmade": 0}
    while number < last and time.monotonic() < end and failures < MOST_FAILURES:
        line = drawn(seed, number) if number >= 0 else lines[number]
        (folder / "number").write_text(str(number))
        (folder / "current").write_text(line)
        signal.setitimer(signal.ITIMER_PROF, MOST_WORK)
        faulthandler.dump_traceback_later(SLOWEST, exit=True)
        try:
            ended[make(line)] += 1
        except Unmade:
            ended["unmade"] += 1
        except Exception:
            failures += 1
            print(f"{kept(keep, line)} ({number} of seed {seed}): {line}")
            print(traceback.format_exc(limit=-3), flush=True)
        faulthandler.cancel_dump_traceback_later()
        number += 1
    print(f"{number - first} calls: {ended}", file=sys.stderr)
    sys.exit(failures > 0)


def kept_lines():
    return sorted(CORPUS.glob("call-*"))


def kept(keep, line):
    keep.mkdir(exist_ok=True)
    path = keep / f"call-{hashlib.sha256(line.encode()).hexdigest()[:8]}"
    path.write_text(line)
    return path


def fuzz(seconds, seed=0, calls=2**40, keep=CORPUS):
    """What failed, as text, and what the last process said that it did."""
    end, failures, said = time.monotonic() + seconds, [], ""
    number = -len(kept_lines())
    while number < calls and (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = [sys.executable, __file__, "--child", folder, "--keep", keep, "--seed", seed]
            command += ["--first", number, "--last", calls, "--seconds", left]
            environment = {**os.environ, "SIMTILE_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
            ran = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, env=environment
            )
            said = ran.stderr
            if ran.stdout:
                failures.append(ran.stdout)
            if ran.returncode in (0, 1):
                if ran.returncode and not ran.stdout:
                    raise RuntimeError(f"not of a call: {said}")
                return failures, said
            line = (folder / "current").read_text()
            number = int((folder / "number").read_text())
            failures.append(f"{kept(keep, line)}: {ran.returncode}: {line}\n{said}")
            number += 1
    return failures, said


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=CORPUS)
    for hidden, kind in {"--first": int, "--last": int, "--child": Path}.items():
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.child:
        child(found.child, found.keep, found.seed, found.first, found.last, found.seconds)
    failures, said = fuzz(found.seconds, found.seed, keep=found.keep)
    print(*failures, said, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
