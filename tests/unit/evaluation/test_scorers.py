"""What each scorer reads from an answer, and what it says about it."""

import pytest

from batchrun.errors import UsageError
from batchrun.evaluation.references import choice_in, number_in
from batchrun.evaluation.scorers import Judgement, Rules, scorer_of


def judged(scorer: str, text: str | None, reference: object, **rules: object) -> Judgement:
    record = {"id": "a", "text": text, "metadata": {"reference": reference}}
    return scorer_of(scorer, Rules(**rules))(record)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (b) ", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B) Paris", "B"),
        ("B. Paris is the capital of France.", "B"),
        ("The answer is (B)", "B"),
        ("The answer is (B).", "B"),
        ("The answer is **B**.", "B"),
        ("the answer is b", "B"),
        ("Answer: C", "C"),
        ("**Answer:** C", "C"),
        ("ANSWER: $D$", "D"),
        ("**Final Answer: (D)**", "D"),
        ("The correct option is C: the others are too small.", "C"),
        ("The answer is A because it rains.", "A"),
        ("The answer is: option E", "E"),
        (r"Thus \(\boxed{B}\)", "B"),
        (r"The final answer is \boxed{\text{C}}.", "C"),
        ("<answer>D</answer>", "D"),
        ("I'd go with D, since it is larger.", "D"),
        ("A is wrong and C is too small. B is correct.", "B"),
        ("Both (A) and (C) are wrong. The answer is A... no, wait: the answer is (D).", "D"),
        ("A bird would choose (C).", "C"),
        ("Option A is wrong. Option B is larger. So the answer: B", "B"),
        ("A. Paris\nB. Rome\nC. Berlin", None),
        ("The answer is a mistake.", None),
        ("The answer is not clear; it may be (A) or (B).", None),
        ("I cannot answer that.", None),
        ("Be careful.", None),
        ("", None),
        ("F", None),
    ],
)
def test_a_choice_is_found_however_it_is_written(text: str, letter: str | None):
    assert choice_in(text) == letter


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("1,234.5", "1234.5"),
        ("1,234,567 people", "1234567"),
        ("$3", "3"),
        ("-$3.50", "-3.5"),
        ("50%", "50"),
        ("first 3, then 4", "4"),
        ("x = -5", "-5"),
        ("x = −5", "-5"),  # noqa: RUF001 - a minus sign
        ("10-5", "5"),
        ("(3)-2", "2"),
        (".5", "0.5"),
        ("1e3", "1000"),
        (r"\boxed{1{,}000}", "1000"),
        ("#### 72", "72"),
        ("12 of H2O", "12"),
        ("GPT4o", None),
        ("no number", None),
        ("3." + "0" * 5000, "3"),
    ],
)
def test_the_last_number_of_a_text_is_found(text: str, number: str | None):
    found = number_in(text)
    assert (found is None) if number is None else (found == type(found)(number))


@pytest.mark.parametrize(
    ("scorer", "text", "reference", "rules", "value"),
    [
        ("exact", "Paris\n", "Paris", {}, 1),
        ("exact", "paris", "Paris", {}, 0),
        ("exact", "paris", "Paris", {"normalize": ("case",)}, 1),
        ("exact", "New  York", "New York", {}, 0),
        ("exact", "New \n York", "New York", {"normalize": ("space",)}, 1),
        ("exact", "Paris.", "Paris", {"normalize": ("punctuation",)}, 1),
        ("exact", "«Paris !»", "paris", {"normalize": ("punctuation", "case")}, 1),
        ("exact", "42", 42, {}, 1),
        ("exact", "true", True, {}, 1),
        ("exact", "UK", ["United Kingdom", "UK"], {}, 1),
        ("exact", "<think>Rome?</think>\n\nParis", "Paris", {}, 1),
        ("exact", "cafe\u0301", "café", {}, 1),
        ("contains", "It is Paris.", "Paris", {}, 1),
        ("contains", "It is Rome.", "Paris", {}, 0),
        ("number", "about 3.14", 3.14159, {"tolerance": "0.01"}, 1),
        ("number", "about 3.2", 3.14159, {"tolerance": "0.01"}, 0),
        ("number", "101", 100, {"tolerance": "1%"}, 1),
        ("number", "102", 100, {"tolerance": "1%"}, 0),
        ("number", "-99", -100, {"tolerance": "1%"}, 1),
        ("number", "$1,234.50", "#### 1234.5", {}, 1),
        ("number", "0.30", 0.3, {}, 1),
        ("number", "12345678901234567890", 12345678901234567891, {}, 0),
        ("number", "12345678901234567891", 12345678901234567891, {}, 1),
        ("number", "1e999 and 9e999", 1, {"tolerance": "1"}, 0),
        ("choice", "The answer is (B)", "B", {}, 1),
        ("choice", "The answer is (B)", "(b)", {}, 1),
        ("choice", "C", ["B", "C"], {}, 1),
        ("json", '```json\n{"a": 1.0}\n```', {"a": 1}, {}, 1),
        ("json", '{"a": true}', {"a": 1}, {}, 0),
        ("json", '{"b": 2, "a": [1]}', '{"a": [1], "b": 2}', {}, 1),
        ("json", "no", {"a": 1}, {}, 0),
        ("json", '"yes"', "yes", {}, 1),
        ("regex:verdict: right", "verdict: right", None, {}, 1),
        ("regex:verdict: right", "Verdict: right", None, {"normalize": ("case",)}, 1),
        ("regex:verdict: right", "verdict: wrong", None, {}, 0),
        (r"regex:capital (?:is|=) (\w+)", "first, capital = Rome; capital is Paris", "Paris", {}, 1),
        (r"regex:capital is (\w+)", "no idea", "Paris", {}, 0),
    ],
)
def test_an_answer_is_judged_by_its_reference(
    scorer: str, text: str, reference: object, rules: dict[str, object], value: float
):
    assert judged(scorer, text, reference, **rules).value == value


@pytest.mark.parametrize("scorer", ["exact", "contains", "number", "choice", "json", "regex:(a)"])
def test_a_row_without_a_reference_gets_no_score(scorer: str):
    value, extracted, reason = scorer_of(scorer, Rules())({"id": "a", "text": "a"})
    assert (value, extracted, reason) == (None, None, "there is no metadata.reference")


@pytest.mark.parametrize(
    ("scorer", "reference", "reason"),
    [
        ("exact", {"a": 1}, "metadata.reference is not a text: \"{'a': 1}\""),
        ("number", "many", "metadata.reference is not a number: 'many'"),
        ("number", True, "metadata.reference is not a number: 'True'"),
        ("number", ["1", "many"], "metadata.reference is not a number: \"['1', 'many']\""),
        ("choice", 2, "metadata.reference is not a letter from A to E: '2'"),
        ("choice", "Paris", "metadata.reference is not a letter from A to E: 'Paris'"),
    ],
)
def test_a_reference_of_another_type_gets_no_score_but_a_reason(scorer: str, reference: object, reason: str):
    assert judged(scorer, "5", reference) == (None, None, reason)


@pytest.mark.parametrize("text", [None, "", " \n", "<think>hm"])
def test_an_answer_without_text_is_wrong(text: str | None):
    for scorer in ("exact", "number", "json"):
        assert judged(scorer, text, "1") == (0.0, None, "the answer has no text")


def test_the_extracted_answer_and_what_was_expected_are_stated():
    assert judged("number", "so 1,200.5", 7) == (0.0, 1200.5, "expected '7'")
    assert judged("choice", "(C)", ["A", "B"]) == (0.0, "C", "expected 'A' or 'B'")
    assert judged("json", '{"a": 1}', {"a": 1}).extracted == {"a": 1}
    assert judged("exact", "x" * 5000, "x").extracted == "x" * 1000 + "…"


def test_a_reference_is_found_at_any_path():
    record = {"id": "a", "text": "4", "request": {"meta": {"gold": [3, 4]}}}
    assert scorer_of("number", Rules(reference="request.meta.gold.1"))(record).value == 1


@pytest.mark.parametrize(
    ("scorer", "rules", "message"),
    [
        ("exakt", {}, "--with 'exakt': there is no such scorer"),
        ("regex:(", {}, "--with regex:'(': this is not a regular expression: missing ), unterminated subpattern at"),
        ("exact", {"normalize": ("kase",)}, "--normalize 'kase' is unknown"),
        ("exact", {"reference": "a..b"}, "--reference 'a..b' is not a path"),
        ("exact", {"tolerance": "1%"}, "--tolerance needs --with number"),
        ("regex:", {}, "--with regex: has no pattern, so every text would match"),
        ("number", {"tolerance": "much"}, "--tolerance 'much' is neither a number nor a percentage"),
    ],
)
def test_a_wrong_option_is_refused(scorer: str, rules: dict[str, object], message: str):
    with pytest.raises(UsageError) as error:
        scorer_of(scorer, Rules(**rules))
    assert error.value.message.startswith(message)
