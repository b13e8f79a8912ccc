"""Runs whose requests a template makes of rows, from the command to the results, the error file and back."""

from __future__ import annotations

import os
import signal
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import orjson
import pytest

import batchrun as api
from batchrun.commands.verify import verify
from batchrun.config import RequestOptions, SweepOptions, TemplateOptions
from batchrun.local.echo import EchoWorker
from batchrun.local.workers import WorkerFailure
from tests.support.claims import assert_adds_up
from tests.support.command import assert_one_clear_line, batchrun, served, start
from tests.support.rehearsal import read_lines, rehearse, serving, write_lines
from tests.support.waiting import wait_for_lines

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"id": f"r{n}", "review": f"{'bad' if n == 2 else 'good'} {{{{ {n} }}}}", "stars": n} for n in range(5)]
PROMPT = "Rate: {{ review }}"
LOCAL = ("-e", "local", "--worker", "echo", "--progress", "none")
PNG = b"\x89PNG\r\n\x1a\n picture"


class Strict(EchoWorker):
    """An echo that refuses messages with `bad` in them."""

    def answer(self, request: dict[str, Any]) -> Any:
        if "bad" in request["messages"][-1]["content"]:
            raise WorkerFailure("vLLM returned HTTP 400: bad prompt")
        return super().answer(request)


def asking(prompt: str = PROMPT, **more: Any) -> RequestOptions:
    own = {name: more.pop(name) for name in ("id_column", "inline_files", "override") if name in more}
    return RequestOptions(template=TemplateOptions(prompt, **more), **own)


def run(folder: Path, *options: object, **given: Any):
    return batchrun("run", "in.jsonl", "-o", "out.jsonl", *LOCAL, *options, cwd=folder, **given)


async def test_results_and_errors_are_those_of_the_rendered_lines(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    async with serving(worker=Strict()) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, request=asking(system="Stars: {{ stars }}"))
    assert (done.summary.succeeded, done.summary.failed) == (4, 1)
    assert {record["id"]: record["metadata"]["stars"] for record in done.results} == {
        "r0": 0,
        "r1": 1,
        "r3": 3,
        "r4": 4,
    }
    (error,) = done.errors
    system, user = {"role": "system", "content": "Stars: 2"}, {"role": "user", "content": "Rate: bad {{ 2 }}"}
    metadata = {"review": "bad {{ 2 }}", "stars": 2}
    assert error["request"] == {"id": "r2", "messages": [system, user], "metadata": metadata}
    assert verify(done.summary.state).is_whole


@pytest.mark.parametrize("form", ["batchrun", "openai"])
async def test_the_error_file_is_run_again_without_the_template(tmp_path: Path, form: str):
    write_lines(tmp_path, ROWS)
    async with serving(worker=Strict()) as server:
        sweep = SweepOptions((("temperature", (0, 1)),))
        done = await rehearse(tmp_path, server.endpoint.base_url, request=asking(), sweep=sweep, format=form)
    assert (done.summary.succeeded, len(done.errors)) == (8, 2)
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "out.errors.jsonl").rename(again / "in.jsonl")
    async with serving() as server:
        second = await rehearse(again, server.endpoint.base_url)
    assert sorted(second.ids()) == ["r2/temperature=0", "r2/temperature=1"]
    assert {record["text"] for record in second.results} == {"Rate: bad {{ 2 }}"}
    assert second.results[0]["metadata"]["stars"] == 2


async def test_a_template_goes_with_dedupe_shards_repeats_and_a_rebuilt_state(tmp_path: Path):
    write_lines(tmp_path, [{"review": "same", "n": n} for n in range(3)] + [{"review": "other", "n": 9}])
    async with serving() as server:
        url = server.endpoint.base_url
        shared = await rehearse(tmp_path, url, request=asking(), dedupe=True, sweep=SweepOptions(repeat=2))
        assert (shared.summary.succeeded, server.seen["run"]) == (8, 4)
        assert sorted(record["metadata"]["n"] for record in shared.results) == [0, 0, 1, 1, 2, 2, 9, 9]
        assert verify(shared.summary.state).is_whole
        ids = []
        for index in (1, 2):
            part = tmp_path / str(index)
            part.mkdir()
            write_lines(part, [{"id": n, "review": f"x{n}"} for n in range(20)])
            done = await rehearse(part, url, request=asking(), shard=f"{index}/2")
            assert verify(done.summary.state).is_whole
            ids += done.ids()
        assert sorted(ids, key=int) == [str(n) for n in range(20)]


def test_a_state_that_is_lost_is_rebuilt_from_the_rows_and_the_results(tmp_path: Path):
    write_lines(tmp_path, [{"review": f"x{n}"} for n in range(6)])
    assert run(tmp_path, "--prompt", PROMPT).returncode == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    for path in tmp_path.glob("out.jsonl.state*"):
        path.unlink()
    done = run(tmp_path, "--prompt", PROMPT, "--repair")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert batchrun("verify", "out.jsonl.state", cwd=tmp_path).returncode == 0


def test_a_killed_run_is_resumed_without_the_template_and_refuses_another(tmp_path: Path):
    rows = 150
    write_lines(tmp_path, [{"asin": n, "review": f"text {n}"} for n in range(rows)])
    (tmp_path / "t.j2").write_text("{% if review %}Say: {{ review }}{% endif %}\n")
    with served() as base_url:
        options = ("--prompt-file", str(tmp_path / "t.j2"), "--id-column", "asin")
        process = start(tmp_path, base_url, *options)
        wait_for_lines(tmp_path / "out.jsonl", 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (tmp_path / "t.j2").write_text("Tell: {{ review }}")
        other = start(tmp_path, base_url, *options)
        said = other.communicate(timeout=20)[1]
        assert (other.returncode, "was created with --prompt " in said) == (2, True), said
        (tmp_path / "t.j2").unlink()
        done = batchrun("resume", tmp_path / "out.jsonl.state", "--progress", "none", RUNPOD_API_KEY="rpa_SECRET")
        assert done.returncode == 0, done.stderr
    assert_adds_up(tmp_path / "out.jsonl.state")
    records = read_lines(tmp_path / "out.jsonl")
    assert sorted(int(record["id"]) for record in records) == list(range(rows))
    assert {record["text"] for record in records} == {f"Say: text {n}" for n in range(rows)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompt", "{{ reviw }}"), "in.jsonl:1: --prompt, line 1, column 4: `reviw` is undefined (the row has"),
        (("--prompt", "{{ review"), "--prompt, line 1, column 4: unexpected end of input"),
        (("--prompt", "{review}"), "the template uses no column"),
        (("--prompt", " "), "--prompt is empty"),
        (("--prompt-file", "gone.j2"), "--prompt-file gone.j2: No such file"),
        (("--prompt-file", "bad.j2"), "--prompt-file bad.j2, line 2, column 4: unknown statement fr"),
        (("--prompt-file", "latin.j2"), "--prompt-file latin.j2: byte 2 is not UTF-8"),
        (("--prompt", PROMPT, "--prompt-file", "bad.j2"), "both --prompt and --prompt-file are given"),
        (("--prompt", PROMPT, "--messages-file", "bad.j2"), "both --messages-file and --prompt are given"),
        (("--prompt", PROMPT, "--raw", "--system", "x"), "both --raw and --system are given"),
        (("--columns", "a"), "--columns needs a template"),
        (("--image-column", "a"), "--image-column needs a template"),
        (("--raw",), "--raw needs a template"),
        (("--prompt", PROMPT, "--columns", "stars,nothing"), "--columns: no row has `nothing`"),
        (
            ("--prompt", PROMPT, "--id-column", "nothing"),
            "in.jsonl:1: --id-column: `nothing` is absent or empty: the row has",
        ),
        (("--prompt", PROMPT, "--id-column", "same"), "duplicate id: '1': in.jsonl:1 and in.jsonl:2"),
        (("--prompt", PROMPT, "--image-column", "same"), "--image-column: `same` must have a path or URL"),
        (("--prompt", PROMPT, "--image-column", "pic"), "in.jsonl:1: `image_url`: "),
    ],
)
def test_what_cannot_be_rendered_is_refused_before_anything_is_sent(tmp_path: Path, options: tuple, words: str):
    write_lines(tmp_path, [{**row, "same": 1, "pic": "gone.png"} for row in ROWS[:2]])
    (tmp_path / "bad.j2").write_text("x {{ review }}\n{% fr x %}")
    (tmp_path / "latin.j2").write_bytes(b"x\xe9 {{ review }}")
    done = run(tmp_path, *options)
    assert_one_clear_line(done, 2, words)
    assert "lines are invalid" not in done.stderr or "fix the template or the lines" in done.stderr
    assert not (tmp_path / "out.jsonl.state").exists()
    dry = run(tmp_path, *options, "--dry-run")
    assert (dry.returncode, "Traceback" in dry.stderr) == (2, False), dry.stderr
    if words.startswith("in.jsonl"):
        check = batchrun("check", "in.jsonl", *options, cwd=tmp_path)
        assert (check.returncode, words in check.stdout) == (2, True)


def test_a_dry_run_shows_the_first_requests_or_as_many_as_asked_for_and_all_prints_every_one(tmp_path: Path):
    write_lines(tmp_path, ROWS)
    command = ("run", "-e", "x", "--prompt", PROMPT)
    for arguments in (("--dry-run", "in.jsonl"), ("in.jsonl", "--dry-run"), ("in.jsonl", "--dry-run=first")):
        done = batchrun(*command, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        shown = done.stdout.replace("}\n{", "}\0{").split("\0")
        assert [orjson.loads(each)["input"]["messages"][0]["content"] for each in shown] == [
            f"Rate: {row['review']}" for row in ROWS[:3]
        ]
        assert "the first 3 of 5 requests are shown" in done.stderr
        assert "text of all prompts: 89 characters, about 22 tokens" in done.stderr
        assert "5 rows would be sent" in done.stderr
    for arguments in (("--dry-run", "4", "in.jsonl"), ("in.jsonl", "--dry-run=4"), ("in.jsonl", "--dry-run", "4")):
        done = batchrun(*command, *arguments, cwd=tmp_path)
        assert (done.stdout.count("}\n{"), "the first 4 of 5 requests" in done.stderr) == (3, True), done.stderr
    none = batchrun(*command, "--dry-run", "0", "in.jsonl", "-o", "out.jsonl", cwd=tmp_path)
    assert_one_clear_line(none, 2, "0: no such file")
    for arguments in (
        ("--dry-run", "all", "in.jsonl"),
        ("in.jsonl", "--dry-run", "all"),
        ("--dry-run=all", "in.jsonl"),
    ):
        done = batchrun(*command, *arguments, cwd=tmp_path)
        assert len([orjson.loads(line) for line in done.stdout.splitlines()]) == 5
    (tmp_path / "all").write_text('{"review": "x"}\n')
    assert "1 row would be sent" in batchrun(*command, "--dry-run", "./all", cwd=tmp_path).stderr
    for value, code in (("true", 0), ("1", 0), ("0", 2), ("some", 2)):
        assert batchrun(*command, "gone.jsonl", BATCHRUN_DRY_RUN=value, cwd=tmp_path).returncode == 2
        found = batchrun(*command, "in.jsonl", BATCHRUN_DRY_RUN=value, BATCHRUN_OUTPUT="o.jsonl", cwd=tmp_path)
        assert (found.returncode, "nothing was sent" in found.stderr) == (code, code == 0), found.stderr


def test_a_dry_run_finds_ids_that_occur_twice(tmp_path: Path):
    write_lines(tmp_path, [{"id": "a", "prompt": "x"}, {"prompt": "y"}, {"id": "a", "prompt": "z"}])
    done = batchrun("run", "in.jsonl", "-e", "x", "--dry-run", cwd=tmp_path)
    assert (done.returncode, "in.jsonl:3: duplicate id 'a', first at in.jsonl:1" in done.stderr) == (2, True)


def test_all_options_work_from_a_run_file_and_relative_to_it(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    write_lines(tmp_path / "sub", [{"asin": 1, "review": "x", "pic": "https://example.org/a.png", "note": "n"}])
    (tmp_path / "sub" / "p.j2").write_text("Look: {{ review }}\n")
    (tmp_path / "sub" / "run.toml").write_text(
        'inputs = ["in.jsonl"]\nendpoint = "x"\nprompt-file = "p.j2"\nid-column = "asin"\nimage-column = "pic"\n'
        'columns = ["asin", "note"]\ndry-run = "all"\n'
    )
    done = batchrun("run", "--config", "sub/run.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    content = [{"type": "text", "text": "Look: x"}, part]
    assert orjson.loads(done.stdout)["input"] == {"messages": [{"role": "user", "content": content}]}


async def test_pictures_are_sent_and_stay_out_of_what_is_written(tmp_path: Path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PNG)
    write_lines(tmp_path, [{"id": name, "pic": f"{name}.png"} for name in "ab"])
    seen: list[Any] = []

    async def look(request, operation):
        if operation == "run":
            seen.append(orjson.loads(await request.read())["input"])
            if len(seen) == 1:
                (tmp_path / "b.png").unlink(missing_ok=True)

    request = asking("Describe.", image_column="pic", inline_files="anywhere")
    async with serving(look) as server:
        done = await rehearse(tmp_path, server.endpoint.base_url, request=request, scheduler={"concurrency": 1})
    url = f"data:image/png;base64,{b64encode(PNG).decode()}"
    assert [body["messages"][0]["content"][1]["image_url"]["url"] for body in seen] == [url]
    (error,) = done.errors
    assert (error["id"], error["status"], error["error"]["kind"]) == ("b", "INVALID", "invalid")
    assert "b.png: No such file or directory" in error["error"]["message"]
    assert error["request"]["messages"][0]["content"][1]["image_url"]["url"] == str(tmp_path / "b.png")
    state = (tmp_path / "out.jsonl.state").read_bytes() + (tmp_path / "out.errors.jsonl").read_bytes()
    assert b64encode(PNG) not in state
    assert verify(done.summary.state).is_whole
    (tmp_path / "b.png").write_bytes(PNG)
    os.utime(tmp_path / "b.png", (time.time() - 60,) * 2)
    async with serving() as server:
        again = await rehearse(tmp_path, server.endpoint.base_url, request=request, retry=())
    assert again.summary.exit_code == 0


def test_an_error_file_in_another_folder_names_the_same_pictures(tmp_path: Path):
    for name, data in (("in", PNG), ("out", b"another picture")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(data)
    line = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}]}
    write_lines(tmp_path / "in", [{**line, "metadata": {"image_url": "a.png"}, "max_tokens": 0}])
    first = ("in/in.jsonl", "-o", "out/r.jsonl", "--inline-files", "--schema", "n int", "--reask", "0")
    done = batchrun("run", *first, *LOCAL, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    (error,) = read_lines(tmp_path / "out" / "r.errors.jsonl")
    assert error["request"]["metadata"] == {"image_url": "a.png"}
    again = batchrun("run", "out/r.errors.jsonl", "-e", "x", "--inline-files", "--dry-run", "all", cwd=tmp_path)
    url = orjson.loads(again.stdout)["input"]["messages"][0]["content"][0]["image_url"]["url"]
    assert url == str(tmp_path / "in" / "a.png")


def test_a_watched_folder_gives_away_only_its_own_files(tmp_path: Path):
    (tmp_path / "inbox").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "inbox" / "own.png").write_bytes(PNG)
    for name, path in (("good", "own.png"), ("evil", "../secret.png")):
        (tmp_path / "inbox" / f"{name}.jsonl").write_bytes(orjson.dumps({"pic": path}) + b"\n")
    done = batchrun(
        *("watch", "inbox", "-o", "results", *LOCAL, "--until-empty", "--settle", "0.01s"),
        *("--prompt", "Describe.", "--image-column", "pic"),
        cwd=tmp_path,
    )
    assert "../secret.png is outside the watched folder" in done.stderr
    assert (tmp_path / "results" / "good.done").exists()
    assert (tmp_path / "results" / "evil.failed").exists()


async def test_a_program_gives_rows_and_a_template(tmp_path: Path):
    given: dict[str, Any] = {"endpoint": "local", "worker": "echo", "progress": "none", "prompt": PROMPT}
    rows = [{"asin": n, "review": f"x{n}"} for n in range(3)]
    done = api.run(rows, output=tmp_path / "out.jsonl", id_column="asin", columns=["asin"], **given)
    assert done.exit_code == 0
    records = {record["id"]: record for record in read_lines(tmp_path / "out.jsonl")}
    assert {key: (each["text"], each["metadata"]) for key, each in records.items()} == {
        str(n): (f"Rate: x{n}", {"asin": n}) for n in range(3)
    }
    streamed = [record async for record in api.stream(rows, state=tmp_path / "s.state", **given)]
    assert sorted(record["text"] for record in streamed) == ["Rate: x0", "Rate: x1", "Rate: x2"]
    with pytest.raises(api.InputError, match="request 1: --prompt, line 1, column 10: `review` is undefined"):
        api.run([{"a": 1}], output=tmp_path / "bad.jsonl", **given)
