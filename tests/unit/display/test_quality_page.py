"""What the page says about scores: no more than the intervals allow."""

from __future__ import annotations

from batchrun.display.quality_page import basis, sections
from batchrun.display.summary import Percentiles
from batchrun.display.variants import VariantReport
from batchrun.evaluation.quality import AtK, Comparison, Group, Quality, VariantQuality
from batchrun.evaluation.statistics import Interval

HOSTILE = "<script>alert(1)</script>"


def estimate(mean: float, half: float | None = 0.05, questions: int = 200) -> Interval:
    return Interval(mean, None if half is None else mean - half, None if half is None else mean + half, questions)


def variant(label: str, mean: float | None, **more: object) -> VariantQuality:
    score = None if mean is None else estimate(mean)
    return VariantQuality(label, {}, 200, 0, 100, score, **more)


def quality(*means: tuple[str, float], halves: tuple[float | None, ...] = (), **more: object) -> Quality:
    variants = [variant(label, mean) for label, mean in means]
    best = max(means, key=lambda each: each[1])
    others = [each for each in means if each is not best]
    comparisons = [
        Comparison(best[0], label, estimate(best[1] - mean, half), 30, 10, 160)
        for (label, mean), half in zip(others, halves, strict=True)
    ]
    return Quality("exact", Group(None, variants, comparisons), **more)


def test_the_number_of_clearly_worse_variants_is_stated():
    found = basis(quality(("a", 0.5), ("b", 0.8), ("c", 0.7), halves=(0.4, 0.05)))
    assert found == [
        "By the scorer 'exact', the mean score of b is 80.0%.",
        "It is clearly better than 1 of the 2 others.",
    ]
    clear = basis(quality(("a", 0.5), ("b", 0.8), ("c", 0.7), halves=(0.05, 0.05)))
    assert clear[1] == "It is clearly better than each of the 2 others."
    assert basis(quality(("all", 0.5))) == ["By the scorer 'exact'."]


def test_an_interval_that_ends_at_zero_is_not_clear():
    touching = quality(("a", 0.75), ("b", 0.5), ("c", 0.5), halves=(0.25, None))
    assert basis(touching)[-1] == "It is clearly better than none of the others."
    reports = [VariantReport(label, {}, 9, 9) for label in "abc"]
    table = next(each for each in sections(touching, reports) if "against each other variant" in each)
    assert table.count(">no<") == 2
    assert ">yes<" not in table


def test_a_run_whose_rows_could_not_be_scored_has_no_section():
    nothing = Quality("exact", Group(None, [variant("all", None)], []))
    assert sections(nothing, [VariantReport("all", {})]) == []


def test_the_sections_have_every_figure_and_hostile_labels_stay_text():
    times = Percentiles(1500, 2000, 3000)
    reports = [
        VariantReport(HOSTILE, {}, 200, 200, 0, execution_ms=times, cost=0.5),
        VariantReport("b", {}, 200, 200, 0, execution_ms=times, cost=0.25),
    ]
    samples = {"pass_at": (AtK(1, estimate(0.6)), AtK(4, estimate(0.9))), "majority": AtK(4, estimate(0.7))}
    variants = [variant(HOSTILE, 0.6, **samples), variant("b", 0.5, **samples)]
    comparisons = [Comparison(HOSTILE, "b", estimate(0.1, 0.02), 30, 10, 160)]
    groups = [Group(HOSTILE, variants, []), Group(None, variants, [])]
    found = "".join(sections(Quality(HOSTILE, Group(None, variants, comparisons), "metadata.topic", groups), reports))
    assert "<script" not in found
    for text in (
        "Cost against score", "Time against score", "dollars per 1,000 rows", "pass@1", "pass@4", "majority@4",
        "Score by metadata.topic", "(none)", "+8.0 to +12.0", "60.0%", "55.0 to 65.0%",
    ):  # fmt: skip
        assert text in found, text
