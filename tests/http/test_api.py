"""The Python API, over real HTTP against the local endpoint."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from aiohttp import web
from pyarrow import parquet

import batchrun
from batchrun.cli.app import main
from batchrun.commands import verify as verification
from batchrun.errors import BatchrunError, InputError, StateError, StoppedError, UsageError
from batchrun.local.echo import EchoWorker
from tests.support.command import BATCHRUN, served, start
from tests.support.jobs import jobs_run
from tests.support.rehearsal import read_lines, serving
from tests.support.waiting import wait_for_lines
from tests.support.workers import Answering, Picky

RUN = (
    "(inputs: 'str | os.PathLike[str] | Iterable[Any]', *, endpoint: 'str | Sequence[str] | None' = None, output:"
    " 'str | os.PathLike[str]', state: 'str | os.PathLike[str] | None' = None, api_key: 'str | None' = None,"
    " on_interrupt: 'config.InterruptPolicy' = 'drain', progress: 'config.ProgressMode' = 'auto', set:"
    " 'Mapping[str, Any] | None' = None, default: 'Mapping[str, Any] | None' = None, system: 'str | None' = None,"
    " prompt: 'str | None' = None, raw: 'bool' = False, messages_file: 'Path | None' = None, id_column: 'str |"
    " None' = None, columns: 'Sequence[str] | None' = None, image_column: 'str | None' = None, inline_files:"
    " 'bool' = False, chat: 'bool' = False, schema: 'str | os.PathLike[str] | Mapping[str, Any] | type[Any] | None'"
    " = None, base_url: 'str' = 'https://api.runpod.ai/v2', insecure_http: 'bool' = False, concurrency: 'int | None'"
    " = None, pack: 'int | None' = 1, pack_check: 'Switch' = 'on', max_retries: 'int' = 3, reask: 'int | None' = None,"
    " require_text: 'bool' = False, check: 'str | None' = None, check_timeout: 'float | None' = None, cache: 'Path"
    " | None' = None, cache_sampled: 'bool' = False, execution_timeout: 'float | None' = None, ttl: 'float | None'"
    " = None, job_timeout: 'float | None' = None, deadline: 'float | None' = None, price_per_hour: 'float |"
    " dict[str, float] | None' = None, max_cost: 'float | None' = None, retry_failed: 'bool' = False, only:"
    " 'tuple[str, ...]' = (), halt: 'HaltOptions | None' = None, canary: 'int | None' = None, canary_allow:"
    " 'CanaryAllows | None' = None, format: 'FormatChoice' = 'auto', with_request: 'bool' = False, split_think:"
    " 'bool' = False, connections: 'int | None' = None, low_priority: 'bool' = False, run_limit: 'int | None' ="
    " None, status_limit: 'int | None' = None, memory: 'int' = 256000000, inspect_output: 'bool' = True,"
    " request_timeout: 'float' = 30.0, notify: 'str | None' = None, worker: 'WorkerChoice' = 'auto', model_file:"
    " 'Path | None' = None, upstream: 'str | None' = None, sweep: 'Mapping[str, Sequence[Any]] | None' = None,"
    " repeat: 'int' = 1, limit: 'int | None' = None, unconfirmed: 'UnconfirmedPolicy' = 'resubmit', mixed: 'bool'"
    " = False, abandon: 'bool' = False, repair: 'bool' = False, ordered: 'bool' = False, shard: 'str | None' ="
    " None, dedupe: 'bool' = False, skip_invalid: 'bool' = False, strict: 'bool' = False) -> 'Summary'"
)
STREAM = (
    "(requests: 'Iterable[Any] | AsyncIterable[Any]', *, endpoint: 'str', state: 'str | os.PathLike[str]',"
    " output: 'str | os.PathLike[str] | None' = None, api_key: 'str | None' = None, on_interrupt:"
    " 'config.InterruptPolicy' = 'drain', progress: 'config.ProgressMode' = 'none', set: 'Mapping[str, Any] |"
    " None' = None, default: 'Mapping[str, Any] | None' = None, system: 'str | None' = None, prompt: 'str | None'"
    " = None, raw: 'bool' = False, messages_file: 'Path | None' = None, id_column: 'str | None' = None, columns:"
    " 'Sequence[str] | None' = None, image_column: 'str | None' = None, inline_files: 'bool' = False, chat: 'bool'"
    " = False, schema: 'str | os.PathLike[str] | Mapping[str, Any] | type[Any] | None' = None, base_url: 'str' ="
    " 'https://api.runpod.ai/v2', insecure_http: 'bool' = False, concurrency: 'int | None' = None, pack: 'int |"
    " None' = 1, pack_check: 'Switch' = 'on', max_retries: 'int' = 3, reask: 'int | None' = None, require_text:"
    " 'bool' = False, check: 'str | None' = None, check_timeout: 'float | None' = None, cache: 'Path | None' ="
    " None, cache_sampled: 'bool' = False, execution_timeout: 'float | None' = None, ttl: 'float | None' = None,"
    " job_timeout: 'float | None' = None, deadline: 'float | None' = None, price_per_hour: 'float | dict[str,"
    " float] | None' = None, max_cost: 'float | None' = None, retry_failed: 'bool' = False, only: 'tuple[str,"
    " ...]' = (), halt: 'HaltOptions | None' = None, canary: 'int | None' = None, canary_allow: 'CanaryAllows |"
    " None' = None, format: 'FormatChoice' = 'auto', with_request: 'bool' = False, split_think: 'bool' = False,"
    " connections: 'int | None' = None, low_priority: 'bool' = False, run_limit: 'int | None' = None,"
    " status_limit: 'int | None' = None, memory: 'int' = 256000000, inspect_output: 'bool' = True,"
    " request_timeout: 'float' = 30.0, notify: 'str | None' = None, worker: 'WorkerChoice' = 'auto', model_file:"
    " 'Path | None' = None, upstream: 'str | None' = None) -> 'Stream'"
)


@pytest.mark.parametrize(("function", "signature"), [(batchrun.run, RUN), (batchrun.stream, STREAM)])
def test_the_signatures_are_these_and_say_what_each_argument_means(function, signature: str):
    found = inspect.signature(function)
    assert str(found) == signature
    arguments = function.__doc__.split("Args:\n")[1].split("\n\n    Returns:")[0]
    assert re.findall(r"^        (\w+): ", arguments, re.MULTILINE) == list(found.parameters)


@pytest.mark.parametrize("function", [batchrun.run, batchrun.stream])
def test_arguments_have_the_names_and_the_defaults_of_the_command_line(function):
    options = {name.lstrip("-").replace("-", "_"): p for p in main.commands["run"].params for name in p.opts}
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("inputs", "requests", "api_key", "progress"):
            continue
        assert name in options
        default = parameter.default
        if isinstance(default, (int, str)) and not isinstance(default, bool) and name not in ("on_interrupt", "memory"):
            assert options[name].default == default


@pytest.mark.parametrize("keyword", ["dry_run", "config", "from_environment", "temprature"])
def test_a_keyword_that_there_is_not_is_a_type_error(tmp_path: Path, keyword: str):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{keyword}'"):
        batchrun.run([{"prompt": "a"}], endpoint="local", output=tmp_path / "o.jsonl", **{keyword: None})
    with pytest.raises(TypeError, match="unexpected keyword argument 'sweep'"):
        batchrun.stream([{"prompt": "a"}], endpoint="local", state=tmp_path / "s.state", sweep={"n": [1]})


def test_all_that_is_offered_is_there_and_costs_nothing_until_it_is_asked_for():
    assert all(getattr(batchrun, name) is not None for name in batchrun.__all__)
    assert set(batchrun.__all__) <= set(dir(batchrun))
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        _ = batchrun.walk
    code = "import sys, batchrun; sys.exit(sum(name in sys.modules for name in ('aiohttp', 'orjson', 'sqlite3')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_each_error_that_a_docstring_names_can_be_caught_by_its_name():
    named = {
        error
        for name in batchrun.__all__
        for error in re.findall(r"^ +(\w+Error): ", getattr(batchrun, name).__doc__ or "", re.MULTILINE)
    }
    assert named == {"BatchrunError", "InputError", "OutputError", "StateError", "StoppedError", "UsageError"}
    assert named <= set(batchrun.__all__)


def said(error: BatchrunError) -> str:
    assert error.message, "every error says what is wrong"
    assert error.hint, "every error says what to do"
    return error.message


# run


def run(requests, folder: Path, **given) -> batchrun.Summary:
    options = {"endpoint": "local", "worker": "echo", "output": folder / "out.jsonl", "progress": "none", **given}
    return batchrun.run(requests, **options)


def test_a_run_continues_where_the_last_call_was(tmp_path: Path):
    requests = [{"id": f"r{n}", "prompt": f"p{n}", "metadata": {"n": n}} for n in range(30)]
    first = run(requests[:20], tmp_path)
    assert (first.outcome, first.total, first.succeeded, first.exit_code) == ("finished", 20, 20, 0)
    assert first.calls["run"] == 20
    second = run(requests, tmp_path)
    assert (second.total, second.succeeded, second.calls["run"]) == (30, 30, 30)
    (results,) = second.results
    records = {record["id"]: record for record in read_lines(results)}
    assert records["r29"]["text"] == "p29"
    assert [records[f"r{n}"]["metadata"]["n"] for n in range(30)] == list(range(30))
    assert verification.verify(second.state).is_whole


def test_a_run_takes_files_as_the_command_line_does(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('"one"\n"two"\n')
    (tmp_path / "b.jsonl").write_text('"three"\n')
    summary = run(tmp_path / "a.jsonl", tmp_path, sweep={"temperature": [0, 0.5]}, repeat=2)
    assert summary.total == 8
    summary = run([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path, output=f"{tmp_path}/each/")
    assert [path.name for path in summary.results] == ["a.results.jsonl", "b.results.jsonl"]


async def test_a_run_works_within_a_running_event_loop(tmp_path: Path):
    summary = run([{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}], tmp_path)
    assert summary.succeeded == 3
    assert len({record["id"] for record in read_lines(tmp_path / "out.jsonl")}) == 3


def test_a_run_works_in_a_thread(tmp_path: Path):
    summaries = []
    thread = threading.Thread(target=lambda: summaries.append(run([{"prompt": "a"}], tmp_path)))
    thread.start()
    thread.join()
    assert summaries[0].exit_code == 0


def test_a_wrong_request_is_named_and_nothing_is_left_behind(tmp_path: Path):
    for requests, message in (
        ([{"prompt": "a"}, {"promt": "b"}], "request 2: no prompt in the line"),
        ([{"prompt": "a"}, 7], "request 2: expected an object or a string, found a number"),
        ([{"prompt": {1, 2}}], "request 1 cannot be written as JSON"),
        ([{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}], "duplicate id 'x'"),
        ([], "there are no requests"),
        (["a prompt", Path("a.jsonl")], "request 2 is a path"),
        ({"prompt": "a"}, "inputs is of type dict"),
        (pd.DataFrame([{"promt": "a"}]), "request 1: no prompt in the line"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)) as caught:
            run(requests, tmp_path)
        said(caught.value)
        assert list(tmp_path.iterdir()) == []


@dataclass
class Question:
    id: str
    prompt: str
    max_tokens: int | None = None


class Model(pydantic.BaseModel):
    id: str
    prompt: str
    max_tokens: int | None = None


COLUMNS = {"id": ["a", "b"], "prompt": ["one", "two"], "max_tokens": [3, None], "day": [date(2026, 1, 2), None]}
FORMS = {
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "pandas' own types": lambda: pd.DataFrame(COLUMNS).convert_dtypes(),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "pyarrow": lambda: pa.table(COLUMNS),
    "pyarrow's batch": lambda: pa.record_batch(COLUMNS),
    "datasets": lambda: datasets.Dataset.from_dict(COLUMNS),
    "dataclasses": lambda: [Question("a", "one", 3), Question("b", "two")],
    "models": lambda: [Model(id="a", prompt="one", max_tokens=3), Model(id="b", prompt="two")],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_or_a_list_of_objects_makes_the_same_requests_as_the_lines_of_a_file(tmp_path: Path, form: str):
    assert run(FORMS[form](), tmp_path).exit_code == 0
    lines = read_lines(tmp_path / "out.jsonl.state.requests.jsonl")
    has_day = {"day": "2026-01-02"} if form not in ("dataclasses", "models") else {}
    expected = [{"id": "a", "prompt": "one", "max_tokens": 3, **has_day}, {"id": "b", "prompt": "two"}]
    found = [{key: value for key, value in line.items() if value is not None} for line in lines]
    days = [line.pop("day", None) for line in (*found, *expected)]
    assert found == expected
    assert [day and day[:10] for day in days[:2]] == days[2:]


CELLS = {
    "prompt": ["one", "two", "three"],
    "cost": [Decimal("1.10"), None, Decimal("2.00")],
    "took": [timedelta(minutes=1), None, timedelta(seconds=1.5)],
    "raw": [b"text", None, b"more"],
    "score": [1.5, math.nan, 2.5],
    "at": [datetime(2026, 1, 2, 3, tzinfo=UTC), None, datetime(2026, 1, 2, 4, tzinfo=UTC)],
    "nested": [{"a": 1, "b": None}, None, {"a": None, "b": [{"c": None}]}],
    "image": [{"bytes": b"GIF89a", "path": None}, None, {"bytes": None, "path": "three.png"}],
}
TABLES = {
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.from_arrow,
    "pyarrow": lambda table: table,
    "pyarrow's batch": lambda table: table.to_batches()[0],
    "datasets": datasets.Dataset,
    "datasets of arrays": lambda table: datasets.Dataset(table).with_format("numpy"),
    "datasets of DataFrames": lambda table: datasets.Dataset(table).with_format("pandas"),
}


@pytest.mark.parametrize("form", TABLES)
def test_the_cells_of_a_table_are_what_they_are_in_its_parquet_file(tmp_path: Path, form: str):
    table = pa.table(CELLS)
    parquet.write_table(table, tmp_path / "in.parquet")
    assert run(tmp_path / "in.parquet", tmp_path, output=tmp_path / "file.jsonl").exit_code == 0
    assert run(TABLES[form](table), tmp_path).exit_code == 0
    (copy,) = tmp_path.glob("file.jsonl.state.0-*.jsonl")
    expected = read_lines(copy)
    assert expected[2]["nested"] == {"b": [{}]}
    expected[0]["nested"]["b"] = expected[2]["nested"]["a"] = expected[2]["nested"]["b"][0]["c"] = None
    assert read_lines(tmp_path / "out.jsonl.state.requests.jsonl") == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame([["a", 1, 2]], columns=["prompt", "x", "x"]), "two columns are named `x`"),
        (pa.table([["a"], [1], [2]], names=["prompt", "x", "x"]), "two columns are named `x`"),
        (pd.DataFrame([["a", 1]], columns=["prompt", 1]), "a column is named 1, which is not a string"),
        (pd.DataFrame([["a"]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "a column is named ('a', 'b')"),
        (pd.DataFrame({"prompt": ["a"], "x": [b"\xff"]}), "request 1, column `x`: bytes that are not UTF-8 text"),
        (
            pd.DataFrame({"prompt": ["a"], "x": [math.inf]}),
            "request 1 cannot be written as JSON: `x`: an infinite number",
        ),
        (pd.DataFrame({"prompt": ["a"], "x": [{1}]}), "request 1 cannot be written as JSON: `x`: Type is not JSON"),
        ([{"prompt": "a", "x": {"y": [np.float32("inf")]}}], "request 1 cannot be written as JSON: `x`: an infinite"),
    ],
)
def test_what_a_line_cannot_hold_is_refused_by_its_column(tmp_path: Path, table: object, message: str):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        run(table, tmp_path)
    said(caught.value)
    assert list(tmp_path.iterdir()) == []


class Turn(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)
    role: str
    words: str = pydantic.Field(alias="content")


def test_a_model_within_a_request_has_the_names_that_it_gives_itself(tmp_path: Path):
    assert run([{"id": "a", "messages": [Turn(role="user", content="one two")]}], tmp_path).exit_code == 0
    (line,) = read_lines(tmp_path / "out.jsonl.state.requests.jsonl")
    assert line["messages"] == [{"role": "user", "content": "one two"}]


def test_a_column_that_no_row_has_cannot_be_carried(tmp_path: Path):
    with pytest.raises(InputError, match="no row has `y`"):
        run(pd.DataFrame({"x": ["a"]}), tmp_path, prompt="{{ x }}", columns=["y"])
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_strings_is_a_list_of_prompts(tmp_path: Path):
    assert run(["one", "in.jsonl"], tmp_path).exit_code == 0
    assert sorted(record["text"] for record in read_lines(tmp_path / "out.jsonl")) == ["in.jsonl", "one"]


@pytest.mark.parametrize(
    "given", [{"sweep": {"n": [1]}}, {"repeat": 2}, {"limit": 1}, {"shard": "1/2"}, {"dedupe": True}, {"strict": True}]
)
def test_what_needs_files_is_refused_for_a_list(tmp_path: Path, given: dict):
    with pytest.raises(UsageError, match=f"{next(iter(given))} needs files"):
        run(["one"], tmp_path, **given)


async def no_requests():
    yield "one"


@pytest.mark.parametrize(
    ("inputs", "given", "message", "hint"),
    [
        (7, {}, "inputs is of type int, not files or requests", "for one request give a list with it"),
        ({"prompt": "a"}, {}, "inputs is of type dict", "for one request give a list with it"),
        (no_requests(), {}, "run does not accept an async iterable", "use `stream`"),
        (["one"], {"output": "."}, "is a folder", "give a file for all results"),
        ([{"text": "one"}], {}, "request 1: no prompt in the line", "a request must be a dict or a string"),
        ([object()], {}, "request 1 cannot be written as JSON", "a request must be a dict or a string"),
    ],
)
def test_wrong_arguments_of_a_program_say_what_to_give_and_nothing_is_written(
    tmp_path: Path, monkeypatch, inputs: object, given: dict, message: str, hint: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        run(inputs, tmp_path, **given)
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "words"), [("gone.png", "No such file"), ("empty.png", "is empty")])
def test_a_request_whose_picture_cannot_be_sent_is_named_and_nothing_is_written(tmp_path: Path, name: str, words: str):
    (tmp_path / "good.png").write_bytes(b"PNG")
    (tmp_path / "empty.png").touch()
    before = sorted(tmp_path.iterdir())
    requests = [
        {"id": each, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": each}}]}]}
        for each in ("good.png", name)
    ]
    with pytest.raises(InputError, match=f"request '{name}': `image_url`: .*{words}") as caught:
        run(requests, tmp_path, inline_files=True)
    said(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    assert run(requests[:1], tmp_path, inline_files=True).succeeded == 1, "a path begins at the state file's folder"


def test_guards_and_options_of_the_command_line_hold_in_a_program(tmp_path: Path):
    with pytest.raises(UsageError, match="canary=-1"):
        run(["one"], tmp_path, canary=-1)
    summary = run(
        [f"bad {n}" for n in range(30)],
        tmp_path,
        canary=2,
        ordered=True,
        format="openai",
        max_cost=1.0,
        price_per_hour=1,
    )
    assert summary.exit_code == 0
    assert [line["custom_id"] for line in read_lines(tmp_path / "out.jsonl")] == [
        line["custom_id"] for line in sorted(read_lines(tmp_path / "out.jsonl"), key=position)
    ]


def position(line: dict) -> int:
    return line["batchrun"]["source"]["line"]


REVIEWS = pd.DataFrame({"name": ["a", "b"], "review": ["Good.", "Bad."], "stars": [5, 1]})


def test_a_table_and_a_template_make_requests_whose_columns_come_back(tmp_path: Path):
    given = {"prompt": "Sum up: {{ review }}", "system": "Be brief.", "id_column": "name"}
    summary = run(REVIEWS, tmp_path, **given)
    assert [(record["id"], record["text"]) for record in summary.records()] == [
        ("a", "Sum up: Good."),
        ("b", "Sum up: Bad."),
    ]
    frame = summary.to_pandas()
    assert frame[["id", "review", "stars", "prompt", "text"]].to_dict("records")[1] == {
        "id": "b",
        "review": "Bad.",
        "stars": 1,
        "prompt": "Sum up: Bad.",
        "text": "Sum up: Bad.",
    }
    with pytest.raises(UsageError, match="--prompt"):
        run(REVIEWS, tmp_path, **{**given, "prompt": "Other: {{ review }}"})


class Label(pydantic.BaseModel):
    mood: str
    stars: int


def answer_with(text: str):
    def answer(request: dict) -> object:
        assert request["sampling_params"]["response_format"]["json_schema"]["schema"]["required"] == ["mood", "stars"]
        return [{"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}]

    return answer


async def test_a_model_is_a_schema_and_each_value_is_parsed(tmp_path: Path):
    requests = [{"id": "a", "messages": [{"role": "user", "content": "Good."}]}]
    async with serving(worker=Answering(answer_with('{"mood": "glad", "stars": 5}'))) as server:
        given = {"endpoint": "ep", "base_url": server.endpoint.base_url, "api_key": "k", "schema": Label}
        summary = await asyncio.to_thread(run, requests, tmp_path, **given)
        with pytest.raises(UsageError, match="schema=int is not a model"):
            run(requests, tmp_path, schema=int)
    assert [record["parsed"] for record in summary.records()] == [{"mood": "glad", "stars": 5}]
    assert summary.to_arrow(["id", "parsed.mood"]).to_pylist() == [{"id": "a", "parsed.mood": "glad"}]


def test_a_run_is_loaded_later_with_its_failures_and_shown_in_a_notebook(tmp_path: Path):
    lines = [{"id": "good", "prompt": "a", "max_tokens": 3}, {"id": "bad", "prompt": "b", "max_tokens": -1}]
    (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    summary = run(tmp_path / "in.jsonl", tmp_path, format="openai")
    results = batchrun.load(tmp_path / "out.jsonl.state")
    assert [record["id"] for record in results.records()] == ["good"]
    assert [record["status"] for record in results.records(with_errors=True)] == ["COMPLETED", "FAILED"]
    table = results.to_arrow(with_errors=True)
    assert table.column("id").to_pylist() == ["good", "bad"]
    shown = summary._repr_html_()
    assert "1 of 2 rows succeeded" in shown
    assert str(tmp_path / "out.jsonl") in shown
    with pytest.raises(UsageError, match="no row has"):
        results.to_arrow("nonsense")
    with pytest.raises(StateError, match="there is no such state file"):
        next(batchrun.load(tmp_path / "none.state").records())


async def test_rows_are_redone_from_a_program_even_in_an_event_loop(tmp_path: Path):
    asked = []

    def answer(request: dict) -> object:
        asked.append(request["sampling_params"]["max_tokens"])
        return EchoWorker().answer(request)

    requests = [{"id": name, "prompt": "one two three", "max_tokens": 1} for name in "ab"]
    async with serving(worker=Answering(answer)) as server:
        given = {"endpoint": "ep", "base_url": server.endpoint.base_url, "api_key": "k"}
        summary = await asyncio.to_thread(run, requests, tmp_path, **given)
        with pytest.raises(UsageError, match=r"no row of .* is chosen"):
            batchrun.redo(summary.state, where=["finish_reason=stop"], api_key="k", base_url=given["base_url"])
        for wrong in ({"deadline": -1}, {"max_cost": "much"}, {"progress": "loud"}):
            with pytest.raises(UsageError, match=f"{next(iter(wrong))}=.* is not valid"):
                batchrun.redo(summary.state, ids=["b"], api_key="k", base_url=given["base_url"], **wrong)
        assert asked == [1, 1]
        # It blocks this loop, in which the server runs: the run has a thread, the server needs one, too.
        again = await asyncio.to_thread(
            batchrun.redo,
            summary.state,
            where="finish_reason=length",
            ids=["b"],
            set={"max_tokens": 3},
            api_key="k",
            base_url=given["base_url"],
        )
    assert asked == [1, 1, 3]
    assert [record["text"] for record in again.records()] == ["one", "one two three"]


def test_the_other_commands_are_functions_that_print_nothing(tmp_path: Path, capfd):
    (tmp_path / "in.jsonl").write_text('{"id": "a", "prompt": "one", "max_tokens": 5}\n')
    for no_files in (pd.DataFrame([{"prompt": "a"}]), [{"prompt": "a"}]):
        with pytest.raises(UsageError, match="not one or several paths"):
            batchrun.check(no_files)
    checked = batchrun.check(tmp_path / "in.jsonl", set={"temperature": 0})
    assert (checked.rows, checked.is_good) == (1, True)
    summary = run(tmp_path / "in.jsonl", tmp_path)
    status, verified = batchrun.status(summary.state), batchrun.verify(summary.state)
    assert (status.total, status.succeeded, verified.is_whole) == (1, 1, True)
    assert [variant.succeeded for variant in batchrun.report(summary.state).variants] == [1]
    scored = batchrun.score(summary.state, "regex:.", normalize="case", tolerance=0)
    assert (scored.scored, scored.right, scored.unscored) == (1, 1, 0)
    (quality,) = batchrun.report(summary.state, by="id").quality
    assert (quality.scorer, quality.whole.variants[0].right, len(quality.groups)) == ("regex:.", 1, 1)
    exported = batchrun.export(summary.state, tmp_path / "copy.jsonl", format="openai")
    assert (exported.results, read_lines(tmp_path / "copy.jsonl")[0]["custom_id"]) == (1, "a")
    assert batchrun.view(summary.state).rows == 1
    assert (tmp_path / "out.view.html").exists()
    assert batchrun.cancel(summary.state).succeeded == 1
    assert batchrun.stop(summary.state).succeeded == 1
    shards = [run(tmp_path / "in.jsonl", tmp_path, output=tmp_path / f"{n}.jsonl", shard=f"{n}/2") for n in (1, 2)]
    assert batchrun.merge([shard.state for shard in shards], tmp_path / "both.jsonl").results == 1
    with pytest.raises(StateError, match="there is no such state file"):
        batchrun.status(tmp_path / "none.state")
    assert capfd.readouterr() == ("", "")


def test_the_numbers_of_a_table_are_numbers(tmp_path: Path):
    rows = [{"id": f"r{count}", "prompt": "one two three", "max_tokens": count} for count in np.arange(1, 3)]
    assert run(rows, tmp_path).exit_code == 0
    assert {record["id"]: record["text"] for record in read_lines(tmp_path / "out.jsonl")} == {
        "r1": "one",
        "r2": "one two",
    }


def test_a_request_that_has_changed_is_refused_and_what_was_there_stays(tmp_path: Path):
    run([{"id": "x", "prompt": "a"}], tmp_path)
    kept = (tmp_path / "out.jsonl.state.requests.jsonl").read_bytes()
    with pytest.raises(StateError, match="'x' has changed") as caught:
        run([{"id": "x", "prompt": "b"}], tmp_path)
    said(caught.value)
    assert (tmp_path / "out.jsonl.state.requests.jsonl").read_bytes() == kept
    assert run([{"id": "x", "prompt": "a"}], tmp_path).exit_code == 0


def test_a_state_file_of_other_inputs_is_refused(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('"one"\n')
    assert run(tmp_path / "in.jsonl", tmp_path).exit_code == 0
    with pytest.raises(StateError, match="belongs to a run whose requests should be in") as caught:
        run([{"prompt": "one"}], tmp_path)
    said(caught.value)
    (tmp_path / "new.jsonl.state.requests.jsonl").write_text('"somebody\'s"\n')
    with pytest.raises(StateError, match="exists, but its state file"):
        run([{"prompt": "one"}], tmp_path, output=tmp_path / "new.jsonl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "./"}, "is a folder"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"max_retries": None}, "max_retries=None"),
        ({"ttl": 1}, "ttl=1"),
        ({"ttl": float("nan")}, "ttl=nan"),
        ({"max_cost": float("nan"), "price_per_hour": 1}, "max_cost=nan"),
        ({"price_per_hour": float("inf")}, "price_per_hour=inf"),
        ({"job_timeout": -1}, "job_timeout=-1"),
        ({"deadline": 1e300}, "deadline=1e+300"),
        ({"concurrency": 10**5000}, "concurrency=a number with thousands of digits"),
        ({"concurrency": True}, "concurrency=True"),
        ({"max_retries": 2.0}, "max_retries=2.0"),
        ({"set": {"stop": functools.reduce(lambda inner, _: [inner], range(200), 1)}}, "--set cannot be sent as JSON"),
        ({"output": ""}, "--output is empty"),
        ({"state": "a\0b"}, "is not a path"),
        ({"output": "a" * 300}, "File name too long"),
        ({"base_url": "http://[::1"}, "an invalid host or port"),
        ({"deadline": "8h"}, "deadline='8h'"),
        ({"max_cost": 3}, "--max-cost needs --price-per-hour"),
        ({"set": ["a"]}, "set=['a']"),
        ({"set": {"stop": {"a", "b"}}}, "set cannot be written as JSON"),
        ({"on_interrupt": "flee"}, "on_interrupt='flee'"),
        ({"progress": "loud"}, "progress='loud'"),
        ({"worker": "llama"}, "worker='llama'"),
        ({"repeat": 2}, "repeat needs files"),
        ({"endpoint": None}, "no endpoint is given"),
        ({"endpoint": "a/b"}, "is not an endpoint ID"),
        ({"endpoint": "abc", "api_key": "two words"}, "api_key does not contain an API key"),
        ({"base_url": "ftp://x"}, "is not an http(s) URL"),
        ({"base_url": 3}, "base_url=3"),
        ({"prompt": 3}, "prompt=3"),
        ({"system": ["a"]}, "system=['a']"),
        ({"id_column": ["a"]}, "id_column=['a']"),
        ({"prompt": "{{ a }}", "columns": [1]}, "columns=[1]"),
        ({"messages_file": 3}, "messages_file=3"),
        ({"schema": 3}, "schema is of type int"),
        ({"schema": Path("gone.txt")}, "--schema gone.txt: No such file"),
        ({"check": len}, "check=<built-in function len>"),
        ({"require_text": "no"}, "require_text='no'"),
        ({"halt": "5%"}, "halt='5%'"),
        ({"cache": 3}, "cache=3"),
        ({"only": (3,), "retry_failed": True}, "only=(3,)"),
        ({"prompt": "{{ prompt }} {{ missing }}"}, "`missing` is undefined"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(tmp_path: Path, given: dict, message: str):
    with pytest.raises(UsageError) as caught:
        run([{"prompt": "a"}], tmp_path, **given)
    assert message in said(caught.value)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda state: batchrun.check(state.parent, prompt=3), "prompt=3"),
        (lambda state: batchrun.check(state.parent, repeat=0), "repeat=0"),
        (lambda state: batchrun.check(state.parent, set="a=1"), "set='a=1'"),
        (lambda state: batchrun.check(state.parent, sweep={"n": 3}), "sweep['n']=3"),
        (lambda state: batchrun.export(state, "out.csv", only="all"), "only='all'"),
        (lambda state: batchrun.export(state, "out.csv", format="csv"), "format='csv'"),
        (lambda state: batchrun.merge([], "out.jsonl"), "there are no state files"),
        (lambda state: batchrun.merge(str(state), "all.jsonl"), "is not a shard"),
        (lambda state: batchrun.view(state, rows=0), "rows=0"),
        (lambda state: batchrun.redo(state, ids=["a", "z"]), "has: id 2: 'z'"),
        (lambda state: batchrun.redo(state, ids=["a"], deadline="8h"), "deadline='8h'"),
        (lambda state: batchrun.redo(state, ids=["a"], max_cost=-1), "max_cost=-1"),
        (lambda state: batchrun.redo(state, ids=["a"], set="x"), "set='x'"),
        (lambda state: batchrun.redo(state, where=[3]), "where=(3,)"),
        (lambda state: batchrun.redo(state, ids=["a"], progress="loud"), "progress='loud'"),
    ],
)
def test_a_wrong_argument_of_another_command_is_one_clear_line_and_changes_nothing(
    tmp_path: Path, monkeypatch, call, message: str
):
    monkeypatch.chdir(tmp_path)
    run([{"id": "a", "prompt": "one"}], tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UsageError) as caught:
        call(tmp_path / "out.jsonl.state")
    assert message in said(caught.value)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert batchrun.status(tmp_path / "out.jsonl.state").succeeded == 1


def test_a_schema_may_be_a_path(tmp_path: Path):
    (tmp_path / "schema").write_text('{"type": "object", "required": ["a"]}')
    summary = run(['{"a": 1}', "{}"], tmp_path, schema=tmp_path / "schema", reask=0)
    assert (summary.succeeded, summary.failed) == (1, 1)


@pytest.mark.parametrize("values", [3, "abc", {"a": 1}])
def test_the_values_of_a_sweep_are_a_list(tmp_path: Path, values):
    with pytest.raises(UsageError, match=re.escape(f"sweep['temperature']={values!r}")) as caught:
        run(tmp_path / "in.jsonl", tmp_path, sweep={"temperature": values})
    said(caught.value)


# stream


def stream(requests, folder: Path, base_url: str, **given) -> batchrun.Stream:
    options = {"endpoint": "abc", "base_url": base_url, "state": folder / "s.state", "concurrency": 4, **given}
    return batchrun.stream(requests, **options)


def numbered(numbers):
    return ({"id": f"r{n}", "prompt": f"p{n}"} for n in numbers)


def list_of(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def take(records, into: list) -> None:
    """Take records into a list, which has them also when it ends in an exception."""
    async for record in records:
        into.append(record)  # noqa: PERF401 - a comprehension would lose them


async def numbered_later(numbers):
    for n in numbers:
        await asyncio.sleep(0)
        yield {"id": f"r{n}", "prompt": f"p{n}"}


@pytest.mark.parametrize("source", [numbered, numbered_later])
async def test_a_stream_gives_a_record_for_each_request_and_again_without_paying_again(tmp_path: Path, source):
    async with serving() as server:
        records = [record async for record in stream(source(range(60)), tmp_path, server.endpoint.base_url)]
        assert Counter(record["text"] for record in records) == Counter(f"p{n}" for n in range(60))
        assert records == read_lines(tmp_path / "s.results.jsonl")
        going_on = stream(source(range(75)), tmp_path, server.endpoint.base_url)
        again = [record async for record in going_on]
        assert again[:60] == records
        assert {record["id"] for record in again} == {f"r{n}" for n in range(75)}
        assert len(again) == going_on.summary.total == server.seen["run"] == 75
    assert verification.verify(tmp_path / "s.state").is_whole


@pytest.mark.parametrize("form", FORMS)
async def test_a_stream_takes_what_a_run_takes(tmp_path: Path, base_url: str, form: str):
    found = {record["id"]: record["text"] async for record in stream(FORMS[form](), tmp_path, base_url)}
    assert found == {"a": "one", "b": "two"}


async def test_requests_of_every_shape_stream_and_equal_ones_are_told_apart(tmp_path: Path):
    requests = [
        "a prompt",
        "a prompt",
        {"messages": [{"role": "user", "content": "hello"}]},
        {"input": {"prompt": "for any worker"}},
        {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": "openai"}},
    ]
    async with serving() as server:
        for _ in range(2):
            records = [record async for record in stream(requests, tmp_path, server.endpoint.base_url)]
            assert len({record["id"] for record in records}) == len(records) == len(requests)
        assert server.seen["run"] == len(requests)


async def test_no_more_is_pulled_than_two_windows_ahead_of_what_was_taken(tmp_path: Path):
    pulled = taken = 0
    most = 0

    def requests():
        nonlocal pulled, most
        for n in range(200):
            pulled += 1
            most = max(most, pulled - taken)
            yield f"p{n}"

    async with serving() as server, stream(requests(), tmp_path, server.endpoint.base_url) as records:
        async for _ in records:
            taken += 1
            if taken in (1, 50):
                await all_at_rest(server)
                assert pulled - taken == 8, "two windows of four are held while nobody takes a record"
    assert taken == pulled == 200
    assert most == 8


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_requests_of_a_stream_share_jobs_as_those_of_a_file_do(tmp_path: Path, concurrency: int):
    requests = ({"id": f"r{n}", "prompt": f"p{n}", "max_tokens": 9} for n in range(80))
    async with serving() as server:
        streamed = stream(requests, tmp_path, server.endpoint.base_url, concurrency=concurrency, pack=4)
        records = [record async for record in streamed]
    assert {record["id"]: record["text"] for record in records} == {f"r{n}": f"p{n}" for n in range(80)}
    assert server.seen["run"] <= 30
    assert streamed.summary.packed_rows >= 70


def test_a_run_of_a_program_shares_jobs(tmp_path: Path):
    requests = [{"id": f"r{n}", "prompt": f"p{n}", "max_tokens": 9} for n in range(40)]
    summary = run(requests, tmp_path, pack=4)
    assert (summary.succeeded, summary.packed_rows >= 30) == (40, True)
    assert summary.calls["run"] < 20


async def all_at_rest(server) -> None:
    """Wait until nothing has been submitted for half a second."""
    seen = -1
    while seen != server.seen["run"]:
        seen = server.seen["run"]
        await asyncio.sleep(0.5)


async def test_a_program_that_is_busy_with_a_record_holds_up_nothing(tmp_path: Path):
    records = batchrun.stream(
        (f"p{n}" for n in range(40)), endpoint="local", worker="echo", state=tmp_path / "s.state", concurrency=20
    )
    async for _ in records:
        until = time.monotonic() + 20
        while len(read_lines(tmp_path / "s.results.jsonl")) < 20:
            assert time.monotonic() < until, "the run stands still"
            time.sleep(0.01)  # noqa: ASYNC251 - being busy is the point
    assert records.summary.succeeded == 40


@pytest.mark.parametrize("policy", ["drain", "leave", "cancel"])
async def test_leaving_an_endless_stream_early_loses_nothing(tmp_path: Path, policy: str):
    async with serving(latency_s=0.05, workers=3) as server:
        base_url = server.endpoint.base_url
        got = []
        async with stream(numbered(count()), tmp_path, base_url, on_interrupt=policy) as records:
            async for record in records:
                got.append(record)
                if len(got) == 10:
                    break
        left = records.summary
        assert left.outcome == "interrupted"
        assert left.total - 10 <= 8, "what was pulled, and no more, is in the state"
        assert (left.in_flight > 0) == (policy == "leave")
        assert left.total == len(read_lines(tmp_path / "s.state.requests.jsonl"))
        again = stream(numbered(range(left.total)), tmp_path, base_url)
        everything = [record async for record in again]
        assert everything[:10] == got
        assert Counter(record["id"] for record in everything) == Counter(f"r{n}" for n in range(left.total))
        assert again.summary.unconfirmed == 0
        if policy != "cancel":
            assert server.seen["run"] == left.total, "paid once"
    assert verification.verify(tmp_path / "s.state").is_whole


async def test_a_loop_that_is_just_left_is_closed_by_python_itself(tmp_path: Path):
    async with serving() as server:
        records = stream(numbered(count()), tmp_path, server.endpoint.base_url)
        async for _ in records:
            break
        summary = await records._done
        assert (summary.outcome, summary.in_flight) == ("interrupted", 0)


def test_a_pilot_is_estimated_and_its_run_continues_with_the_rest(tmp_path: Path, base_url: str):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{n}", "prompt": "x"}}\n' for n in range(20)))
    where = {"endpoint": "abc", "output": tmp_path / "out.jsonl", "base_url": base_url, "api_key": "rpa_X"}
    found = batchrun.estimate(tmp_path / "in.jsonl", pilot=5, **where)
    assert found is not None
    assert (found.pilot_rows, found.left, jobs_run(base_url)) == (5, 15, 5)
    assert batchrun.run(tmp_path / "in.jsonl", progress="none", **where).succeeded == jobs_run(base_url) == 20
    assert batchrun.estimate(tmp_path / "in.jsonl", pilot=5, **where) is None, "nothing is left"
    for wrong, words in ((["a prompt"], "needs files"), ([], "needs files")):
        with pytest.raises(UsageError, match=words):
            batchrun.estimate(wrong, **where)
    with pytest.raises(UsageError, match="one row gives no range"):
        batchrun.estimate(tmp_path / "in.jsonl", pilot=1, **where)


def test_a_run_of_another_process_is_tuned_and_stopped(tmp_path: Path):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{n}", "prompt": "x"}}\n' for n in range(200)))
    with served(workers=1, latency_s=0.3) as slow:
        process = start(tmp_path, slow, "-j", "1")
        state = tmp_path / "out.jsonl.state"
        wait_for_lines(tmp_path / "out.jsonl", 1)
        batchrun.tune(state, concurrency=3, pause=True)
        assert batchrun.status(state).is_paused
        batchrun.tune(state, concurrency="auto", pause=False, deadline=math.inf)
        for wrong in ({"concurrency": 0}, {"deadline": -1}, {"max_cost": math.nan}, {"concurrency": "many"}, {}):
            with pytest.raises(UsageError):
                batchrun.tune(state, **wrong)
        assert batchrun.stop(state, how="leave").pid is None
        assert process.wait(10) == 130
        process.communicate()
    with pytest.raises(UsageError, match="how='now' is not valid"):
        batchrun.stop(state, how="now")
    with pytest.raises(UsageError, match="no process drives"):
        batchrun.tune(state, pause=True)


async def test_a_cancelled_program_leaves_as_it_was_told_to(tmp_path: Path):
    async def requests():
        yield "only one"
        await asyncio.Event().wait()

    async with serving() as server:
        records = stream(requests(), tmp_path, server.endpoint.base_url)
        got = []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(take(records, got), 1)
        assert [record["text"] for record in got] == ["only one"]
        assert (records.summary.total, records.summary.succeeded) == (1, 1)


async def test_a_program_that_is_cancelled_before_the_run_is_open_leaves_it_as_it_is(tmp_path: Path):
    async with serving() as server:
        records = stream(numbered(count()), tmp_path, server.endpoint.base_url)
        taking = asyncio.create_task(take(records, []))
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        assert taking.cancelled()
        assert (records.summary.outcome, records.summary.in_flight) == ("interrupted", 0)
    assert verification.verify(tmp_path / "s.state").is_whole


async def test_a_request_that_failed_is_its_error_record(tmp_path: Path):
    async with serving(worker=Picky()) as server:
        requests = [{"id": f"r{n}", "prompt": f"{'bad' if n % 4 == 0 else 'good'} {n}"} for n in range(12)]
        for _ in range(2):
            records = [record async for record in stream(requests, tmp_path, server.endpoint.base_url)]
            failed = [record for record in records if record["status"] != "COMPLETED"]
            assert len(records) == 12
            assert sorted(record["id"] for record in failed) == ["r0", "r4", "r8"]
            assert failed[0]["error"]["kind"] == "bad_request"
            key = lambda record: record["id"]  # noqa: E731 - two lists in one order
            assert sorted(failed, key=key) == sorted(read_lines(tmp_path / "s.results.errors.jsonl"), key=key)
        assert server.seen["run"] == 12
        again = [r async for r in stream(requests, tmp_path, server.endpoint.base_url, retry_failed=True)]
        assert (len(again), server.seen["run"]) == (12, 15)


async def test_a_rejected_request_is_its_error_record_too(tmp_path: Path):
    async def fault(request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        if operation == "run" and "bad" in (await request.read()).decode():
            return web.json_response({"error": "too much"}, status=400)
        return None

    async with serving(fault) as server:
        records = [r async for r in stream(["bad", "good"], tmp_path, server.endpoint.base_url)]
    rejected = next(record for record in records if record["status"] == "REJECTED")
    assert (len(records), rejected["request"]) == (2, "bad")
    assert [rejected] == read_lines(tmp_path / "s.results.errors.jsonl")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"promt": "x"}, "request 21: no prompt"),
        (object(), "request 21 cannot be written as JSON"),
        ({"id": "r7", "prompt": "p7"}, "duplicate id 'r7'"),
    ],
)
async def test_a_wrong_request_ends_the_stream_after_what_came_before_it(tmp_path: Path, wrong, message: str):
    async with serving() as server:
        got = []
        records = stream([*numbered(range(20)), wrong, "never"], tmp_path, server.endpoint.base_url)
        with pytest.raises(InputError, match=message) as caught:
            await take(records, got)
        said(caught.value)
        assert sorted(record["id"] for record in got) == sorted(f"r{n}" for n in range(20))
    assert verification.verify(tmp_path / "s.state").is_whole


async def test_an_exception_of_the_requests_comes_back_after_what_came_before_it(tmp_path: Path):
    async def requests():
        async for request in numbered_later(range(7)):
            yield request
        raise LookupError("the data base is gone")

    async with serving() as server:
        got = []
        with pytest.raises(LookupError, match="the data base is gone"):
            await take(stream(requests(), tmp_path, server.endpoint.base_url), got)
        assert len(got) == 7


async def test_a_changed_request_is_refused_by_name(tmp_path: Path):
    async with serving() as server:
        base_url = server.endpoint.base_url
        assert len([r async for r in stream(numbered(range(3)), tmp_path, base_url)]) == 3
        with pytest.raises(StateError, match="'r1' has changed") as caught:
            await take(stream([{"id": "r1", "prompt": "other"}], tmp_path, base_url), [])
        said(caught.value)
        assert server.seen["run"] == 3


async def test_a_refused_key_stops_the_stream_with_the_remedy(tmp_path: Path):
    async def fault(request: web.BaseRequest, operation: str) -> web.StreamResponse | None:
        return web.json_response({"error": "unauthorized"}, status=401)

    async with serving(fault) as server:
        records = stream(numbered(count()), tmp_path, server.endpoint.base_url, api_key="rpa_SECRET")
        got = []
        with pytest.raises(StoppedError) as caught:
            await take(records, got)
        assert got == []
        said(caught.value)
        assert (records.summary.outcome, records.summary.exit_code) == ("stopped", 4)
    assert all(b"rpa_SECRET" not in path.read_bytes() for path in list_of(tmp_path))


async def test_a_stream_without_requests_is_over_at_once_and_is_iterated_once(tmp_path: Path):
    async with serving() as server:
        records = stream([], tmp_path, server.endpoint.base_url)
        assert [record async for record in records] == []
        assert (records.summary.total, records.summary.exit_code) == (0, 0)
        with pytest.raises(UsageError, match="iterated only once"):
            _ = [record async for record in records]


async def test_two_streams_on_one_state_file_are_refused(tmp_path: Path):
    async with serving() as server:
        base_url = server.endpoint.base_url
        async with stream(numbered(count()), tmp_path, base_url) as records:
            async for _ in records:
                with pytest.raises(StateError, match="is in use by another batchrun"):
                    _ = [record async for record in stream(["other"], tmp_path, base_url)]
                break


async def test_the_half_of_a_request_that_a_crash_has_left_is_cut_off(tmp_path: Path):
    kept = tmp_path / "s.state.requests.jsonl"
    async with serving() as server:
        base_url = server.endpoint.base_url
        assert len([r async for r in stream(numbered(range(3)), tmp_path, base_url)]) == 3
        with kept.open("ab") as file:
            file.write(b'{"id":"r3","prompt":"p3"}\n{"id":"r4","pro')
        records = [r async for r in stream(numbered(range(6)), tmp_path, base_url)]
        assert {record["id"] for record in records} == {f"r{n}" for n in range(6)}
        assert server.seen["run"] == 6
    assert [orjson.loads(line)["id"] for line in kept.read_bytes().splitlines()] == [f"r{n}" for n in range(6)]
    assert verification.verify(tmp_path / "s.state").is_whole


async def test_the_command_line_continues_with_a_stream(tmp_path: Path):
    async with serving(latency_s=0.05) as server:
        base_url = server.endpoint.base_url
        async with stream(numbered(count()), tmp_path, base_url, on_interrupt="detach") as records:
            async for _ in records:
                break
        command = [*BATCHRUN, "resume", str(tmp_path / "s.state"), "--progress", "none"]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, words = await process.communicate()
        assert process.returncode == 0, words
        assert server.seen["run"] == records.summary.total
    assert verification.verify(tmp_path / "s.state").is_whole


@pytest.mark.parametrize("requests", ["a prompt", {"prompt": "a"}, 7])
def test_what_is_no_iterable_of_requests_is_refused_at_once(tmp_path: Path, requests):
    with pytest.raises(UsageError, match="not an iterable") as caught:
        stream(requests, tmp_path, "http://127.0.0.1:9")
    said(caught.value)
