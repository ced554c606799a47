"""An extension of griffe: what reStructuredText stands in docstrings, as Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?([^`]+)`")
MATH = re.compile(r"^( *)\.\. math:: (.*(?:\n\1 +\S.*)*)", re.MULTILINE)


def formula(match: re.Match[str]) -> str:
    indent, body = match.groups()
    lines = [indent + line.strip() for line in body.splitlines()]
    return "\n".join([f"{indent}```latex", *lines, f"{indent}```"])


class Markdown(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = MATH.sub(formula, text)
