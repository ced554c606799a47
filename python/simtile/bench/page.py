"""HTML by hand: every text escaped, every element closed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #24292f; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h2 { border-bottom: 1px solid #d0d7de; margin-top: 3rem; }
h3 { margin-top: 2rem; }
table { border-collapse: collapse; margin: 0.5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.8rem 0.15rem 0; border-bottom: 1px solid #eaeef2; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.ours { font-weight: 600; }
.bad { color: #b42318; }
.small { color: #57606a; font-size: 12px; }
svg { max-width: 100%; height: auto; }
pre { overflow: auto; font-size: 12px; }
"""


def document(title: str, body: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def heading(level: int, text: str, anchor: str | None = None) -> str:
    name = "" if anchor is None else f' id="{escape(anchor)}"'
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str | None = None) -> str:
    of_kind = "" if kind is None else f' class="{kind}"'
    return f"<p{of_kind}>{escape(text)}</p>"


def contents(names: Sequence[str]) -> str:
    links = (f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names)
    return f"<p>{' · '.join(links)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], ours: Sequence[int] = ()) -> str:
    """`ours` are the rows to show in bold."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body.append(f'<tr class="ours">{cells}</tr>' if i in ours else f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def details(summary: str, text: str) -> str:
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
