"""Plots: their scales, and that what they say stays text."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from batchrun.display.charts import Axis, Dot, Gap, Series, axis, badge, bar, bars, key, lines, scatter, strip
from batchrun.display.distributions import times

HOSTILE = '"><script>alert(1)</script>\u202e'
NUMBERS = st.floats(0, 1e9)


@given(NUMBERS, NUMBERS, st.booleans())
def test_a_scale_has_a_few_round_marks_that_enclose_the_values(a: float, b: float, whole: bool):
    low, high = sorted((a, b))
    scale = axis(low, high, whole=whole)
    near = max(high, 1) * 1e-6
    assert scale.low <= low + near
    assert scale.high >= high - near
    assert 2 <= len(scale.ticks) <= 8
    values = [value for value, _ in scale.ticks]
    assert values == sorted(set(values))
    assert len({label for _, label in scale.ticks}) == len(values)
    if whole:
        assert not [label for _, label in scale.ticks if "." in label]


def test_a_line_is_interrupted_between_its_parts():
    drawn = lines("x", axis(0, 10), axis(0, 1), [Series("a", [[(0, 1), (1, 0)], [], [(5, 1), (6, 0), (7, 1)]])])
    paths = [path.get("d", "") for path in ET.fromstring(drawn).iter("path") if path.get("class") == "l1"]
    assert [path.count("M") for path in paths] == [2]


def test_bars_of_several_series_are_stacked():
    drawn = bars("x", axis(0, 2), axis(0, 10), [0, 1, 2], [[4, 0], [6, 10]])
    first, second = [path.get("d", "") for path in ET.fromstring(drawn).iter("path") if "f" in path.get("class", "")]
    top = first.split("V")[1].split("h")[0]
    assert second.startswith(f"M{first[1:].split(' ')[0]} {top}V")


def test_hostile_names_stay_text_in_every_plot():
    scale = Axis(0, 1, ((0, HOSTILE), (1, HOSTILE)), HOSTILE, (Gap(0.2, 0.4, HOSTILE),))
    dot = Dot(1, HOSTILE, 0.5, 0.4, 0.6)
    for drawn in (
        lines(HOSTILE, scale, scale, [Series(HOSTILE, [[(0, 0), (1, 1)]])], filled=True),
        bars(HOSTILE, scale, scale, [0, 1], [[1]]),
        scatter(HOSTILE, scale, scale, [dot]),
        strip(scale, dot),
        bar(HOSTILE, 0.5),
        key([HOSTILE]),
        badge(1),
    ):
        names = {element.tag for element in ET.fromstring(drawn).iter()}
        assert "script" not in names
        assert "\u202e" not in drawn
        assert "style=" not in drawn


def test_a_value_outside_of_the_scale_of_a_strip_stays_in_the_page():
    drawn = ET.fromstring(strip(axis(0, 100), Dot(1, "x", 50, -20, 180)))
    places = [float(line.get(name, "")[:-1]) for line in drawn.iter("line") for name in ("x1", "x2")]
    assert all(0 <= place <= 100 for place in places)


def test_times_have_a_unit_that_fits_and_none_that_were_not_measured():
    assert times("Execution", []) == []
    assert times("Execution", [(0.0, 300)]) == []
    assert "milliseconds" in times("Execution", [(0.002, 3), (0.02, 1)])[0]
    assert "minutes" in times("Execution", [(60.0, 3), (240.0, 1)])[0]
    (wide,) = times("Execution", [(0.01, 90), (2.0, 9), (700.0, 1)])
    assert "logarithmic" in wide
    assert "Half took at most 10 ms, 90% at most 2.0 s, 99% at most 11 min 40 s." in wide
