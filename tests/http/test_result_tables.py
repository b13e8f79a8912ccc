"""Results as tables: every reader of tables gets the same cells, of the same types, and nothing is lost on the way."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import orjson
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import zstandard

import batchrun as batchrun_module
from batchrun.commands.export import Exported, Wanted, export
from batchrun.config import SweepOptions
from batchrun.errors import UsageError
from batchrun.local.workers import WorkerFailure
from batchrun.state.store import Store
from tests.support.command import assert_one_clear_line, batchrun
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines
from tests.support.workers import Answering

if TYPE_CHECKING:
    from pathlib import Path

TEXT = 'a "quote", a comma,\r\na line end, ünicode \u2028 日本語 🎉, =1+1'
OWN = ["id", "prompt", "text", "finish_reason", "input_tokens", "output_tokens", "status", "error"]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def answer(request: dict[str, Any]) -> Any:
    """The last message again, thought about."""
    asked = request.get("openai_input", request)
    said = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
    if said.startswith("bad"):
        return WorkerFailure("vLLM returned HTTP 400: no")
    message: dict[str, Any] = {"role": "assistant", "content": said}
    if said.startswith("think"):
        message["reasoning"] = "hm"
    if said.startswith("call"):
        message |= {"content": None, "tool_calls": [CALL]}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    return [{"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}]


async def run(folder: Path, lines: list, **given: Any) -> Path:
    write_lines(folder, lines)
    async with serving(worker=Answering(answer)) as server:
        await rehearse(folder, server.endpoint.base_url, **given)
    return folder / "out.jsonl.state"


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    """A finished run of `LINES`, the last of which has failed."""
    return await run(tmp_path, LINES)


def table(state: Path, name: str = "t.parquet", **wanted: Any) -> tuple[Path, Exported]:
    target = state.with_name(name)
    target.unlink(missing_ok=True)
    return target, export(state, target, io.BytesIO(), Wanted(**wanted))


LINES = [
    {"id": "=1+1", "prompt": TEXT, "metadata": {"topic": "rain", "n": 1, "score": 1}, "lang": "de"},
    {"id": "two", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "think"}], "lang": ""},
    {"id": "三", "prompt": "x", "metadata": {"topic": None, "n": 2**53 + 1, "score": 0.5, "ok": True}},
    {"id": "bad", "prompt": "bad", "metadata": {"topic": "no"}},
]
CELLS = {
    "id": ["=1+1", "two", "三", "bad"],
    "lang": ["de", "", None, None],
    "topic": ["rain", None, None, "no"],
    "n": [1, None, 2**53 + 1, None],
    "score": [1.0, None, 0.5, None],
    "ok": [None, None, True, None],
    "prompt": [TEXT, "think", "x", "bad"],
    "text": [TEXT, "think", "x", None],
    "reasoning": [None, "hm", None, None],
    "finish_reason": ["stop"] * 3 + [None],
    "input_tokens": [3] * 3 + [None],
    "output_tokens": [5] * 3 + [None],
    "status": ["COMPLETED"] * 3 + ["FAILED"],
    "error": [None] * 3 + ["bad_request: vLLM returned HTTP 400: no"],
}


def test_every_reader_of_parquet_gets_the_same_cells(state: Path):
    path, told = table(state, with_errors=True)
    assert pq.read_table(path).to_pydict() == CELLS
    assert pl.read_parquet(path).to_dict(as_series=False) == CELLS
    frame = pd.read_parquet(path, dtype_backend="numpy_nullable")
    assert {name: [None if pd.isna(each) else each for each in frame[name].array] for name in frame} == CELLS
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert (types["n"], types["score"], types["ok"], types["topic"]) == ("int64", "double", "bool", "string")
    assert str(told) == f"4 of 4 rows exported to {path}, 1 of them as error records"


@pytest.mark.slow
def test_datasets_reads_parquet_and_lines_of_columns(state: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path, _ = table(state, with_errors=True)
    lines, _ = table(state, "t.jsonl", with_errors=True, columns=tuple(CELLS))
    code = (
        "import datasets, json, sys; datasets.disable_progress_bars()\n"
        "for kind, path in (('parquet', sys.argv[1]), ('json', sys.argv[2])):\n"
        "    print(json.dumps(datasets.load_dataset(kind, data_files=path, split='train').to_dict()))"
    )
    done = subprocess.run([sys.executable, "-c", code, path, lines], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [CELLS, CELLS]


def test_every_reader_of_csv_gets_the_same_cells(state: Path):
    path, _ = table(state, "t.csv", with_errors=True)
    shown = {True: "true", None: ""}
    expected = {name: [shown.get(each, str(each)) for each in cells] for name, cells in CELLS.items()}
    expected["n"][0] = expected["score"][0] = "1"
    expected["score"][0] = "1.0"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert {name: [row[name] for row in rows] for name in rows[0]} == expected
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert frame.to_dict("list") == expected
    assert pl.read_csv(path, infer_schema=False).fill_null("").to_dict(as_series=False) == expected
    raw = path.read_bytes()
    assert raw.startswith(b"id,")
    assert raw.endswith(b"\r\n")
    assert b"\n=1+1," in raw


def test_arrays_and_compressed_files_hold_the_same_records(state: Path, tmp_path: Path):
    plain, _ = table(state, "t.jsonl", with_errors=True)
    records = read_lines(plain)
    array, _ = table(state, "t.json", with_errors=True)
    assert orjson.loads(array.read_bytes()) == records
    packed = {".gz": gzip.decompress, ".zst": lambda data: zstandard.ZstdDecompressor().stream_reader(data).read()}
    for suffix, unpacked in packed.items():
        for name in ("t.jsonl", "t.json", "t.csv"):
            whole, _ = table(state, name, with_errors=True)
            path, _ = table(state, f"{name}{suffix}", with_errors=True)
            assert unpacked(path.read_bytes()) == whole.read_bytes()
            assert export(state, path, io.BytesIO()).results == 3, "an export of its own may be replaced"


def test_chosen_columns_lead_anywhere_in_a_record(state: Path, tmp_path: Path):
    names = (
        "text",
        "usage.output_tokens",
        "output.0.choices.0.index",
        "topic",
        "metadata.topic",
        "messages",
        "source.line",
    )
    path, _ = table(state, "t.jsonl", columns=names)
    assert read_lines(path)[0] == {
        "text": TEXT,
        "usage.output_tokens": 5,
        "output.0.choices.0.index": 0,
        "topic": "rain",
        "metadata.topic": "rain",
        "messages": [{"role": "user", "content": TEXT}],
        "source.line": 1,
    }
    stdout = io.BytesIO()
    export(state, None, stdout, Wanted(columns=names))
    assert stdout.getvalue() == path.read_bytes()
    arrow, _ = table(state, columns=("messages", "request.id", "error.kind", "job.attempts"), only="failed")
    assert pq.read_table(arrow).to_pylist() == [
        {
            "messages": [{"role": "user", "content": "bad"}],
            "request.id": "bad",
            "error.kind": "bad_request",
            "job.attempts": 1,
        }
    ]


async def test_a_column_of_several_types_is_json_text_and_it_is_said(tmp_path: Path):
    lines = [
        {"id": "007", "prompt": "a", "metadata": {"k": 1, "big": 1, "map": {"a": 1}}},
        {"id": "008", "prompt": "b", "metadata": {"k": "one", "big": 2**63, "map": {"b": [2, 2.5]}}},
        {"id": "009", "prompt": "c", "metadata": "text"},
    ]
    path, told = table(await run(tmp_path, lines))
    assert pd.read_parquet(path)["id"].tolist() == ["007", "008", "009"]
    cells = pq.read_table(path).to_pydict()
    assert cells["k"] == ["1", '"one"', None]
    assert cells["big"] == ["1", "9223372036854775808", None]
    assert cells["metadata"] == [None, None, "text"]
    assert cells["map"] == [{"a": 1, "b": None}, {"a": None, "b": [2.0, 2.5]}, None]
    assert str(told).endswith("\ncolumns of several types, written as JSON text: k, big")


async def test_columns_and_types_that_come_late_are_in_every_row(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("batchrun.runs.exported._GROUP_ROWS", 2)
    own = [{"n": n if n < 5 else 0.5, **({"late": n} if n > 6 else {})} for n in range(9)]
    lines = [{"id": f"r{n}", "prompt": "x", "metadata": each} for n, each in enumerate(own)]
    state = await run(tmp_path, lines)
    readers = {
        "t.parquet": pl.read_parquet,
        "t.csv": pl.read_csv,
        "t.json.gz": lambda data: pl.DataFrame(orjson.loads(gzip.decompress(data))),
        "t.jsonl": pl.read_ndjson,
    }
    for name, read in readers.items():
        chosen = {} if name.endswith(("parquet", "csv")) else {"columns": (*OWN, "n", "late")}
        path, _ = table(state, name, **chosen)
        frame = read(path.read_bytes())
        assert frame["n"].to_list() == [0, 1, 2, 3, 4, 0.5, 0.5, 0.5, 0.5], name
        assert frame["late"].to_list() == [None] * 7 + [7, 8], name


async def test_names_that_are_taken_are_told_apart_by_their_path(tmp_path: Path):
    own = {"text": "m", "topic": "in", "seed": 3}
    line = {"id": "a", "prompt": "x", "status": "mine", "topic": "top", "temperature": 9, "metadata": own}
    sweep = SweepOptions((("temperature", (0, 1)), ("seed", (5,))))
    path, _ = table(await run(tmp_path, [line], sweep=sweep))
    rows = pq.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == ["a/temperature=0/seed=5", "a/temperature=1/seed=5"]
    assert {name: rows[1][name] for name in rows[1] if name not in OWN} == {
        "topic": "top",
        "metadata.text": "m",
        "metadata.topic": "in",
        "seed": 3,
        "carried.status": "mine",
        "temperature": 1,
        "variant.seed": 5,
    }
    assert (rows[0]["text"], rows[0]["status"]) == ("x", "COMPLETED")


async def test_chats_get_their_answers_for_fine_tuning(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    state = await run(
        tmp_path, [*LINES, {"id": "c", "messages": [{"role": "user", "content": "call"}], "tools": tools}]
    )
    path, told = table(state, "train.jsonl", messages=True)
    assert read_lines(path) == [
        {"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]},
        {"messages": [*LINES[1]["messages"], {"role": "assistant", "content": "think"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]},
        {
            "messages": [
                {"role": "user", "content": "call"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
            ],
            "tools": tools,
        },
    ]
    assert told.results == 4


async def test_a_run_without_results_gives_an_empty_table_and_one_of_failures_its_errors(tmp_path: Path):
    state = await run(tmp_path, [{"id": f"r{n}", "prompt": "bad", "metadata": {"k": n}} for n in range(3)])
    path, told = table(state)
    assert (pq.read_table(path).num_rows, pq.read_schema(path).names) == (0, OWN)
    assert str(told) == f"0 of 3 rows exported to {path} (3 failed)"
    assert table(state, "t.csv")[0].read_text() == ",".join(OWN) + "\n"
    assert table(state, "t.json")[0].read_bytes() == b"[]\n"
    path, told = table(state, only="failed")
    assert pq.read_table(path).to_pydict()["k"] == [0, 1, 2]
    assert str(told) == f"3 of 3 rows exported to {path}, 3 of them as error records"
    assert table(state, "x.parquet", columns=("id", "metadata.nothing"))[0].exists()


def test_python_writes_the_same_table(state: Path):
    path, told = table(state, columns=("id", "topic"), with_errors=True)
    again = path.with_name("again.parquet")
    said = batchrun_module.export(state, again, columns=["id", "topic"], with_errors=True)
    assert again.read_bytes() == path.read_bytes()
    assert (said.results, said.errors) == (told.results, told.errors)


@pytest.mark.parametrize("given", [{"only": "fail"}, {"format": "csv"}])
def test_python_refuses_a_word_that_is_no_choice(state: Path, given: dict[str, Any]):
    with pytest.raises(UsageError, match=r"='\w+' is not valid"):
        batchrun_module.export(state, state.with_name("again.jsonl"), **given)
    assert not state.with_name("again.jsonl").exists()


def test_only_the_failed_rows_are_told_apart_from_the_others(state: Path):
    path, told = table(state, "t.csv", only="failed")
    assert str(told) == f"1 of 4 rows exported to {path}, 1 of them as error records (3 succeeded)"
    assert pl.read_csv(path)["id"].to_list() == ["bad"]


@pytest.mark.parametrize("name", ["again.csv", "again.parquet", "again.json", "again.jsonl.gz"])
@pytest.mark.parametrize("columns", [None, ("id", "prompt", "text"), ("prompt",)], ids=str)
async def test_a_table_run_again_has_the_same_ids(tmp_path: Path, name: str, columns: tuple[str, ...] | None):
    if columns is None and "json" in name:
        columns = ("id", "k", "prompt", "status", "error")
    lines = [{"prompt": f"x {n}", "metadata": {"k": n}} for n in range(4)]
    state = await run(tmp_path, lines)
    path, _ = table(state, name, columns=columns)
    (tmp_path / "again").mkdir()
    async with serving(worker=Answering(answer)) as server:
        await rehearse(tmp_path / "again", server.endpoint.base_url, inputs=(str(path),))
    first, again = (read_lines(folder / "out.jsonl") for folder in (tmp_path, tmp_path / "again"))
    assert sorted(each["id"] for each in again) == sorted(each["id"] for each in first)
    assert sorted(each["text"] for each in again) == sorted(each["text"] for each in first)


async def test_the_lines_of_an_openai_run_make_the_same_table(tmp_path: Path):
    bodies = [{"messages": [{"role": "user", "content": "think"}], "model": "m"}, {"prompt": "x", "model": "m"}]
    urls = ("/v1/chat/completions", "/v1/completions")
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": url, "body": body, "topic": n}
        for n, (url, body) in enumerate(zip(urls, bodies, strict=True))
    ]
    tables = []
    for form in ("openai", "batchrun"):
        (tmp_path / form).mkdir()
        state = await run(tmp_path / form, lines, format=form)
        assert ("batchrun" in read_lines(tmp_path / form / "out.jsonl")[0]) == (form == "openai")
        tables.append(pq.read_table(table(state)[0]).to_pydict())
    assert tables[0] == tables[1]
    assert (tables[0]["prompt"], tables[0]["text"], tables[0]["topic"]) == (["think", "x"], ["think", "x"], [0, 1])


async def test_ids_of_several_inputs_stay_apart_by_their_source(tmp_path: Path):
    for name in ("a", "b"):
        write_lines(tmp_path, [{"id": "same", "prompt": name, "metadata": {"of": name}}])
        (tmp_path / "in.jsonl").rename(tmp_path / f"{name}.jsonl")
    inputs = tuple(str(tmp_path / f"{name}.jsonl") for name in ("a", "b"))
    async with serving(worker=Answering(answer)) as server:
        folder = {"inputs": inputs, "output": tmp_path / "results", "output_is_folder": True}
        await rehearse(tmp_path, server.endpoint.base_url, **folder)
    path, told = table(tmp_path / "out.jsonl.state")
    cells = pq.read_table(path).to_pydict()
    assert (cells["id"], cells["of"], cells["prompt"]) == (["same", "same"], ["a", "b"], ["a", "b"])
    assert "ids used in several inputs" in str(told)


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.json", "t.jsonl.gz", "t.csv.zst"])
def test_an_older_export_is_replaced_and_a_file_of_ones_own_is_not(state: Path, tmp_path: Path, name: str):
    path, _ = table(state, name)
    before = path.read_bytes()
    export(state, path, io.BytesIO(), Wanted(with_errors=True))
    assert path.read_bytes() != before
    frame = pl.DataFrame({"id": ["x"], "prompt": ["mine"]})
    own = {
        "t.parquet": frame.write_parquet,
        "t.csv": frame.write_csv,
        "t.json": frame.write_json,
        "t.jsonl.gz": lambda file: file.write(gzip.compress(b'{"prompt": "mine"}\n')),
        "t.csv.zst": lambda file: file.write(b"no zst at all"),
    }
    with path.open("wb") as file:
        own[name](file)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists, and nothing in it shows that batchrun wrote it"):
        export(state, path, io.BytesIO())
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


async def test_an_older_table_is_known_by_its_header_however_many_lines_that_has(tmp_path: Path):
    write_lines(tmp_path, [{"id": "a", "prompt": "b", "metadata": {"two\nlines": 1}}])
    async with serving(worker=Answering(answer)) as server:
        await rehearse(tmp_path, server.endpoint.base_url)
    state = tmp_path / "out.jsonl.state"
    path = tmp_path / "t.csv"
    export(state, path, io.BytesIO())
    export(state, path, io.BytesIO())
    with pytest.raises(UsageError) as refused:
        export(state, path.with_name("other.csv"), io.BytesIO(), Wanted(columns=("none",)))
    assert "'two\\nlines'" in refused.value.hint, "one line"
    for own in (b"id,text\rold,mac\r", b"x" * 200_000 + b",id\n"):
        path.write_bytes(own)
        with pytest.raises(UsageError, match="nothing in it shows that batchrun wrote it"):
            export(state, path, io.BytesIO())
        assert path.read_bytes() == own


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "t.xlsx"), "t.xlsx: a file with the suffix .xlsx cannot be written"),
        (("-o", "t.txt.gz"), "the suffix .txt.gz cannot be written"),
        (("-o", "t.parquet.gz"), "a Parquet file is compressed by itself"),
        (("-o", "t.csv", "--columns", "id,topci"), "--columns: no row has 'topci'"),
        (("-o", "t.parquet", "--columns", "id,usage.output_token"), "did you mean usage.output_tokens?"),
        (("-o", "t.csv", "--columns", "id,,text"), "a name between commas is empty"),
        (("-o", "t.csv", "--columns", "id,id"), "'id' is given twice"),
        (("-o", "t.csv", "--format", "openai"), "--format: t.csv is a table"),
        (("-o", "t.csv", "--messages"), "--messages: t.csv is a table"),
        (("-o", "t.jsonl", "--messages", "--columns", "id"), "are two forms of a line"),
        (("-o", "t.jsonl", "--messages", "--only", "failed"), "a row that failed has no answer"),
        (("-o", "t.csv", "--with-errors", "--only", "succeeded"), "contradict each other"),
        (("-o", "hf://models/a/b"), "is not a file of a dataset"),
        (("-o", "s3://bucket/t.csv"), "an export is a file of this machine or of the Hugging Face Hub"),
        (("-o", "in.jsonl", "--columns", "id"), "in.jsonl, a file of the run itself"),
        (("-o", "t.csv", "--only", "none"), "is not one of"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_no_file(state: Path, tmp_path: Path, arguments: tuple[str, ...], words: str):
    done = batchrun("export", "out.jsonl.state", *arguments, cwd=tmp_path)
    assert_one_clear_line(done, 2, words)
    assert done.stderr.count("\n") <= 2, "the message, and what to do"
    assert not [*tmp_path.glob("t.*"), *tmp_path.glob("s3:*")]


def test_without_the_library_one_line_says_how_to_get_it(state: Path, tmp_path: Path):
    code = (
        "import sys\nfor name in ('pyarrow', 'zstandard', 'huggingface_hub'): sys.modules[name] = None\n"
        "from batchrun.__main__ import main\nmain()"
    )
    missing = {"t.parquet": "pyarrow", "t.csv.zst": "zstandard", "hf://datasets/a/b/t.csv": "huggingface_hub"}
    for name, library in missing.items():
        command = [sys.executable, "-c", code, "export", str(state), "-o", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert_one_clear_line(done, 2, f"needs {library}")
        assert "pip install 'runpod-batchrun[data]'" in done.stderr
    command = [sys.executable, "-c", code, "export", str(state), "-o", "t.csv.gz"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


async def test_a_run_that_is_going_on_gives_its_rows_so_far(tmp_path: Path):
    write_lines(tmp_path, [{"id": f"r{n}", "prompt": "x"} for n in range(30)])
    local = ("-e", "local", "--worker", "echo", "-q")
    assert batchrun("run", "in.jsonl", *local, "-o", "out.jsonl", "--limit", "10", cwd=tmp_path).returncode == 0
    path, told = table(tmp_path / "out.jsonl.state")
    assert pq.read_table(path)["id"].to_pylist() == [f"r{n}" for n in range(10)]
    assert told.results == 10


def test_results_carry_their_line_and_their_thoughts_when_asked_and_a_resume_keeps_to_it(tmp_path: Path):
    lines = [{"id": f"r{n}", "prompt": f"<think>t{n}</think>a{n}", "metadata": {"n": n}} for n in range(4)]
    write_lines(tmp_path, lines)
    local = ("-e", "local", "--worker", "echo", "-q")
    asked = ("run", "in.jsonl", *local, "-o", "out.jsonl", "--with-request", "--split-think")
    assert batchrun(*asked, "--limit", "2", "--sweep", "temperature=0,1", cwd=tmp_path).returncode == 0
    assert batchrun("resume", "out.jsonl.state", "--worker", "echo", "-q", cwd=tmp_path).returncode == 0
    refused = batchrun(*asked[:-1], "--limit", "2", "--sweep", "temperature=0,1", cwd=tmp_path)
    assert_one_clear_line(refused, 2, "was created with --split-think (now no --split-think)")
    assert batchrun(*asked, "--sweep", "temperature=0,1", cwd=tmp_path).returncode == 0
    records = {record["id"]: record for record in read_lines(tmp_path / "out.jsonl")}
    assert len(records) == 8
    one = records["r3/temperature=1"]
    assert (one["text"], one["reasoning"]) == ("a3", "t3")
    assert one["request"] == {**lines[3], "temperature": 1}
    assert batchrun("verify", "out.jsonl.state", cwd=tmp_path).returncode == 0
    cells = pq.read_table(table(tmp_path / "out.jsonl.state")[0]).to_pydict()
    assert (cells["prompt"][0], cells["text"][0], cells["reasoning"][0]) == ("<think>t0</think>a0", "a0", "t0")


def test_the_options_of_an_older_state_file_say_neither(tmp_path: Path):
    write_lines(tmp_path, [{"id": "a", "prompt": "x"}])
    local = ("-e", "local", "--worker", "echo", "-q", "-o", "out.jsonl")
    assert batchrun("run", "in.jsonl", *local, cwd=tmp_path).returncode == 0
    with Store(tmp_path / "out.jsonl.state") as store:
        options = store.get_setting("options")
        del options["with_request"], options["split_think"]
        store.set_setting("options", options)
    write_lines(tmp_path, [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "<think>x</think>y"}])
    assert batchrun("run", "in.jsonl", *local, cwd=tmp_path).returncode == 0
    assert [record["text"] for record in read_lines(tmp_path / "out.jsonl")] == ["x", "<think>x</think>y"]
    assert all("request" not in record for record in read_lines(tmp_path / "out.jsonl"))
