"""Conditions on records: what they mean, and what is no condition."""

from __future__ import annotations

import pytest

from batchrun.errors import UsageError
from batchrun.results.conditions import Conditions

RECORD = {
    "id": "7",
    "text": "I'm sorry, as an AI",
    "finish_reason": "length",
    "usage": {"input_tokens": 3, "output_tokens": None},
    "output": [{"choices": [{"text": "a"}, {"text": "b"}]}],
    "metadata": {"lang": "en", "ok": True, "score": 0.5, "tags": ["x", "y"], "big": 2**70, "blank": ""},
    "variant": {"temperature": 0, "input.image.width": 512, "input": {"image": "no"}},
}


@pytest.mark.parametrize(
    "condition",
    [
        "finish_reason=length",
        ' finish_reason = "length" ',
        "finish_reason!=stop",
        "id=7",
        "usage.input_tokens=3",
        "usage.input_tokens=3.0",
        "usage.input_tokens!=4",
        "usage.output_tokens=null",
        "usage.output_tokens=",
        "metadata.absent=null",
        "metadata.absent=",
        "metadata.absent!=x",
        "metadata.absent.deeper!=x",
        "metadata.blank=",
        "metadata.ok=true",
        "metadata.ok!=1",
        "metadata.score=0.5",
        "metadata.score=5e-1",
        'metadata.tags=["x", "y"]',
        "metadata.tags.1=y",
        f"metadata.big={2**70}",
        "output.0.choices.1.text=b",
        "output.0.choices.2.text!=b",
        "variant.temperature=0",
        "variant.input.image.width=512",
        "variant.input.image=no",
        "text~sorry",
        "text~(?i)AS AN ai$",
        "text~^I'm sorry, ",
        'metadata.tags~"x"',
        "usage.input_tokens~^3$",
        "text!=a=b",
    ],
)
def test_a_condition_holds(condition):
    assert Conditions([condition]).hold(RECORD)


@pytest.mark.parametrize(
    "condition",
    [
        "finish_reason=Length",
        "finish_reason!=length",
        "metadata.ok=1",
        "metadata.absent=x",
        "metadata.absent~.*",
        "metadata.blank=null",
        "usage.output_tokens~null",
        "usage.output_tokens!=",
        "text~(?s)Sorry",
        "output.9.text=b",
        "output.0000000000000000000000001=b",
        "id.0=7",
        "text=a=b",
    ],
)
def test_a_condition_does_not_hold(condition):
    assert not Conditions([condition]).hold(RECORD)


def test_several_conditions_must_all_hold():
    assert Conditions(["id=7", "text~sorry"]).hold(RECORD)
    assert not Conditions(["id=7", "text~glad"]).hold(RECORD)
    assert not Conditions([])


def test_a_field_that_no_record_has_is_known_to_be_a_mistake():
    where = Conditions(["finsh_reason!=stop", "id!=0", "metadata.maybe!=1"])
    assert where.unknown_fields() == [], "nothing has been looked at"
    assert where.hold(RECORD)
    assert where.unknown_fields() == ["finsh_reason", "metadata.maybe"]
    where.hold({"id": "8", "metadata": {"maybe": None}})
    assert where.unknown_fields() == ["finsh_reason"]


@pytest.mark.parametrize("written", ["", "x", "=x", "~x", "!=x", "a..b=1", ".a=1", "a.=1", "usage>3", "a!~b", " = "])
def test_what_is_no_condition_is_refused_by_name_and_told_how_to_write_one(written):
    with pytest.raises(UsageError, match="is not a condition") as refused:
        Conditions([written])
    assert repr(written) in refused.value.message
    assert "finish_reason=length" in refused.value.hint


@pytest.mark.parametrize("written", ["text~(", "text~*", "text~[a", "text~(?<x", "text~a{99999999999}"])
def test_a_regular_expression_that_is_none_is_refused_with_the_reason(written):
    with pytest.raises(UsageError, match="is not a regular expression"):
        Conditions([written])
