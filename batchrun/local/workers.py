"""The interface of the local endpoint's workers, and how they interpret a request.

Requests are interpreted as by worker-vllm since 2.24: first `openai_input` with its `openai_route`, then `messages`,
then `prompt`, with `sampling_params` merged into the body. Errors look like its errors, too: the Python repr of a dict
that contains the model server's message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from batchrun.errors import shown

CHAT_ROUTE = "/v1/chat/completions"
BATCH_ROUTE = "/v1/chat/completions/batch"
"""Takes a list of conversations, and answers with a choice for each."""
COMPLETIONS_ROUTE = "/v1/completions"
_MOST_FOUND_CHARS = 200
_ROUTE = re.compile(r"(?:/[A-Za-z0-9_.:-]{1,100}){1,20}")


class Worker(Protocol):
    """Runs jobs. A worker that never waits may also have `answer(request)`, a faster `run` without `await`."""

    name: str
    """Shown to the user."""
    parallel: int
    """How many jobs it should run at once."""

    async def start(self) -> None:
        """Prepare to run jobs.

        Raises:
            UsageError: it cannot run here.
        """

    async def run(self, request: dict[str, Any]) -> Any:
        """The output of a job for its `input` object.

        Raises:
            WorkerFailure: the job fails.
        """

    async def close(self) -> None:
        """Free all resources."""


class WorkerFailure(Exception):  # noqa: N818 - the job fails, the worker has no error
    """Makes a job fail. Its text becomes the `error` in the answer to `/status`."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request to the model server."""

    route: str
    body: dict[str, Any]


def model_call(request: dict[str, Any]) -> ModelCall | None:
    """The request to the model server for a job's input; None if the input is not a prompt.

    Raises:
        WorkerFailure: the route is not a path, or vLLM would refuse a sampling value; with vLLM's own error.
    """
    sampling = request.get("sampling_params")
    sampling = sampling if isinstance(sampling, dict) else {}
    if isinstance(request.get("openai_input"), dict):
        call = ModelCall(_route(request.get("openai_route", CHAT_ROUTE)), dict(request["openai_input"]))
    elif isinstance(request.get("messages"), list):
        call = ModelCall(CHAT_ROUTE, {"messages": request["messages"], **sampling})
    elif isinstance(request.get("prompt"), (str, list)):
        call = ModelCall(COMPLETIONS_ROUTE, {"prompt": request["prompt"], **sampling})
    else:
        return None
    _refuse_bad_sampling(call.body)
    request_id = call.body.get("request_id")
    if request_id is not None and not isinstance(request_id, str):
        raise invalid("string_type", "body.request_id", "Input should be a valid string", request_id)
    return call


def model_failure(
    http_status: int, message: str, error_type: str = "BadRequestError", param: str | None = None
) -> WorkerFailure:
    """The failure of a job whose model server answered with an HTTP error; `param` is the field that it refuses."""
    inner = {"error": {"message": message, "type": error_type, "param": param, "code": http_status}}
    return worker_failure(f"vLLM returned HTTP {http_status}: {orjson.dumps(inner).decode()}")


def invalid(kind: str, place: str, message: str, value: Any) -> WorkerFailure:
    """The failure of a job whose request is not of vLLM's form: at `place`, such as `body.messages.0`, is `value`."""
    if isinstance(value, (list, dict)):
        found = f"<{type(value).__name__} of {len(value)} items>"
    else:
        found = value[:_MOST_FOUND_CHARS] if isinstance(value, str) else shown(value)
    problem = str({"type": kind, "loc": place, "msg": message, "input": found})
    return model_failure(400, f"1 validation error:\n  {problem}", "Bad Request", place)


def worker_failure(message: str) -> WorkerFailure:
    """A failure as worker-vllm's handler yields it and the SDK converts it to text."""
    return WorkerFailure(str({"message": message, "type": "worker_error", "code": None}))


def _route(route: object) -> str:
    """Validate a job's route, which is appended to the model server's address and must not lead elsewhere.

    Raises:
        WorkerFailure: it is not a plain absolute path.
    """
    segments = route.split("/") if isinstance(route, str) and _ROUTE.fullmatch(route) else [".."]
    if {".", ".."} & set(segments):
        raise model_failure(404, f"no route {shown(route)}: it must be a path such as {CHAT_ROUTE}", "NotFoundError")
    return str(route)


def _refuse_bad_sampling(body: dict[str, Any]) -> None:
    for key in ("max_tokens", "max_completion_tokens"):
        value = body.get(key)
        if isinstance(value, float) and value.is_integer():
            value = body[key] = int(value)  # vLLM's validation does the same
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise model_failure(400, f"{key} must be at least 1, got {value!r}.")
    temperature = body.get("temperature")
    if temperature is not None and (not isinstance(temperature, (int, float)) or temperature < 0):
        raise model_failure(400, f"temperature must be non-negative, got {temperature!r}.")
