"""The plots of the report page, as SVG that takes its colours and fonts from the page. Needs the extra `report`.

matplotlib's SVG needs no script and no network. A plot is a few kilobytes, whereas plotly's script alone is 4 MB.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLOURS = ("#a10001", "#a10002", "#a10003", "#a10004", "#a10005", "#a10006")
"""Placeholders, replaced by the page's `--c1` and so on."""
_INK, _LINE = "#a10007", "#a10008"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 9,
    "legend.frameon": False,
}
_SIZES = {"wide": (7.6, 2.5), "narrow": (3.8, 2.6)}
"""CSS class -> inches; the page shows the size that fits the screen."""


def lines(name: str, x_label: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Draw each series (x values, y values) as a line; a NaN in y interrupts it."""
    return _in_both_sizes(name, x_label, series, is_bars=False, width=0)


def bars(name: str, x_label: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], width: float) -> str:
    """Draw each series as bars of this width, stacked on those of the series before."""
    return _in_both_sizes(name, x_label, series, is_bars=True, width=width)


def _in_both_sizes(
    name: str,
    x_label: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    is_bars: bool,
    width: float,
) -> str:
    found = []
    for size, inches in _SIZES.items():
        with mpl.rc_context({**_STYLE, "svg.hashsalt": name + size}):
            figure = Figure(figsize=inches, layout="constrained")
            axes = figure.add_subplot()
            base = [0.0] * max((len(x) for x, _ in series.values()), default=0)
            for index, (label, (x, y)) in enumerate(series.items()):
                colour = _COLOURS[index % len(_COLOURS)]
                if is_bars:
                    axes.bar(x, y, width, bottom=base, color=colour, label=label)
                    base = [a + b for a, b in zip(base, y, strict=True)]
                else:
                    axes.plot(x, y, color=colour, label=label, linewidth=1.6)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(x_label)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=is_bars))
            axes.grid(visible=False, axis="x")
            if is_bars or len(series) > 1:
                axes.legend(loc="upper left", bbox_to_anchor=(0, 1.2), ncols=3)
            file = StringIO()
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        found.append(_inline(file.getvalue(), size, name))
    return "".join(found)


def _inline(svg: str, size: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg class="{size}" role="img" aria-label="{name}"'
        r' viewBox="\1" xmlns:xlink="http://www.w3.org/1999/xlink">',
        svg,
        count=1,
    )
    for index, colour in enumerate((*_COLOURS, _INK, _LINE), start=1):
        svg = svg.replace(colour, f"var(--c{index})")
    return svg
