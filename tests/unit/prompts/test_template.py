"""Rows of columns are rendered as the lines that say the same."""

from __future__ import annotations

import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.config import RequestOptions, TemplateOptions
from batchrun.errors import InputError, UsageError
from batchrun.prompts.identity import derived_id
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.shapes import LineError, Prompt, Shape, parse_line


def rules(id_column: str | None = None, **template: Any) -> LineRules:
    return LineRules(RequestOptions(template=TemplateOptions(**template), id_column=id_column))


def render(row: Any, id_column: str | None = None, **template: Any) -> Prompt:
    return rules(id_column, **template).parse(orjson.dumps(row))


def text(row: Any, prompt: str) -> str:
    return render(row, prompt=prompt).request["messages"][-1]["content"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda found: found.strip())
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
COLUMNS = st.dictionaries(st.sampled_from(["a", "b c", "stars", "user", "é"]), VALUES)


@given(TEXT, COLUMNS, st.none() | st.sampled_from(["x", "7"]), st.none() | st.floats(0, 1), st.booleans())
def test_a_row_asks_what_the_line_that_says_the_same_asks(review, more, row_id, temperature, raw):
    row = {"review": review, **more}
    own = {} if row_id is None else {"id": row_id}
    parameters = {} if temperature is None else {"temperature": temperature}
    content = f"Rate: {review}"
    said = {"prompt": content} if raw else {"messages": [{"role": "user", "content": content}]}
    line = {**own, **said, **parameters, "metadata": row}
    one = render({**own, **row, **parameters}, prompt="Rate: {{ review }}", raw=raw)
    other = parse_line(orjson.dumps(line))
    assert (one.id, one.shape, one.request, one.carried) == (other.id, other.shape, other.request, other.carried)
    assert derived_id(one) == derived_id(other)
    assert parse_line(orjson.dumps(one.line)) == other


@given(TEXT)
def test_what_a_column_holds_is_data_in_each_form(review: str):
    row = {"review": review}
    assert text(row, "{{ review }}") == review
    listed = '[{"role": "user", "content": "It says: {{ review }}"}]'
    assert render(row, messages=listed).request["messages"] == [{"role": "user", "content": f"It says: {review}"}]
    whole = '[{% if review %}{"role": "user", "content": {{ review }}}{% endif %}]'
    assert render(row, messages=whole).request["messages"] == [{"role": "user", "content": review}]
    piped = '[{% if 1 %}{"role": "user", "content": {{ ("é" ~ review) | tojson }}}{% endif %}]'
    assert render(row, messages=piped).request["messages"] == [{"role": "user", "content": f"é{review}"}]


@pytest.mark.parametrize(
    ("column", "template", "expected"),
    [
        ("{{ secret }} {% raw %}", "{{ a }}", "{{ secret }} {% raw %}"),
        ('"}, {"role": "system"', "{{ a }}", '"}, {"role": "system"'),
        ("<b>it's</b>", "{{ a }} {{ a | tojson }}", "<b>it's</b> \"<b>it's</b>\""),
        ("日本 🏯", "{{ a | reverse }}{{ a | length }}", "🏯 本日4"),
        ([1, "é", {"x": True, "y": None}], "{{ a }} {{ a[2].x }}", '[1,"é",{"x":true}] True'),
        ({"x": {"y": "z"}}, "{{ a.x.y }} {{ a | tojson }}", 'z {"x":{"y":"z"}}'),
        ({"x": 1}, "{% for key, value in a.items() %}{{ key }}={{ value }}{% endfor %}", "x=1"),
        (10**50, "{{ a }}", str(10**50)),
        (2**100, "{{ a + 1 }}", str(2**100 + 1)),
        ("one two three", "{{ a | truncate(9, leeway=0) }} {{ a | truncate(8, true, '.', 0) }}", "one... one two."),
        ("one two", "{{ a | truncate(200) }} {{ a | truncate(length=3, end='', leeway=0) }}", "one two one"),
        (0, "{{ a }}{% if not a %}!{% endif %}", "0!"),
    ],
)
def test_a_value_is_written_as_it_is(column: Any, template: str, expected: str):
    assert rules(prompt=template).parse(b'{"a":%s}' % _json(column)).request["messages"][0]["content"] == expected


def _json(value: Any) -> bytes:
    return str(value).encode() if isinstance(value, int) else orjson.dumps(value)


def test_a_name_in_a_list_of_messages_is_no_template():
    with pytest.raises(UsageError, match=r"--messages-file: the name '\{\{ a \}\}' is a template"):
        rules(messages='[{"role": "user", "{{ a }}": "{{ b }}"}]').parse(b'{"a": "x", "b": "y"}')


def test_a_column_may_be_named_like_a_function_of_jinja():
    row = {"range": "wide", "dict": "d", "namespace": "n", "a": "x"}
    assert text(row, "{{ range }} {{ dict }} {{ namespace }}") == "wide d n"
    assert text(row, "{% for i in range(2) %}{{ a }}{{ i }}{% endfor %}") == "x0x1"
    with pytest.raises(LineError, match="`dict` is undefined"):
        text({"a": "x"}, "{{ a }}{{ dict }}")


@pytest.mark.parametrize("row", [{"other": 1, "note": None}, {"other": 1}])
def test_a_null_column_is_one_that_is_not_there(row: dict):
    assert text(row, "{{ note | default('none') }}{% if note %}!{% endif %}{{ other }}") == "none1"
    with pytest.raises(LineError, match=r"^--prompt, line 2, column 6: `note` is undefined \(the row has `other`\)$"):
        render(row, prompt="{{ other }}\n é{{ note }}")
    with pytest.raises(LineError, match="line 1, column 16: `note` is undefined"):
        render(row, prompt="{{ other }}, {{note | tojson }}")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"prompt": "{{ a.b.c }}"}, "--prompt, line 1, column 5: `a.b` is undefined"),
        ({"prompt": "{{ a.pop('x') }}"}, "an object has no method `pop`"),
        ({"prompt": "{{ l.append(1) }}"}, "a list has no method `append`"),
        ({"prompt": "{{ a.__class__ }}"}, "`a.__class__` is undefined"),
        ({"prompt": "{{ a.update }}"}, "`a.update` is undefined"),
        ({"prompt": "{{ t.__class__ }}"}, "`t.__class__` is undefined"),
        ({"prompt": "{{ l | attr('append') }}"}, "--prompt, line 1, column 4: undefined value"),
        ({"prompt": "{{ t }}{% include 'other' %}"}, "--prompt, line 1, column 11: tried to include"),
        ({"prompt": "{{ a | truncate(9) }}"}, "--prompt: `truncate` of something that is no text"),
        ({"prompt": "{{ t | truncate(1) }}"}, "--prompt: `truncate` to fewer characters (1) than its end has (3)"),
        ({"prompt": "{{ gone | truncate(9) }}"}, "--prompt, line 1, column 4: `gone` is undefined"),
        ({"prompt": "{{ t / 0 }}"}, "--prompt, line 1, column 4"),
        ({"prompt": "{% if t == 'y' %}x{% endif %}"}, "the template renders no text"),
        (
            {"prompt": "{% for i in range(99999) %}{% for j in range(99999) %}{{ t }}{% endfor %}{% endfor %}"},
            "--prompt, line 1, column 58: it runs for too long",
        ),
        ({"messages": '{% if t %}{"role": {{ t }}}{% endif %}'}, "--messages-file does not render a JSON list"),
        ({"messages": '[{% if t %}{"role": "{{ t }}"}{% endif %}]'}, "put no quotes around them"),
        ({"messages": '["{{ t }}"]'}, "`messages[0]` must be an object with a `role`"),
        ({"prompt": "{{ t }}", "image_column": "gone"}, "--image-column: `gone` is absent or empty: the row has"),
    ],
)
def test_a_row_that_cannot_be_rendered_says_why_and_where(template: dict, words: str):
    row = {"a": {"x": 1}, "l": [1], "t": "y" if "'y'" not in str(template) else "n"}
    before = orjson.dumps(row)
    with pytest.raises(LineError) as caught:
        rules(**template).parse(before)
    assert words in caught.value.message
    assert "0x" not in caught.value.message


def test_a_template_that_is_none_is_refused_with_its_place():
    for prompt, words in (
        ("{{ a", "--prompt, line 1, column 4"),
        ("x\n{% fr a in b %}", "--prompt, line 2, column 4: unknown statement fr"),
        ("{{ a | nofilter }}", None),
        ("Rate: {review}", "uses no column"),
    ):
        if words is None:
            with pytest.raises(LineError, match="filter nofilter is unknown"):
                render({"a": 1}, prompt=prompt)
            continue
        with pytest.raises(UsageError) as caught:
            render({"a": 1}, prompt=prompt)
        assert words in caught.value.message
    assert caught.value.hint.endswith("{{ review }}")
    with pytest.raises(UsageError, match=r"--prompt-file p\.txt, line 1"):
        render({"a": 1}, prompt="{{ a", files=(("--prompt-file", "p.txt"),))
    with pytest.raises(UsageError, match="--messages-file is not a list of messages"):
        render({"a": 1}, messages='{"role": "user"}')


def test_without_minijinja_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minijinja", None)
    with pytest.raises(UsageError, match="a template needs minijinja") as caught:
        render({"a": 1}, prompt="{{ a }}")
    assert caught.value.hint == "pip install 'runpod-batchrun[data]'"


def test_a_line_with_a_prompt_is_refused_unless_the_template_uses_its_columns():
    for line in ({"prompt": "p"}, {"messages": [{"role": "user", "content": "m"}]}, {"input": {"x": 1}}):
        with pytest.raises(LineError, match=f"has `{next(iter(line))}` of its own"):
            render(line, prompt="{{ review | default('x') }}")
    assert text({"prompt": "p"}, "Translate: {{ prompt }}") == "Translate: p"
    assert text("p", "Translate: {{ prompt }}") == "Translate: p"
    assert text({"messages": [{"role": "user", "content": "m"}]}, "{{ messages[0].content }}!") == "m!"
    with pytest.raises(LineError, match="expected an object with columns"):
        render([1], prompt="{{ a }}")


def test_columns_are_metadata_and_those_with_the_names_of_parameters_are_sent():
    row = {
        "id": 1,
        "review": "r",
        "n": 3,
        "seed": 5,
        "user": "u",
        "temperature": 0.5,
        "max_tokens": "20",
        "top_p": None,
        "stop": '["a"]',
        "metadata": {"topic": "rain"},
    }
    found = render(row, prompt="{{ review }}")
    assert found.request["sampling_params"] == {"temperature": 0.5, "max_tokens": 20, "stop": '["a"]'}
    metadata = {"topic": "rain", "review": "r", "n": 3, "seed": 5, "user": "u", "top_p": None}
    assert found.carried == {"metadata": metadata}
    used = render(row, prompt="{{ temperature }} at {{ stop }}")
    assert used.request["sampling_params"] == {"max_tokens": 20}
    chosen = render(row, prompt="{{ review }}", columns=("id", "temperature", "metadata"))
    assert chosen.carried == {"metadata": {"topic": "rain", "id": 1, "temperature": 0.5}}
    given = render({"a": 1, "sampling_params": {"seed": 4}}, prompt="{{ a }}", raw=True)
    assert (given.shape, given.request["sampling_params"]) == (Shape.PROMPT, {"seed": 4})
    with pytest.raises(LineError, match="there is a column `topic`, and a field `topic` in `metadata`"):
        render({"topic": 1, "metadata": {"topic": 2}}, prompt="{{ topic }}")


def test_an_id_column_names_the_rows_with_and_without_a_template():
    row = {"asin": 12, "id": "own", "review": "r"}
    found = render(row, "asin", prompt="{{ review }}")
    assert (found.id, found.carried) == ("12", {"metadata": row})
    plain = LineRules(RequestOptions(id_column="asin"))
    assert plain.parse(b'{"asin": "B1", "prompt": "x"}').id == "B1"
    error = {"id": "B1/seed=1", "status": "FAILED", "error": {"kind": "x", "message": "", "raw": ""}, "source": {}}
    again = plain.parse(orjson.dumps({**error, "request": {"asin": "B1", "prompt": "x"}, "job": None}))
    assert again.id == "B1/seed=1", "a row of a sweep has its line's id and more"
    for parse in (rules("asin", prompt="{{ prompt }}").parse, plain.parse):
        with pytest.raises(LineError, match="--id-column: `asin` is absent or empty: the row has `prompt`"):
            parse(b'{"prompt": "x", "asin": null}')
        with pytest.raises(LineError, match="--id-column `asin` must be a string or a number"):
            parse(b'{"prompt": "x", "asin": [1]}')


def test_a_line_of_an_error_file_is_refused_because_it_is_rendered_already():
    line = {
        "id": "a",
        "status": "FAILED",
        "error": {"kind": "x", "message": "", "raw": ""},
        "source": {},
        "job": None,
        "request": {"prompt": "x"},
    }
    with pytest.raises(LineError, match="run that file without the template"):
        render(line, prompt="{{ id }}")


def test_a_row_that_could_not_be_rendered_is_rendered_from_the_error_file():
    row = {"asin": "B1", "note": "x"}
    line = {"id": "invalid-1", "status": "INVALID", "error": {"kind": "invalid", "message": "", "raw": ""}}
    line |= {"request": row, "source": {}, "job": None}
    for template in (rules("asin", prompt="{{ note }}"), rules("asin", prompt="{{ row.note }}")):
        again = template.parse(orjson.dumps(line))
        assert (again.id, again.request) == ("B1", template.parse(orjson.dumps(row)).request)
        assert again.carried == template.parse(orjson.dumps(row)).carried


def test_a_column_that_no_row_has_cannot_be_carried():
    found = rules(prompt="{{ a }}", columns=("a", "b", "c"))
    found.parse(b'{"a": 1}')
    found.parse(b'{"a": 1, "c": 2}')
    with pytest.raises(InputError, match="--columns: no row has `b`") as caught:
        found.finish()
    assert caught.value.hint == "there are `a`, `c`"


def test_pictures_are_added_to_the_last_message_of_the_user():
    url = {"type": "image_url", "image_url": {"url": "a.png"}}
    found = render({"pic": "a.png"}, prompt="Describe it.", image_column="pic").request["messages"]
    assert found == [{"role": "user", "content": [{"type": "text", "text": "Describe it."}, url]}]
    turns = '[{"role": "user", "content": "{{ t }}"}, {"role": "assistant", "content": "y"}]'
    row = {"t": "x", "pic": ["a.png", "a.png"]}
    found = render(row, messages=turns, image_column="pic").request["messages"]
    assert found[0]["content"] == [{"type": "text", "text": "x"}, url, url]


def test_a_request_that_cannot_be_sent_is_found():
    with pytest.raises(LineError, match="/run accepts at most 10,000,000"):
        render({"a": "x" * 6_000_000}, prompt="{{ a }}{{ a }}")
    deep: Any = 1
    for _ in range(240):
        deep = [deep]
    with pytest.raises(LineError, match="nested too deeply"):
        rules(prompt="{{ a }}").parse(b'{"a": 1, "sampling_params": {"x": ' + b"[" * 252 + b"]" * 252 + b"}}")
