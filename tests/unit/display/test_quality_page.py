"""What the page says about scores: no more than the intervals allow."""

from __future__ import annotations

from batchrun.display.quality_page import finding, sections
from batchrun.display.summary import Percentiles
from batchrun.display.variants import VariantReport
from batchrun.evaluation.quality import AtK, Comparison, Estimate, Group, Quality, VariantQuality

HOSTILE = "<script>alert(1)</script>"


def estimate(mean: float, half: float | None = 0.05, questions: int = 200) -> Estimate:
    return Estimate(mean, None if half is None else mean - half, None if half is None else mean + half, questions)


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


def sentence(*means: tuple[str, float], halves: tuple[float | None, ...] = ()) -> str:
    found = finding(quality(*means, halves=halves))
    assert found is not None
    return found.sentence


def test_one_variant_has_its_mean_with_the_interval():
    assert sentence(("all", 0.824)) == "The mean score is 82.4% (95% interval 77.4 to 87.4%)"


def test_a_clear_difference_is_a_finding():
    said = sentence(("t=0", 0.8), ("t=1", 0.7), halves=(0.04,))
    assert said == "t=0 is better than t=1 by 10.0 points (95% interval +6.0 to +14.0)"


def test_a_difference_whose_interval_contains_zero_has_no_winner():
    said = sentence(("t=0", 0.8), ("t=1", 0.78), halves=(0.04,))
    assert said == "No clear winner: t=0 is 2.0 points ahead of t=1 (95% interval \N{MINUS SIGN}2.0 to +6.0)"


def test_an_interval_that_ends_at_zero_is_not_clear():
    assert sentence(("t=0", 0.75), ("t=1", 0.5), halves=(0.25,)).startswith("No clear winner")


def test_equal_variants_are_called_equal():
    said = sentence(("t=0", 0.5), ("t=1", 0.5), halves=(0.1,))
    assert said.startswith("No clear winner: t=0 and t=1 have the same mean score (95% interval ")


def test_the_best_of_several_must_be_clearly_better_than_each_of_them():
    clear = sentence(("a", 0.5), ("b", 0.8), ("c", 0.7), halves=(0.05, 0.05))
    assert clear == "b is the best of 3 variants, 10.0 points ahead of c (95% interval +5.0 to +15.0)"
    # The one with fewer points is less certain than the next: it is the one that counts.
    unclear = quality(("a", 0.5), ("b", 0.8), ("c", 0.7), halves=(0.4, 0.05))
    found = finding(unclear)
    assert found is not None
    assert found.sentence.startswith("No clear winner: b is 30.0 points ahead of a")
    assert "b is clearly better than 1 of the 2 others." in found.more


def test_one_question_gives_no_interval():
    said = sentence(("t=0", 1.0), ("t=1", 0.0), halves=(None,))
    assert said == "No clear winner: t=0 is 100.0 points ahead of t=1; one question alone gives no interval"


def test_a_run_whose_rows_could_not_be_scored_has_no_finding():
    nothing = Quality("exact", Group(None, [variant("all", None)], []))
    assert finding(nothing) is None
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
