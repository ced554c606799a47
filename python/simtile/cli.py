"""The ``simtile`` command."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import simtile
from simtile.bench import compare, report, runner


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        if options.command == "info":
            return _info()
        if options.command == "doctor":
            return _doctor(options)
        if options.command == "bench":
            return _bench(options, parser)
        if options.corpus is not None and not options.train:
            parser.error("argument --corpus: its texts must be embedded, which needs --train")
        return _demo(options)
    except KeyboardInterrupt:
        print("\nsimtile: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe left; keep the interpreter's exit quiet too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simtile", description="Fused similarity kernels for text embeddings."
    )
    parser.add_argument("--version", action="version", version=f"simtile {simtile.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="say what was found on this machine and what the kernels use")
    doctor = commands.add_parser(
        "doctor",
        help="check every kernel on this machine, and say how fast it is",
        description="Check every kernel that this machine can run, CPU and GPU, beside the float64 "
        "reference: values, gradients, and that repeats give the same bits; then time them, as a "
        "share of what this machine was measured to reach. Exits with status 1 if a check fails. "
        "Of several GPUs the first is used: CUDA_VISIBLE_DEVICES chooses.",
    )
    doctor.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    doctor.add_argument(
        "--all-levels",
        action="store_true",
        help="the CPU checks at every ISA level that this machine has, not only the one in use",
    )
    doctor.add_argument(
        "--threads", type=_threads, metavar="N", help="threads to use (default: see simtile info)"
    )
    doctor.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="store the report as JSON, to attach to a bug report; it names the processor, GPU, "
        "versions, and environment variables that decide how kernels run, paths in them included",
    )
    bench = commands.add_parser(
        "bench",
        help="time everything beside its peers, or compare two stored runs",
        description="Run the benchmarks of a checkout one after the other, on an otherwise idle "
        "machine: each checks its results first, then times simtile in turn with its peers, and "
        "stores JSON under bench/results/. Exits with status 1 if one of them fails, or if "
        "--compare finds a regression.",
    )
    bench.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="run nothing: ratios of the times in B, a file or folder of results, to those in A",
    )
    bench.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="run nothing: write DIR/report.html, tables and figures of the results in DIR",
    )
    bench.add_argument(
        "--only",
        action="append",
        choices=list(runner.MINUTES),
        metavar="OP",
        help=f"only this one, may be repeated: {', '.join(runner.MINUTES)}",
    )
    bench.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    bench.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the results of this run"
    )
    bench.add_argument(
        "--threads", type=_threads, metavar="N", help="threads to use (default: see simtile info)"
    )
    demo = commands.add_parser(
        "demo", help="train on real text, compare one large step with plain NumPy, and search"
    )
    demo.add_argument(
        "--train",
        action="store_true",
        help="train with PyTorch on this Python's own docstrings, or on --corpus",
    )
    demo.add_argument(
        "--corpus",
        type=Path,
        metavar="FILE.jsonl",
        help='pairs to train on, one {"query": "...", "document": "..."} a line (with --train)',
    )
    demo.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the plot (default: the current one)"
    )
    demo.add_argument(
        "--threads", type=_threads, metavar="N", help="threads to use (default: see simtile info)"
    )
    demo.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="which pairs are held out, and the random inputs of the timed step (default: 0)",
    )
    demo.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    return parser


def _info() -> int:
    info = simtile.cpu_info()
    forced = ", forced by SIMTILE_ISA" if info["forced"] else ""
    lines = {
        "simtile": simtile.__version__,
        "processor": info["brand"] or info["vendor"] or "unknown",
        "ISA level": f"{info['level']} (found: {', '.join(info['detected'])}{forced})",
        "threads": f"{info['threads']} (from {info['threads_source']})",
        "caches": ", ".join(f"{name} {_size(info[name.lower()])}" for name in ("L1d", "L2", "L3")),
    }
    for name, value in lines.items():
        print(f"{name:<10} {value}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from simtile import doctor
    from simtile.doctor.report import OutputError

    try:
        return doctor.run(
            doctor.Options(options.quick, options.all_levels, options.threads, options.output)
        )
    except OutputError as error:
        return _fail(str(error))


def _bench(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    runs = options.only or options.quick or options.output or options.threads
    for name in ("compare", "report"):
        if getattr(options, name) and (runs or (options.compare and options.report)):
            parser.error(f"argument --{name}: runs nothing, so no other option goes with it")
    try:
        if options.compare:
            return compare.run(*options.compare)
        if options.report:
            return report.run(options.report)
        return runner.run(
            runner.Options(options.only or (), options.quick, options.output, options.threads)
        )
    except (runner.NoCheckout, compare.CannotCompare, report.CannotReport) as error:
        return _fail(str(error))


def _demo(options: argparse.Namespace) -> int:
    missing = [name for name in ("rich", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"the demo needs {' and '.join(missing)}: pip install 'simtile[demo]'")
    # where matplotlib keeps its fonts, which it says on import, is no news here
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from simtile.demo import jsonl, minilm, run, show

    chosen = run.Options(options.output, options.threads, options.seed, options.quick)
    try:
        if not options.train:
            return run.run_demo(chosen)
        from simtile.demo import train

        return train.run_training(chosen, options.corpus)
    except (jsonl.CorpusError, minilm.MissingModel, show.OutputError) as error:
        return _fail(str(error))


def _fail(message: str) -> int:
    print(f"simtile: error: {message}", file=sys.stderr)
    return 1


def _threads(text: str) -> int:
    return _whole_number(text, 1, 1024)


def _seed(text: str) -> int:
    return _whole_number(text, 0, 2**63 - 1)


def _whole_number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a whole number from {least} to {most}"
        )
    return number


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"


if __name__ == "__main__":
    sys.exit(main())
