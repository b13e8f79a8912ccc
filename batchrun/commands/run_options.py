"""The options of a run from the parameters of a command: what goes together, and what is left to say.

The parameters have the names and the values that `options` gives them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from batchrun import config
from batchrun.config import without_user
from batchrun.endpoint.credentials import refuse_plain_http
from batchrun.errors import InputError, UsageError
from batchrun.files.exactjson import dump
from batchrun.files.paths import behind_links, look_at
from batchrun.prompts.shard import Shard
from batchrun.prompts.sweep import ENDPOINT, Sweep, refuse_wrong_parameter
from batchrun.runs.locations import results_name

_LEVELS_AROUND = 154
"""What is left to the request and the lines around a value, of the 254 levels that can be written."""


def run_options(given: dict[str, Any]) -> config.RunOptions:
    """The options of a run from those of the command line.

    Raises:
        UsageError: the options do not go together.
    """
    inputs: tuple[str, ...] = given["inputs"]
    request, sweep = request_options(given)
    endpoint = _endpoint(given["endpoint"], sweep)
    is_local = endpoint == config.LOCAL_ENDPOINT
    shard = None if given["shard"] is None else Shard.parse(given["shard"])
    output, is_folder = _output(given["output"], inputs, shard)
    limits = config.Limits(
        run=_limit(given["run_limit"], config.Limits().run, unlimited=is_local),
        status=_limit(given["status_limit"], config.Limits().status, unlimited=is_local),
    )
    base_url = config.checked_url("--base-url", given["base_url"], example=config.DEFAULT_BASE_URL, is_prefix=True)
    if "@" in urlsplit(base_url).netloc:
        raise UsageError("--base-url holds a user or a password", "the API key goes into RUNPOD_API_KEY")
    if ".api.runpod.ai" in base_url:
        raise UsageError(
            f"--base-url {base_url} is that of a load-balancing endpoint, which has no queue",
            "use a queue endpoint: its jobs go to https://api.runpod.ai/v2/ID/run",
        )
    if not is_local:
        refuse_plain_http(given["base_url"], insecure_http=given["insecure_http"])
    state = _state(given["state"], output, is_folder=is_folder)
    if not state.is_file():  # what a run was begun with is asked for again, whatever became known since
        refuse_wrong_parameters(given)
    return config.RunOptions(
        inputs=inputs,
        endpoint=endpoint,
        base_url=base_url.rstrip("/"),
        output=output,
        output_is_folder=is_folder,
        state=state,
        request=request,
        sweep=sweep,
        policy=config.JobPolicy(given["execution_timeout"], given["ttl"], given["low_priority"]),
        scheduler=config.SchedulerOptions(
            concurrency=given["concurrency"],
            connections=given["connections"],
            limits=limits,
            max_retries=given["max_retries"],
            unconfirmed=given["unconfirmed"],
        ),
        guards=guards(given, config.GuardOptions()),
        limit=given["limit"],
        shard=None if shard is None else str(shard),
        strict=given["strict"],
        skip_invalid=given["skip_invalid"],
        dedupe=given["dedupe"],
        format=given["format"],
        ordered=given["ordered"],
        inspect_output=given["inspect_output"],
        timeout_s=given["request_timeout"],
        memory_bytes=given["memory"],
    )


def request_options(given: dict[str, Any]) -> tuple[config.RequestOptions, config.SweepOptions]:
    """How a line becomes its requests.

    Raises:
        UsageError: the options do not go together, or cannot be sent.
    """
    for option, value in (("--set", given["override"]), ("--default", given["default"]), ("--sweep", given["sweep"])):
        _refuse_unsendable(option, value)
    sweep = _sweep_options(given)
    own = {}
    for name in ("override", "default"):
        own[name] = {key.removeprefix(_UNCHECKED): value for key, value in given[name].items()}
        if own[name].get("stream"):
            option = "--set" if name == "override" else "--default"
            raise UsageError(f"{option} stream: it is of no use in a batch", "take it out")
    if not (given["system"] or "").isascii() and any("\ud800" <= char <= "\udfff" for char in given["system"]):
        raise UsageError("--system is no valid UTF-8", "check the terminal's encoding")
    return config.RequestOptions(own["override"], own["default"], given["chat"], given["system"]), sweep


_UNCHECKED = "sampling_params."
"""In front of a parameter that is sent although vLLM, as it is known here, has none of that name."""


def refuse_wrong_parameters(given: dict[str, Any]) -> None:
    """Refuse parameters for every line that vLLM would ignore or refuse.

    Raises:
        UsageError: there is none of that name, or its value is of another type.
    """
    for option, name in (("--set", "override"), ("--default", "default")):
        for key, value in given[name].items():
            if not key.startswith(_UNCHECKED) and key != "stream":
                refuse_wrong_parameter(option, key, value)
    for key, values in given["sweep"]:
        for value in values if "." not in key and key != ENDPOINT else ():
            refuse_wrong_parameter("--sweep", key, value)


def _endpoint(given: str | None, sweep: config.SweepOptions) -> str:
    """The run's endpoint; the first of those that are compared, where a sweep names them.

    Raises:
        UsageError: none is named, or not clearly, or it is no endpoint ID.
    """
    swept = sweep.endpoints
    if swept:
        context = click.get_current_context(silent=True)
        source = click.core.ParameterSource.COMMANDLINE if context is None else context.get_parameter_source("endpoint")
        if given is not None and source is not click.core.ParameterSource.ENVIRONMENT:
            raise UsageError("the endpoints stand in --sweep endpoint=...", "take --endpoint out")
        if config.LOCAL_ENDPOINT in swept:
            raise UsageError(
                "--sweep endpoint: the built-in endpoint cannot be compared with others in one run",
                "start it with `batchrun serve` and point --base-url there: it answers to any endpoint ID",
            )
        return str(swept[0])
    if given is None:
        raise UsageError(
            "which endpoint? There is no --endpoint", "give -e ID, or set RUNPOD_ENDPOINT_ID; -e local rehearses"
        )
    if given != config.LOCAL_ENDPOINT and not given.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"--endpoint {given!r} is no endpoint ID", "it is the word in the endpoint's URL")
    return given


def _refuse_unsendable(option: str, value: Any) -> None:
    """Refuse what cannot be written as JSON within a request: it is nested too deeply, or holds broken text.

    Raises:
        UsageError: it is.
    """
    for _ in range(_LEVELS_AROUND):
        value = [value]
    try:
        dump(value)
    except TypeError as error:
        raise UsageError(f"{option} cannot be sent as JSON: {error}", "at most 100 levels, in valid UTF-8") from error


def _sweep_options(given: dict[str, Any]) -> config.SweepOptions:
    """The sweep, looked at before anything is opened.

    Raises:
        UsageError: a key is unknown, set twice, has no values, or a value does not fit it.
    """
    options = config.SweepOptions(given["sweep"], given["repeat"])
    for key, _ in options.keys:
        if key in given["override"]:
            raise UsageError(f"--set {key} would win over --sweep {key}", "take one of the two out")
    Sweep(options)
    return options


def refuse_local_options(given: dict[str, Any], options: config.RunOptions) -> None:
    """Refuse to send prompts elsewhere than the options seem to say.

    Raises:
        UsageError: a worker was chosen for an endpoint that is not the local one.
    """
    for option, chosen in (
        ("--worker", given["worker"] != "auto"),
        ("--model-file", given["model_file"] is not None),
        ("--upstream", given["upstream"] is not None),
    ):
        if chosen and not options.is_local:
            raise UsageError(f"{option} is for --endpoint local", f"take it out, or run on -e {config.LOCAL_ENDPOINT}")


def confirms_base_url(given: dict[str, Any], options: config.RunOptions) -> bool:
    """Whether the command, or the environment, names the base URL of a run that is known from its state file.

    Raises:
        UsageError: the command names another.
    """
    url = given["base_url"]
    if url is None:
        return False
    if url.rstrip("/") != options.base_url:
        context = click.get_current_context()
        if context.get_parameter_source("base_url") is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"--base-url {without_user(url)}: the run is at {without_user(options.base_url)}",
                "give that one, or start a new run with another --output",
            )
        return False
    return given["insecure_http"] or not config.is_plain_http(url)


def guards(given: dict[str, Any], known: config.GuardOptions) -> config.GuardOptions:
    """The guards of a session: what is given, else what is known.

    Raises:
        UsageError: a budget without a price.
    """
    names = {
        "on_interrupt": "on_interrupt",
        "halt": "halt",
        "canary": "canary",
        "canary_allow": "canary_allow",
        "price_per_hour": "price_per_hour",
        "max_cost": "max_cost",
        "deadline": "deadline_s",
        "job_timeout": "job_timeout_s",
    }
    chosen = replace(known, **{name: given[option] for option, name in names.items() if given[option] is not None})
    if chosen.max_cost is not None and chosen.price_per_hour is None:
        raise UsageError("--max-cost needs --price-per-hour", "give what one worker costs an hour, in dollars")
    return chosen


def _output(output: str | None, inputs: tuple[str, ...], shard: Shard | None) -> tuple[Path, bool]:
    if output is not None:
        if output == "-":
            raise UsageError("-o -: results go to a file", "they are synced and resumed, which a pipe cannot be")
        found = look_at(output, "--output")
        path = Path(output)
        if not path.name or path.name == "..":
            path = path.resolve()
        if not path.name:
            raise UsageError(f"-o {output}: that is the folder of all folders", "name a folder in it")
        return path, output.endswith("/") or _is_folder(found)
    if len(inputs) != 1 or inputs[0] == "-" or _is_folder(look_at(inputs[0], "INPUT", InputError)):
        raise UsageError(
            "where should the results go?", "give -o results.jsonl, or -o results/ for one file for each input"
        )
    path = Path(inputs[0])
    part = "" if shard is None else f".shard-{shard.index}-of-{shard.count}"
    return path.with_name(results_name(path.name, part)), False


def state_of(output: Path, *, is_folder: bool) -> Path:
    """The state file of results: beside a file; within a folder, unless one of an earlier version is beside it."""
    beside = output.with_name(output.name + ".state")
    within = output / config.FOLDER_STATE
    return within if is_folder and (within.exists() or not beside.is_file()) else beside


def _state(given: str | None, output: Path, *, is_folder: bool) -> Path:
    state = state_of(output, is_folder=is_folder) if given is None else Path(given)
    look_at(str(state) if given is None else given, "--state")
    return behind_links(state)


def _is_folder(found: os.stat_result | None) -> bool:
    return found is not None and stat.S_ISDIR(found.st_mode)


def _limit(given: int | None, documented: config.OperationLimit, *, unlimited: bool) -> config.OperationLimit:
    if given is None:
        return config.OperationLimit(0, 0) if unlimited else documented
    return config.OperationLimit(given, documented.concurrent if given else 0)
