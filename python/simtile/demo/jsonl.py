"""Reading pairs from a JSON Lines file: one ``{"query": ..., "document": ...}`` object a line."""

from __future__ import annotations

import json
from pathlib import Path

from simtile.demo.docstrings import Pair


class CorpusError(ValueError):
    """A corpus cannot be used; the message names the file, its line where there is one, and why."""


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of a UTF-8 JSON Lines file; blank lines are skipped, other keys ignored.

    Raises
    ------
    CorpusError
        The file cannot be read, or a line is not UTF-8, not a JSON object, or lacks a non-empty
        string under ``query`` or ``document``. The message starts with ``file:line``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error})") from error
    pairs = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            pairs.append(_parse(line, f"{path}:{number}"))
    return pairs


def _parse(line: bytes, where: str) -> Pair:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{where}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"
        ) from error
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        detail = "nested too deep"
        if isinstance(error, json.JSONDecodeError):
            detail = f"{error.msg}, column {error.colno}"
        raise CorpusError(
            f'{where}: not JSON ({detail}); expected {{"query": "...", "document": "..."}}'
        ) from error
    if not isinstance(record, dict):
        raise CorpusError(
            f"{where}: found a JSON {_kind(record)}, expected an object "
            'like {"query": "...", "document": "..."}'
        )
    return Pair(
        query=_field(record, "query", where),
        document=_field(record, "document", where),
        source=str(record.get("source", "")),
    )


def _field(record: dict[str, object], key: str, where: str) -> str:
    if key not in record:
        found = ", ".join(sorted(record)) or "no keys"
        raise CorpusError(f'{where}: the key "{key}" is missing (found: {found})')
    value = record[key]
    if not isinstance(value, str):
        raise CorpusError(f'{where}: "{key}" is a JSON {_kind(value)}, expected a string')
    if not value.strip():
        raise CorpusError(f'{where}: "{key}" is empty, expected some text')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON and no text
        raise CorpusError(f'{where}: "{key}" has a lone surrogate escape, not text') from error
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):  # before numbers: a bool is an int
        return "boolean"
    for kind, name in ((str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "number"
