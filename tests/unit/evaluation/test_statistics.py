"""Intervals, pass@k and majorities against hand-computed tables, scipy and enumeration."""

from itertools import combinations
from random import Random

import pytest

from batchrun.evaluation.quality import Question, Sample, VariantInfo, VariantQuality, measure
from batchrun.evaluation.statistics import Moments, majority, pass_at, t_quantile


@pytest.fixture
def stats():
    """The reference, where it is installed."""
    return pytest.importorskip("scipy.stats")


def measured(questions: list[dict[int, list[float]]], repeat: int = 1) -> list[VariantQuality]:
    """The variants of questions whose samples have these scores."""
    return whole(questions, repeat).variants


def whole(questions: list[dict[int, list[float]]], repeat: int = 1):
    numbers = sorted({number for question in questions for number in question})
    variants = {number: VariantInfo(f"v{number}", {"v": number}, 12.0) for number in numbers}
    asked = [
        Question(None, {number: [Sample(value, value) for value in values] for number, values in each.items()}, {})
        for each in questions
    ]
    return measure("exact", variants, lambda: asked, repeat=repeat).whole


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12, 30, 99, 1000, 54321, 1_000_000])
def test_the_quantiles_of_students_t_are_those_of_scipy(degrees: int, stats):
    for confidence in (0.5, 0.8, 0.95, 0.999):
        assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-8)


def test_an_interval_is_that_of_a_table_computed_by_hand():
    # 0, 1, 1, 0.5, 0.5: mean 0.6, squares 0.36 + 0.16 + 0.16 + 0.01 + 0.01 = 0.7, s = sqrt(0.7 / 4) = 0.41833,
    # standard error 0.41833 / sqrt(5) = 0.187083, t(4) = 2.776445: 0.6 -+ 0.519425, cut at 1.
    score = measured([{0: [0]}, {0: [1]}, {0: [1]}, {0: [0.5]}, {0: [0.5]}])[0].score
    assert score is not None
    assert (score.mean, score.questions) == (pytest.approx(0.6), 5)
    assert (score.low, score.high) == (pytest.approx(0.080575, abs=1e-6), 1.0)


def test_an_interval_over_questions_is_that_of_scipy(stats):
    random = Random(3)
    numbers = [0.4 + 0.2 * random.random() for _ in range(40)]
    moments = Moments()
    for number in numbers:
        moments.add(number)
    found = moments.interval()
    assert found is not None
    wanted = stats.ttest_1samp(numbers, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(wanted.low, rel=1e-9), pytest.approx(wanted.high, rel=1e-9))


def test_samples_of_one_question_count_as_one_number():
    once = measured([{0: [1]}, {0: [0]}, {0: [1]}, {0: [1]}])[0].score
    often = measured([{0: [1] * 8}, {0: [0] * 8}, {0: [1] * 8}, {0: [1] * 8}], repeat=8)[0].score
    assert once == often


def test_a_question_counts_once_however_many_of_its_samples_have_a_score():
    score = measured([{0: [1]}, {0: [0, 0, 0]}], repeat=3)[0].score
    assert score is not None
    assert score.mean == 0.5


@pytest.mark.parametrize("right", [0, 30])
def test_without_any_variance_the_interval_is_that_of_clopper_and_pearson(right: int, stats):
    score = measured([{0: [float(right > 0)]}] * 30)[0].score
    wanted = stats.binomtest(right, 30).proportion_ci(0.95, method="exact")
    assert score is not None
    assert (score.low, score.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))


def test_one_question_has_no_interval_and_none_has_no_mean():
    only = measured([{0: [1]}])[0].score
    assert only is not None
    assert (only.mean, only.low, only.high, only.questions) == (1.0, None, None, 1)
    assert Moments().interval() is None


def test_the_paired_difference_is_that_of_a_paired_t_test(stats):
    random = Random(5)
    pairs = [(random.random(), random.random()) for _ in range(25)]
    (found,) = whole([{0: [one], 1: [other]} for one, other in pairs]).comparisons
    better, other = (0, 1) if found.better == "v0" else (1, 0)
    test = stats.ttest_rel([pair[better] for pair in pairs], [pair[other] for pair in pairs])
    wanted = test.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
    assert found.won == sum(pair[better] > pair[other] for pair in pairs)
    assert found.won + found.lost + found.tied == found.difference.questions == 25


def test_wins_losses_and_ties_are_counted_by_question():
    # Differences: 1, 0, -1, 1, 0.5: mean 0.3.
    questions = [
        {0: [1, 1], 1: [0, 0]},
        {0: [1, 0], 1: [0, 1]},
        {0: [0, 0], 1: [1, 1]},
        {0: [1, 1], 1: [0, 0]},
        {0: [1, 0], 1: [0, 0]},
        {0: [1, 1]},  # the other variant has no score: not compared
    ]
    (found,) = whole(questions, repeat=2).comparisons
    assert (found.better, found.other, found.won, found.lost, found.tied) == ("v0", "v1", 3, 1, 1)
    assert (found.difference.mean, found.difference.questions) == (pytest.approx(0.3), 5)


def test_the_best_variant_is_compared_with_each_of_the_others():
    questions = [{0: [0], 1: [1], 2: [0]}, {0: [0], 1: [1], 2: [1]}]
    assert [(each.better, each.other) for each in whole(questions).comparisons] == [("v1", "v0"), ("v1", "v2")]


@pytest.mark.parametrize("samples", range(1, 9))
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples(samples: int):
    for right in range(samples + 1):
        scores = [1] * right + [0] * (samples - right)
        for k in range(1, samples + 1):
            choices = list(combinations(scores, k))
            assert pass_at(k, samples, right) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_stated_for_powers_of_two_and_all_samples():
    # 1 of 3 samples right, 3 of 3, 0 of 3: pass@1 = 4/9, pass@2 = (2/3 + 1 + 0) / 3, pass@3 = 2/3.
    (found,) = measured([{0: [1, 0, 0]}, {0: [1, 1, 1]}, {0: [0, 0, 0]}], repeat=3)
    assert {each.k: each.estimate.mean for each in found.pass_at} == pytest.approx({1: 4 / 9, 2: 5 / 9, 3: 2 / 3})


def test_a_question_with_fewer_scored_samples_than_k_is_left_out_of_pass_at_k():
    (found,) = measured([{0: [1, 0]}, {0: [0]}], repeat=2)
    assert [(each.k, each.estimate.questions) for each in found.pass_at] == [(1, 2), (2, 1)]


def test_a_partly_right_answer_does_not_pass():
    (found,) = measured([{0: [0.9, 0.9]}, {0: [1, 0.5]}], repeat=2)
    assert found.right == 1
    assert found.pass_at[-1].estimate.mean == 0.5


@pytest.mark.parametrize(
    ("samples", "score"),
    [
        ([("a", 1), ("a", 1), ("b", 0)], 1),
        ([("a", 0), ("a", 0), ("b", 1)], 0),
        ([("a", 1), ("b", 0)], 0.5),
        ([("a", 1), ("b", 0), ("c", 0)], pytest.approx(1 / 3)),
        ([("a", 1), (None, 0), (None, 0)], 0),
        ([("a", 1), ("a", 0.5), ("b", 0)], 0.75),
    ],
)
def test_a_majority_has_the_score_of_its_answer_and_ties_share_theirs(samples: list[tuple[str, float]], score: float):
    assert majority(samples) == score


def test_the_cost_of_a_right_answer_is_that_of_the_variant_by_its_right_answers():
    right, wrong = measured([{0: [1], 1: [0]}, {0: [1], 1: [0]}, {0: [1], 1: [0]}])
    assert (right.cost_per_right, wrong.cost_per_right) == (4.0, None)


def simulated(random: Random, questions: int, samples: int, spread: float) -> list[dict[int, list[float]]]:
    """Questions of different difficulty, around 0.6, and their samples in two variants, one of them a bit better."""
    found = []
    for _ in range(questions):
        chance = random.betavariate(0.6 * spread, 0.4 * spread)
        chances = (chance, 0.8 * chance)
        found.append({n: [float(random.random() < chances[n]) for _ in range(samples)] for n in (0, 1)})
    return found


def test_the_intervals_cover_the_truth_in_95_of_100_evaluations():
    random = Random(11)
    covered = {"score": 0, "other": 0, "difference": 0, "pass@2": 0}
    rounds = 2000
    for _ in range(rounds):
        group = whole(simulated(random, 40, 3, spread=2.0), repeat=3)
        pair = group.comparisons[0]
        sign = 1 if pair.better == "v0" else -1
        # Of Beta(1.2, 0.8): mean 0.6, mean square 0.6 * 2.2 / 3 = 0.44; so pass@2 = 2 * 0.6 - 0.44 = 0.76.
        for name, truth, estimate in (
            ("score", 0.6, group.variants[0].score),
            ("other", 0.48, group.variants[1].score),
            ("difference", sign * 0.12, pair.difference),
            ("pass@2", 0.76, group.variants[0].pass_at[1].estimate),
        ):
            assert estimate is not None
            assert estimate.low is not None
            assert estimate.high is not None
            covered[name] += estimate.low <= truth <= estimate.high
    assert all(0.93 <= count / rounds <= 0.97 for count in covered.values()), covered
