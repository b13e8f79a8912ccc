"""Schemas as they are given: a file, JSON, or fields in short; and what is no schema is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchrun.config import RequestOptions
from batchrun.errors import UsageError
from batchrun.prompts.requests import build_request
from batchrun.prompts.schemas import read_schema
from batchrun.prompts.shapes import parse_line
from batchrun.results.structured import AnswerSchema

TEXT = {"type": "string"}
WHOLE = {"type": "integer"}


def object_of(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields)}


@pytest.mark.parametrize(
    ("short", "schema"),
    [
        ("name", object_of(name=TEXT)),
        ("name, age int", object_of(name=TEXT, age=WHOLE)),
        (
            "a str,b int,c float,d bool,e list",
            object_of(
                a=TEXT,
                b=WHOLE,
                c={"type": "number"},
                d={"type": "boolean"},
                e={"type": "array", "items": TEXT},
            ),
        ),
        (
            "name: as on the cover, age int: in years",
            object_of(name={**TEXT, "description": "as on the cover"}, age={**WHOLE, "description": "in years"}),
        ),
        (
            "name: first, then last\nage int\n",
            object_of(name={**TEXT, "description": "first, then last"}, age=WHOLE),
        ),
        ("name,, age int, ", object_of(name=TEXT, age=WHOLE)),
        ("größe int", object_of(größe=WHOLE)),
        ('{"type": "array"}', {"type": "array"}),
    ],
)
def test_the_short_form_stands_for_an_object_with_all_of_its_fields(short: str, schema: dict[str, Any]):
    assert read_schema(short) == schema
    AnswerSchema(schema)


def test_a_file_is_read_whatever_it_is_called_and_however_it_begins(tmp_path: Path):
    for name, encoding in (("schema.json", "utf-8"), ("schema", "utf-8-sig")):
        (tmp_path / name).write_text('{"type": "object"}', encoding)
        assert read_schema(str(tmp_path / name)) == {"type": "object"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "--schema is empty"),
        (" , ", "--schema is empty"),
        ("age number", "'age number' has no known type"),
        ("age int years", "'age int years' is not a field"),
        ("name, name", "'name' is there twice"),
        (": what", "': what' is not a field"),
        ("[1]", "expected an object"),
        ("{'type': 'object'}", "is not JSON"),
        ("missing.json", "missing.json: No such file"),
        ("schemas/missing", "schemas/missing: No such file"),
        ("broken.json", "broken.json is not JSON"),
        ("list.json", "list.json is not a schema"),
        ("folder.json", "folder.json: Is a directory"),
        (3, "schema is of type int"),
    ],
)
def test_what_is_no_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"type":')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError) as refused:
        read_schema(given)
    assert message in refused.value.message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, '"strin" is not valid'),
        ({"properties": {"a": {"pattern": "("}}}, 'at $["properties"]["a"]["pattern"]'),
        ({"$ref": "#/$defs/none"}, "'/$defs/none' does not exist"),
        ({"$ref": "https://example.com/x.json"}, "copy it into its $defs"),
        ({"$ref": "file:///etc/passwd"}, "copy it into its $defs"),
    ],
)
def test_a_schema_that_is_not_valid_or_refers_elsewhere_is_refused(schema: dict[str, Any], message: str):
    with pytest.raises(UsageError) as refused:
        AnswerSchema(schema)
    assert message in refused.value.message
    assert "\n" not in refused.value.message


ANSWERS = AnswerSchema(object_of(name=TEXT, **{"a b": WHOLE}, tags={"type": "array", "items": TEXT}))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"name": "a", "a b": 1, "tags": []}', None),
        ('```json\n{"name": "a", "a b": 1, "tags": ["```"]}\n```', None),
        ('```json {"name": "a", "a b": 1, "tags": []}```\nDone.', None),
        ('So:\r\n```\r\n{"name": "a", "a b": 1, "tags": []}\r\n```\r\n', None),
        ('```json\n{"name": "a", "a b": 1, "tags": []}', None),
        ('```Json\n{"name": "a", "a b": 1, "tags": []}\n```', None),
        ('```jsonc \r\n{"name": "a", "a b": 1, "tags": []}\r\n```', None),
        ("```null\n```", "$: null is not of type"),
        ('```json\n{"name": "a", "a b": 1, "ta', "the answer is not JSON"),
        ("null", "$: null is not of type"),
        ('{"name": "```\\nx\\n```", "a b": 1, "tags": []}', None),
        ('{"name": 1, "a b": 1.5, "tags": []}', '$.name: 1 is not of type "string"; $["a b"]: 1.5 is not of type'),
        ('{"name": "a", "a b": 1, "tags": ["x", [1]]}', '$.tags[1]: [1] is not of type "string"'),
        ("{}", '$: "name" is a required property; $: "a b" is a required property; $: "tags" is a required'),
        ('"\\ud800"', "the answer is not JSON"),
        ("\ud800", "the answer is not JSON: it is not valid UTF-8"),
        ("[" * 2000, "the answer is not JSON"),
    ],
)
def test_a_problem_names_the_path_of_each_value_that_does_not_fit(text: str, problem: str | None):
    found = ANSWERS.problem(text)
    assert found is None if problem is None else found is not None and found.startswith(problem)


def test_many_problems_and_long_values_make_a_short_message():
    found = AnswerSchema({"items": TEXT}).problem(f"[{','.join(['[' + '1,' * 500 + '1]'] * 50)}]")
    assert found is not None
    assert found.endswith("; and 47 more")
    assert len(found) < 1000


@pytest.mark.parametrize(
    ("line", "place"),
    [
        (b'{"custom_id":"a","url":"/v1/responses","body":{"input":"who?"}}', "text"),
        (b'{"custom_id":"a","url":"/v1/completions","body":{"prompt":"who?"}}', "response_format"),
        (b'{"custom_id":"a","url":"/v1/embeddings","body":{"input":"who?"}}', None),
        (b'{"custom_id":"a","url":"/v1/responses","body":{"input":"who?","text":{"format":{"type":"text"}}}}', None),
        (b'{"custom_id":"a","url":"/v1/chat/completions","body":{"messages":[],"structured_outputs":{}}}', None),
    ],
)
def test_each_route_is_asked_in_its_own_words(line: bytes, place: str | None):
    prompt = parse_line(line)
    asked = build_request(prompt, RequestOptions(schema=object_of(name=TEXT)))["openai_input"]
    own = prompt.request["openai_input"]
    assert {key for key in asked if asked[key] != own.get(key)} == ({place} if place else set())
