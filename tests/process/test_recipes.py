"""The recipes, done as samples/README.md says, in a copy of samples/."""

from __future__ import annotations

import asyncio
import configparser
import csv
import json
import operator
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest
from pyarrow import parquet

from batchrun import errors
from batchrun.local.echo import EchoWorker
from batchrun.local.server import LocalEndpoint, LocalOptions
from batchrun.local.smollm2 import missing
from tests.support.places import SAMPLES
from tests.support.rehearsal import read_lines, write_lines
from tests.support.workers import Answering

SCRIPTS = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "RUNPOD_API_KEY": "rpa_SECRET"}
LOCAL_ECHO = {"RUNPOD_ENDPOINT_ID": "local", "BATCHRUN_WORKER": "echo"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a copy of samples/ in it."""
    written = shutil.ignore_patterns("*.results.jsonl", "*.errors.jsonl", "*.manifest.json", "*.state*")
    shutil.copytree(SAMPLES, tmp_path / "samples", ignore=written)
    return tmp_path


def do(folder: Path, command: str, *, exit_code: int = 0, timeout_s: float = 100, **environment: str) -> str:
    """What a command says on stdout."""
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout


def table(folder: Path, state: str) -> dict[str, tuple[int, int]]:
    """Variant -> how many rows have a score, and how many are right."""
    lines = csv.DictReader(StringIO(do(folder, f"batchrun report {state} --csv")))
    return {line["variant"]: (int(line["scored"]), int(line["right"])) for line in lines}


def wait_for_its_end(pid: int) -> None:
    """Until a process that is no child of this one is over."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            assert select.select([process], [], [], 60)[0], "the run does not end"
        finally:
            os.close(process)


# An evaluation


def test_a_sweep_is_scored_by_variant_and_what_failed_is_wrong(folder: Path):
    asked = [("12", "12", 9), (" paris.", "Paris", 9), ("wrong", "right", 9), ("12", "12", 0)]
    write_lines(
        folder,
        [{"prompt": p, "max_tokens": most, "metadata": {"reference": reference}} for p, reference, most in asked],
    )
    run = "batchrun run in.jsonl -e local --worker echo -o out.jsonl -q --sweep temperature=0,0.7 --repeat 2"
    do(folder, run, exit_code=3)
    do(folder, "batchrun score out.jsonl.state --with exact --normalize case,punctuation --with-errors")
    assert table(folder, "out.jsonl.state") == {f"temperature={value}": (8, 4) for value in ("0", "0.7")}


def test_an_evaluation_ends_in_two_pages(folder: Path):
    commands = shlex.join(["bash", "-euc", recipe("An evaluation, from a sweep to a page")])
    assert "temperature=0.2" in do(folder, commands, **LOCAL_ECHO)
    pages = [folder / "samples" / name for name in ("sweep.report.html", "sweep.results.view.html")]
    assert all(page.read_text().startswith("<!doctype html>") for page in pages)


def test_samples_of_a_question_give_pass_at_k(folder: Path):
    said = do(folder, shlex.join(["bash", "-euc", recipe("pass@k")]), **LOCAL_ECHO)
    assert re.search(r"pass@2 +pass@4 +pass@8 +majority@8", said)


def test_a_run_without_a_sweep_is_scored_as_one(folder: Path):
    write_lines(folder, [{"prompt": text, "metadata": {"reference": "a"}} for text in ("a", "b")])
    do(folder, "batchrun run in.jsonl -e local --worker echo -o out.jsonl -q")
    do(folder, "batchrun score out.jsonl.state --with exact")
    assert table(folder, "out.jsonl.state") == {"all": (2, 1)}


@pytest.mark.skipif(missing(None) is not None, reason="the extra `local` is not installed")
def test_a_real_model_can_do_some_arithmetic(folder: Path):
    do(folder, "batchrun run --config samples/sweep.toml --sweep temperature=0 --repeat 1 -q")
    do(folder, "batchrun score samples/sweep.results.jsonl.state --with number")
    ((variant, (rows, right)),) = table(folder, "samples/sweep.results.jsonl.state").items()
    assert (variant, rows) == ("temperature=0", 20)
    assert 5 <= right < 20


def test_the_references_of_the_evaluation_are_right():
    meaning = {
        "+": operator.add,
        "-": operator.sub,
        "\N{MULTIPLICATION SIGN}": operator.mul,
        "\N{DIVISION SIGN}": operator.truediv,
    }
    lines = read_lines(SAMPLES / "arithmetic.jsonl")
    assert len({line["id"] for line in lines}) == 20
    for line in lines:
        solved = f"{line['prompt']} {line['metadata']['reference']}"
        equations = re.findall(r"^(\d+) (\D) (\d+) = (\d+)$", solved, re.MULTILINE)
        assert len(equations) == 3, "two are shown, one is asked"
        for first, sign, second, result in equations:
            assert meaning[sign](int(first), int(second)) == int(result), line["id"]


# Tables and pictures


def recipe(title: str) -> str:
    """The commands of a recipe in samples/README.md."""
    return (
        (SAMPLES / "README.md")
        .read_text()
        .split(f"**{title}.**")[1]
        .split("```sh")[1]
        .split("\n", 1)[1]
        .split("```")[0]
    )


async def do_recipe(folder: Path, title: str, worker: EchoWorker) -> None:
    """Follow a recipe with another worker than its own."""
    commands = re.sub("-e local( --worker echo)?", "-e abc", recipe(title))
    async with LocalEndpoint(LocalOptions(), worker) as endpoint:
        command = shlex.join(["bash", "-euc", commands])
        await asyncio.to_thread(do, folder, command, RUNPOD_ENDPOINT_BASE_URL=endpoint.base_url)


def chat(text: str) -> list[dict]:
    return [{"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}]


async def test_a_table_of_reviews_becomes_a_table_of_labels(folder: Path):
    schema = json.loads((SAMPLES / "reviews.schema.json").read_text())
    asked = Counter()

    def answer(request: dict) -> object:
        assert request["sampling_params"]["response_format"]["json_schema"]["schema"] == schema
        prompt = request["messages"][0]["content"]
        asked[prompt] += 1
        topic = "postage" if asked[prompt] == 1 and "late" in prompt else "delivery"
        return chat(json.dumps({"sentiment": "negative" if "late" in prompt else "positive", "topic": topic}))

    await do_recipe(folder, "Labels", Answering(answer))
    with (SAMPLES / "reviews.csv").open(newline="") as file:
        reviews = list(csv.DictReader(file))
    assert len(asked) == len(reviews) == 12
    assert sorted(asked.values()) == [1] * 11 + [2], "a label that does not exist is asked for again"
    labels = parquet.read_table(folder / "labels.parquet").to_pylist()
    assert labels == [
        {name: review[name] for name in ("id", "stars", "review")}
        | {"parsed.sentiment": "negative" if "late" in review["review"] else "positive", "parsed.topic": "delivery"}
        for review in reviews
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(missing(None) is not None, reason="the extra `local` is not installed")
def test_a_real_model_labels_a_review(folder: Path):
    do(folder, shlex.join(["bash", "-euc", recipe("Labels")]), timeout_s=280, BATCHRUN_LIMIT="1")
    (row,) = parquet.read_table(folder / "labels.parquet").to_pylist()
    assert (row["id"], row["parsed.sentiment"] in ("positive", "negative")) == ("kettle-1", True)


async def test_pictures_are_sent_and_their_captions_stand_beside_their_names(folder: Path):
    sent = []

    def answer(request: dict) -> object:
        text, picture = request["messages"][0]["content"]
        sent.append(picture["image_url"]["url"])
        return chat(f"{text['text']} A picture.")

    await do_recipe(folder, "Captions", Answering(answer))
    pictures = sorted((SAMPLES / "pictures").glob("*.png"))
    urls = [f"data:image/png;base64,{b64encode(picture.read_bytes()).decode()}" for picture in pictures]
    assert sorted(sent) == sorted(urls)
    assert all(picture.stat().st_size < 2000 for picture in pictures)
    with (folder / "captions.csv").open(newline="") as file:
        captions = {row["file"]: row["text"] for row in csv.DictReader(file)}
    assert set(captions) == {f"pictures/{picture.name}" for picture in pictures}
    assert captions["pictures/sunset.png"] == "Describe this picture in one sentence, in German. A picture."


async def test_a_dataset_for_fine_tuning_has_each_chat_with_its_answer(folder: Path):
    await do_recipe(
        folder, "A dataset for fine-tuning", Answering(lambda request: chat(f"Haiku {request['messages']}"))
    )
    chats = [line["messages"] for line in read_lines(SAMPLES / "haikus.jsonl")]
    assert [line["messages"] for line in read_lines(folder / "train.jsonl")] == [
        [*messages, {"role": "assistant", "content": f"Haiku {messages}"}] for messages in chats
    ]


# A night


def assert_done(folder: Path) -> None:
    assert len(read_lines(folder / "samples" / "overnight.results.jsonl")) == 6
    assert "not running" in do(folder, "batchrun status samples/overnight.results.jsonl.state")


def test_a_night_is_estimated_and_runs_without_its_terminal(folder: Path):
    estimate = do(folder, "batchrun estimate --config samples/overnight.toml --pilot 3", **LOCAL_ECHO)
    assert estimate.startswith("estimate for the 3 rows left, from 3 rows drawn at random")
    said = do(folder, "batchrun run --config samples/overnight.toml --detach", **LOCAL_ECHO)
    if said:  # else it has ended before it was in the background
        wait_for_its_end(json.loads(said)["pid"])
    (log,) = (folder / "samples").glob("*.log")
    assert "finished: 6 of 6 rows succeeded" in log.read_text()
    assert_done(folder)
    assert "finished" in do(folder, "batchrun ls samples")


def the_unit() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str
    unit.read(SAMPLES / "batchrun.service")
    return unit


def test_the_unit_runs_the_night(folder: Path):
    service = the_unit()["Service"]
    assert service["WorkingDirectory"] == "%h/batchrun"
    command = service["ExecStart"].replace("%h/batchrun/.venv/bin", str(SCRIPTS))
    do(folder, command, **LOCAL_ECHO)
    assert_done(folder)


def test_the_unit_starts_again_after_a_death_and_after_nothing_else():
    service = the_unit()["Service"]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    ours = {kind.exit_code for kind in kinds} - {1}
    assert service["Restart"] == "on-failure"
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == ours | {3}
    assert service["SuccessExitStatus"] == "130"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_understands_the_unit(tmp_path: Path):
    unit = tmp_path / "batchrun.service"
    unit.write_text((SAMPLES / unit.name).read_text().replace("%h/batchrun/.venv/bin", str(SCRIPTS)))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", unit],
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Two endpoints


def test_two_endpoints_are_compared_in_one_run(folder: Path):
    serve = [SCRIPTS / "batchrun", "serve", "--worker", "echo", "--port", "0"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        base_url = server.stderr.readline().split("at ")[1].split("/ID")[0]
        try:
            do(folder, f"batchrun run --config samples/compare_endpoints.toml --base-url {base_url} -q")
        finally:
            server.terminate()
    do(folder, "batchrun score samples/compare.results.jsonl.state --with exact")
    found = table(folder, "samples/compare.results.jsonl.state")
    assert {variant: rows for variant, (rows, _) in found.items()} == {
        "endpoint=abc123xyz": 20,
        "endpoint=def456uvw": 20,
    }


# The morning after


class Night:
    """An endpoint whose worker begins its work when the night falls, and whose clock is set."""

    class Sleeper(EchoWorker):
        """Answers from then on."""

        answer = None

        def __init__(self) -> None:
            self.may_work = asyncio.Event()

        async def run(self, request: dict) -> object:
            await self.may_work.wait()
            return EchoWorker.answer(self, request)

    def __init__(self, rows: int) -> None:
        self.worker, self.rows, self.submitted, self.passed_s = self.Sleeper(), rows, 0, 0.0
        self.all_in = asyncio.Event()
        self.endpoint = LocalEndpoint(
            LocalOptions(workers=rows), self.worker, clock=lambda: time.monotonic() + self.passed_s, intercept=self.see
        )

    async def see(self, request: object) -> None:
        """Count the submissions; a look at a job after the last one shows that it was answered."""
        operation = request.path.split("/")[3]
        self.submitted += operation == "run"
        if operation == "status" and self.submitted >= self.rows:
            self.all_in.set()

    async def pass_by(self) -> None:
        """The jobs end, and what nobody has fetched is forgotten."""
        self.worker.may_work.set()
        await asyncio.gather(*self.endpoint._at_work.values())
        self.passed_s += 31 * 60


async def start(folder: Path, command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *shlex.split(command), cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize("retries", [3, 0])
async def test_the_morning_after_results_have_expired_their_rows_are_run_again_or_wait_for_a_word(
    folder: Path, retries: int
):
    rows = 12
    write_lines(folder, [{"id": f"r{n}", "prompt": f"prompt {n}"} for n in range(rows)])
    night = Night(rows)
    async with night.endpoint as endpoint:
        run = f"batchrun run in.jsonl -e abc --base-url {endpoint.base_url} -o out.jsonl -j {rows}"
        process = await start(folder, f"{run} --max-retries {retries} --on-interrupt detach --progress plain")
        await asyncio.wait_for(night.all_in.wait(), 60)
        process.send_signal(signal.SIGTERM)
        said = await process.communicate()
        assert process.returncode == 130, said
        await night.pass_by()

        process = await start(folder, "samples/resume_after_expiry.sh out.jsonl.state")
        said = (await process.communicate())[0].decode()
        assert process.returncode == (0 if retries else 3), said
        assert f"in flight  {rows:>11}" in said
        if not retries:
            assert re.search(rf"expired +{rows} ", said), said
            assert night.submitted == rows
            process = await start(folder, "batchrun resume out.jsonl.state --retry-failed --only expired")
            assert await process.wait() == 0
    assert night.submitted == 2 * rows
    assert sorted(record["id"] for record in read_lines(folder / "out.jsonl")) == sorted(f"r{n}" for n in range(rows))
