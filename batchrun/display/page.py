"""The report as one self-contained HTML page, without scripts, and with a policy that forbids loading anything. Pure.

Ids and messages are untrusted: every text goes through `escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as escape_markup

from batchrun.display.text import visible

FIRST_LINE = '<!doctype html><html lang="en" data-by="batchrun">\n'
"""By it, a page written by batchrun is recognized."""
_HEAD = """<head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>
:root { --page: #fafaf8; --card: #fff; --text: #1d2329; --c7: #59636e; --c8: #dfe2e6;
  --c1: #2f6fb0; --c2: #d9822b; --c3: #3b8f5a; --c4: #b5495b; --c5: #7b5ea7; --c6: #8a7340; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --text: #e6e8ea; --c7: #9aa4ae;
  --c8: #343a41; --c1: #6aa7e6; --c2: #eda95a; --c3: #6cc08b; --c4: #e5808f; --c5: #b39bdb; --c6: #c7ad72; } }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; line-height: 1.25; } h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { margin: .2rem 0 0; color: var(--c7); overflow-wrap: anywhere; }
section, dl div { background: var(--card); border: 1px solid var(--c8); border-radius: 10px; padding: 1rem; }
section { margin-top: 1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0 0; }
dt { color: var(--c7); font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-family: system-ui, sans-serif !important; }
.narrow { display: none; }
@media (max-width: 36rem) { .wide { display: none; } .narrow { display: block; } }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { color: var(--c7); font-weight: 500; } th, td { text-align: left; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--c8); vertical-align: top; }
td { overflow-wrap: anywhere; } .numbers :not(:first-child) { text-align: right; white-space: nowrap; }
</style>
"""


def page(title: str, subtitle: str, facts: Sequence[tuple[str, str]], sections: Sequence[str]) -> bytes:
    """The page: a title, a subtitle, named figures, and sections."""
    parts = [FIRST_LINE, _HEAD]
    parts += [f"<title>{escape(title)}</title></head><body><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><dl>"]
    parts += [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts]
    return "".join([*parts, "</dl>", *sections, "</body></html>\n"]).encode("utf-8", "replace")


def is_page(first_line: bytes) -> bool:
    """Whether the file that begins with this line is a page written by batchrun."""
    return first_line == FIRST_LINE.encode()


def plot(title: str, svg: str) -> str:
    """A section with a plot made by `charts`."""
    return f"<section><h2>{escape(title)}</h2>{svg}</section>"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A section with a table; `numbers` aligns all columns but the first to the right."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="numbers"' if numbers else ""
    return (
        f'<section><h2>{escape(title)}</h2><div class="table"><table{kind}><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def escape(text: str) -> str:
    """Text as HTML, with invisible characters made visible."""
    return escape_markup(visible(text))
