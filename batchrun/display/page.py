"""The report as one self-contained HTML page, without scripts, and with a policy that forbids loading anything. Pure.

Ids, messages and answers are untrusted: every text goes through `escape`. The policy allows one style by its hash, so
what slipped through could neither run nor load anything, nor change how the page looks.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape as escape_markup
from urllib.parse import quote

from batchrun.display.text import visible

FIRST_LINE = '<!doctype html><html lang="en" data-by="batchrun">\n'
"""Identifies a page written by batchrun."""
_LONG = 18
"""A cell with more characters, those of its name included, has a line of its own on a narrow screen."""
_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --text: #1d2329; --soft: #59636e; --line: #e1e4e8;
  --c1: #2f6fb0; --c2: #c9701a; --c3: #2f8552; --c4: #b5495b; --c5: #7556a6; --c6: #80693a; --on: #fff; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --text: #e6e8ea;
  --soft: #9aa4ae; --line: #343a41; --c1: #6aa7e6; --c2: #eda95a; --c3: #6cc08b; --c4: #e5808f; --c5: #b39bdb;
  --c6: #c7ad72; --on: #14171a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.25rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
header p, footer { color: var(--soft); overflow-wrap: anywhere; }
.over { font-size: .85rem; margin: 0 0 .3rem; }
h1 { font-size: 1.6rem; margin: 0; line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
h1 small { font-weight: 400; font-size: 1.1rem; color: var(--soft); }
header .more { margin: .5rem 0 0; font-size: 1rem; max-width: 48rem; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
a { color: var(--c1); }
section, .figures div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; }
section { margin-top: 1rem; min-width: 0; }
.note { color: var(--soft); font-size: .85rem; margin: .6rem 0 0; max-width: 48rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0 0; }
.figures dt { color: var(--soft); font-size: .85rem; } .figures dd { margin: 0; font-size: 1.25rem; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.2rem; margin: 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.pair { display: flex; flex-wrap: wrap; gap: 0 1rem; } .pair section { flex: 1 1 24rem; }
svg { display: block; } svg.plot { width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
svg.strip { width: 100%; overflow: visible; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.end { text-anchor: end; } .mid, svg .on { text-anchor: middle; } svg .on { fill: var(--on); font-weight: 600; }
.grid { stroke: var(--line); fill: none; } .gap { fill: var(--line); opacity: .6; }
[class^=l] { fill: none; stroke-width: 1.8; stroke-linejoin: round; } [class^=a] { opacity: .14; }
.l1 { stroke: var(--c1); } .l2 { stroke: var(--c2); } .l3 { stroke: var(--c3); }
.l4 { stroke: var(--c4); } .l5 { stroke: var(--c5); } .l6 { stroke: var(--c6); }
.f1, .a1 { fill: var(--c1); } .f2, .a2 { fill: var(--c2); } .f3, .a3 { fill: var(--c3); }
.f4, .a4 { fill: var(--c4); } .f5, .a5 { fill: var(--c5); } .f6, .a6 { fill: var(--c6); }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1rem; color: var(--soft); font-size: .85rem; margin-bottom: .4rem; }
.key span { display: flex; align-items: center; gap: .35rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { color: var(--soft); font-weight: 500; } th, td { text-align: left; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
tr > :last-child { padding-right: 0; } tbody tr:last-child td { border-bottom: 0; }
td:first-child, table:not(.numbers) td { overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; }
.numbers td:first-child { min-width: 7rem; }
.numbers :is(th, td):not(:first-child) { text-align: right; } .numbers td:not(:first-child) { white-space: nowrap; }
.numbers th { vertical-align: bottom; }
.strips { display: grid; grid-template-columns: minmax(6rem, max-content) max-content minmax(8rem, 1fr);
  gap: .35rem 1.2rem; align-items: center; }
.strips > * { min-width: 0; } .strips .name { max-width: 22rem; overflow-wrap: anywhere; }
.strips .value { font-variant-numeric: tabular-nums; } .strips .value small { color: var(--soft); font-size: .85rem; }
.strips .scale { grid-column: 3; }
.pair .strips { grid-template-columns: minmax(0, 1fr) max-content; gap: 0 1rem; }
.pair .strips .value { text-align: right; } .pair .strips .drawn { grid-column: 1 / -1; margin-bottom: .6rem; }
.badge { display: inline-block; vertical-align: -4px; margin-right: .5rem; }
footer { margin-top: 1.5rem; font-size: .85rem; }
@media (max-width: 36rem) {
  body { padding: 1.2rem .8rem; } h1 { font-size: 1.35rem; } section, .figures div { padding: .8rem; }
  .figures { grid-template-columns: 1fr 1fr; } .facts { grid-template-columns: minmax(0, 1fr); gap: 0; }
  .facts dd { margin-bottom: .4rem; }
  .strips { grid-template-columns: minmax(0, 1fr) max-content; gap: 0 1rem; }
  .strips .value { text-align: right; } .strips .drawn { grid-column: 1 / -1; margin-bottom: .5rem; }
  .strips .scale { grid-column: 1 / -1; }
  thead { display: none; } tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: .1rem 1rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line); } tbody tr:last-child { border: 0; }
  td, .numbers td:not(:first-child) { border: 0; padding: 0; text-align: left; white-space: normal; min-width: 0; }
  td:first-child, td.long { grid-column: 1 / -1; } td:first-child { font-weight: 600; }
  .numbers .long:not(:first-child) { display: flex; justify-content: space-between; gap: 1rem; }
  td:not(:first-child)::before { content: attr(data-name) " "; color: var(--soft); }
}
@page { size: A4; margin: 14mm; }
@media print {
  :root { --page: #fff; } body { padding: 0; max-width: none; font-size: 10pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .pair section { flex-basis: 40%; } section, .figures div, tr { break-inside: avoid; } h2 { break-after: avoid; }
  section:has(tr:nth-child(16)) { break-inside: auto; }
  .figures { grid-template-columns: repeat(auto-fit, minmax(6rem, 1fr)); } .figures dd { font-size: 1rem; }
  .figures div { padding: .6rem; } h1 { font-size: 1.4rem; }
  .table { overflow: visible; } table { font-size: 7.5pt; }
  th, td { padding-right: .5rem; } svg.plot { max-width: 21rem; }
  .numbers td:not(:first-child) { white-space: normal; }
  .numbers td:first-child { min-width: 0; } thead { display: table-header-group; }
  a { color: inherit; }
}
"""
_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
_HEAD = f"""<head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; \
form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<style>{_STYLE}</style>
"""


def page(
    *,
    over: str,
    title: str,
    detail: str,
    more: str,
    figures: Sequence[tuple[str, str]],
    link: str,
    sections: Iterable[str],
    end: str,
) -> bytes:
    """The page.

    Args:
        over: A line above the title: the kind of page.
        title: The finding, in one sentence.
        detail: Its end, which is shown smaller; empty for none.
        more: A sentence below the title; empty for none.
        figures: Names and values, shown large.
        link: A link made by `link_to`; empty for none.
        sections: What follows, as HTML.
        end: The last line: the origin of the page.
    """
    smaller = f" <small>{escape(detail)}</small>" if detail else ""
    parts = [FIRST_LINE, _HEAD, f"<title>{escape(title)}</title></head><body><header>"]
    parts += [f'<p class="over">{escape(over)}</p><h1>{escape(title)}{smaller}</h1>']
    parts += [f'<p class="more">{escape(more)}</p>'] if more else []
    parts += [f'<p class="more">{link}</p>'] if link else []
    parts += ['</header><dl class="figures">']
    parts += [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures]
    foot = f"<footer>{escape(end)}</footer></body></html>\n"
    return "".join([*parts, "</dl>", *sections, foot]).encode("utf-8", "replace")


def is_page(first_line: bytes) -> bool:
    """Whether the file that begins with this line is a page written by batchrun."""
    return first_line == FIRST_LINE.encode()


def section(title: str, content: str, *notes: str) -> str:
    """A section with a heading, HTML, and notes below it; empty notes are left out."""
    below = "".join(f'<p class="note">{escape(note)}</p>' for note in notes if note)
    return f"<section><h2>{escape(title)}</h2>{content}{below}</section>"


def pair(sections: Sequence[str]) -> str:
    """Sections side by side, if there is room."""
    return f'<div class="pair">{"".join(sections)}</div>' if sections else ""


def facts(named: Sequence[tuple[str, str]]) -> str:
    """Names and values, one below the other."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in named)
    return f'<dl class="facts">{cells}</dl>'


def strips(rows: Sequence[tuple[str, str, str, str, str]], scale: str = "") -> str:
    """Rows with a badge, a name, a value, a smaller text beside it, and a strip; below them, its `scale`.

    Badges, strips and the scale are SVG.
    """
    cells = "".join(
        f'<div class="name">{badge}{escape(name)}</div>'
        f'<div class="value">{escape(value)} <small>{escape(small)}</small></div><div class="drawn">{drawn}</div>'
        for badge, name, value, small, drawn in rows
    )
    below = f'<div class="scale">{scale}</div>' if scale else ""
    return f'<div class="strips">{cells}{below}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """A table; `numbers` aligns all columns but the first to the right."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(_cell(name, cell) for name, cell in zip(head, row, strict=True)) + "</tr>" for row in rows
    )
    kind = ' class="numbers"' if numbers else ""
    return f'<div class="table"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, text: str) -> str:
    """A cell, with the name of its column, which a narrow screen shows before it."""
    kind = ' class="long"' if len(name) + len(text) > _LONG else ""
    return f'<td{kind} data-name="{escape(name)}">{escape(text)}</td>'


def link_to(path: str, text: str) -> str:
    """A link to a file, by its path from the page."""
    return f'<a href="{escape_markup(quote(path))}">{escape(text)}</a>'


def escape(text: str) -> str:
    """Text as HTML, with invisible characters made visible."""
    return escape_markup(visible(text))
