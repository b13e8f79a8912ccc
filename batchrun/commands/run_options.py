"""Makes the options of a run from the arguments of a command: checks how they combine, and fills in defaults."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from batchrun import config
from batchrun.commands.answer_options import answers, reasks, schema_option
from batchrun.commands.arguments import JobArguments, RunArguments
from batchrun.commands.request_arguments import RequestArguments
from batchrun.commands.session_options import guards, job_policy, refuse_wrong_prices
from batchrun.commands.templates import template_options
from batchrun.endpoint.credentials import refuse_plain_http
from batchrun.errors import InputError, UsageError, shown
from batchrun.files.exactjson import dump
from batchrun.files.paths import behind_links, look_at
from batchrun.files.server_urls import checked_url
from batchrun.files.urls import file_name, is_pattern, is_url, public_name
from batchrun.prompts.forms import stem_of
from batchrun.prompts.shard import Shard
from batchrun.prompts.sweep import ENDPOINT, Sweep, refuse_wrong_parameter
from batchrun.runs.locations import refuse_other_forms, results_path

_LEVELS_AROUND = 154
"""Levels of JSON nesting that are reserved for what is around a value, of the 254 that can be written."""


class Place(NamedTuple):
    """The inputs of a run, and where its files go."""

    inputs: tuple[str, ...]
    output: Path
    output_is_folder: bool
    state: Path
    shard: Shard | None = None


def run_options(given: RunArguments) -> config.RunOptions:
    """The options of a run.

    Raises:
        UsageError: the options contradict each other, or one is missing.
    """
    shard = None if given.shard is None else Shard.parse(given.shard)
    output, is_folder = _output(given.output, given.inputs, shard)
    state = _state(given.state, output, is_folder=is_folder)
    if not (is_folder or state.exists() or output.exists()):
        lines = output.with_name(f"{stem_of(output.name)}.jsonl")
        refuse_other_forms(output, f"give -o {lines}; `batchrun export {lines}.state -o FILE` makes a table of them")
    place = Place(given.inputs, output, is_folder, state, shard)
    # A run that has been started is resumed with its parameters, whatever is known of them since.
    return _job_options(given, place, is_begun=state.is_file())


def watch_options(given: JobArguments, folder: Path, output: Path) -> config.RunOptions:
    """The options of a watch, as for a run of the whole folder; each file then gets its own input, output and state.

    Raises:
        UsageError: the options contradict each other, or one is missing.
    """
    path, is_folder = _output(f"{output}/", (str(folder),), None)
    place = Place((str(folder),), path, is_folder, state_of(path, is_folder=is_folder))
    options = _job_options(given, place, is_begun=False)
    if options.request.inline_files is None:
        return options
    # Those who may put files into the folder need not be those who may read this machine's.
    return replace(options, request=replace(options.request, inline_files="in_folder"))


def _job_options(given: JobArguments, place: Place, *, is_begun: bool) -> config.RunOptions:
    request, sweep = request_options(given)
    endpoint, pool = _endpoints(given, sweep)
    is_local = endpoint == config.LOCAL_ENDPOINT
    limits = config.Limits(
        run=_limit(given.run_limit, config.Limits().run, unlimited=is_local),
        status=_limit(given.status_limit, config.Limits().status, unlimited=is_local),
    )
    base_url = _base_url(given, is_local=is_local)
    if not is_begun:
        refuse_wrong_parameters(given)
    chosen = guards(given, config.GuardOptions())
    refuse_wrong_prices(chosen, sweep.endpoints or pool or (endpoint,))
    return config.RunOptions(
        inputs=place.inputs,
        endpoint=endpoint,
        pool=pool,
        mixed=given.mixed,
        base_url=base_url,
        output=place.output,
        output_is_folder=place.output_is_folder,
        state=place.state,
        request=request,
        sweep=sweep,
        policy=job_policy(given, config.JobPolicy(low_priority=given.low_priority)),
        scheduler=config.SchedulerOptions(
            concurrency=given.concurrency,
            connections=given.connections,
            limits=limits,
            max_retries=given.max_retries,
            unconfirmed=given.unconfirmed,
            reask=reasks(given),
            pack=given.pack,
            pack_check=given.pack_check,
        ),
        guards=chosen,
        answers=answers(given, config.AnswerOptions(require_text=given.require_text)),
        limit=given.limit,
        shard=None if place.shard is None else str(place.shard),
        strict=given.strict,
        skip_invalid=given.skip_invalid,
        dedupe=given.dedupe,
        format=given.format,
        ordered=given.ordered,
        with_request=given.with_request,
        split_think=given.split_think,
        inspect_output=given.inspect_output,
        timeout_s=given.request_timeout,
        memory_bytes=given.memory,
    )


def _base_url(given: JobArguments, *, is_local: bool) -> str:
    url = checked_url("--base-url", given.base_url, example=config.DEFAULT_BASE_URL, is_prefix=True)
    if "@" in urlsplit(url).netloc:
        raise UsageError("--base-url contains a user or a password", "put the API key into RUNPOD_API_KEY")
    if ".api.runpod.ai" in url:
        raise UsageError(
            f"--base-url {url} belongs to a load-balancing endpoint, which has no queue",
            "use a queue endpoint, whose jobs go to https://api.runpod.ai/v2/ID/run",
        )
    if not is_local:
        refuse_plain_http(url, insecure_http=given.insecure_http)
    return url.rstrip("/")


def request_options(given: RequestArguments) -> tuple[config.RequestOptions, config.SweepOptions]:
    """How a line becomes its requests.

    Raises:
        UsageError: the options contradict each other, or a value cannot be sent.
    """
    for option, value in (("--set", given.set), ("--default", given.default), ("--sweep", given.sweep)):
        _refuse_unsendable(option, value)
    sweep = _sweep_options(given)
    override, default = _own_names("--set", given.set), _own_names("--default", given.default)
    for name, text in (("--system", given.system), ("--prompt", given.prompt)):
        if text is not None and any("\ud800" <= char <= "\udfff" for char in text):
            raise UsageError(f"{name} is not valid UTF-8", "check the terminal's encoding")
    template, system = template_options(given)
    files: config.InlineFiles | None = "anywhere" if given.inline_files or given.image_column is not None else None
    schema = schema_option(given)
    _refuse_unsendable("--schema", schema)
    return config.RequestOptions(override, default, given.chat, system, template, given.id_column, files, schema), sweep


_UNCHECKED = "sampling_params."
"""Prefix of a parameter that is sent unchecked: batchrun does not know a vLLM parameter of this name."""


def _own_names(option: str, parameters: Mapping[str, Any] | None) -> dict[str, object]:
    found = {key.removeprefix(_UNCHECKED): value for key, value in (parameters or {}).items()}
    if found.get("stream"):
        raise UsageError(f"{option} stream: streaming is not supported in batch runs", "remove it")
    return found


def row_override(parameters: Mapping[str, Any] | None, sweep: config.SweepOptions) -> dict[str, object]:
    """The parameters that are set for some rows of a run.

    Args:
        parameters: As given with --set; None: none.
        sweep: The run's sweep.

    Raises:
        UsageError: a value cannot be sent, vLLM would refuse it, or it would override a value of the sweep.
    """
    _refuse_unsendable("--set", parameters)
    _refuse_wrong("--set", parameters)
    for key, _ in sweep.keys:
        if key in (parameters or {}):
            raise UsageError(f"--set {key} would override --sweep {key} of the run", "remove it")
    return _own_names("--set", parameters)


def refuse_wrong_parameters(given: RequestArguments) -> None:
    """Refuse --set, --default and --sweep parameters that vLLM would ignore or refuse.

    Raises:
        UsageError: vLLM has no such parameter, or its value has the wrong type.
    """
    for option, parameters in (("--set", given.set), ("--default", given.default)):
        _refuse_wrong(option, parameters)
    for key, values in (given.sweep or {}).items():
        for value in values if "." not in key and key != ENDPOINT else ():
            refuse_wrong_parameter("--sweep", key, value)


def _refuse_wrong(option: str, parameters: Mapping[str, Any] | None) -> None:
    for key, value in (parameters or {}).items():
        if not key.startswith(_UNCHECKED) and key != "stream":
            refuse_wrong_parameter(option, key, value)


def _endpoints(given: JobArguments, sweep: config.SweepOptions) -> tuple[str, tuple[str, ...]]:
    """The run's endpoint, the first one of several; and its pool, empty if there is none.

    Raises:
        UsageError: no endpoint is given, or some in different ways, or one is not an endpoint ID.
    """
    swept, endpoints = sweep.endpoints, given.endpoint
    if swept:
        if endpoints is not None and "endpoint" not in given.from_environment:
            raise UsageError("both --endpoint and --sweep endpoint=... are given", "remove one of them")
        if config.LOCAL_ENDPOINT in swept:
            raise UsageError(_LOCAL_ALONE.format("--sweep endpoint"), _SERVE)
        return str(swept[0]), ()
    if not endpoints:
        raise UsageError(
            "no endpoint is given", "give -e ID, or set RUNPOD_ENDPOINT_ID; `-e local` rehearses without an account"
        )
    for endpoint in endpoints:
        if endpoint != config.LOCAL_ENDPOINT and not endpoint.replace("-", "").replace("_", "").isalnum():
            raise UsageError(
                f"--endpoint {endpoint!r} is not an endpoint ID",
                "the ID is the word in the endpoint's URL, like abc123xyz",
            )
    if len(endpoints) == 1:
        if given.mixed:
            raise UsageError("--mixed needs several endpoints", "give them: --endpoint ID1,ID2; or remove --mixed")
        return endpoints[0], ()
    if len(set(endpoints)) < len(endpoints):
        raise UsageError(f"--endpoint {','.join(endpoints)}: an endpoint is given twice", "give each of them once")
    if config.LOCAL_ENDPOINT in endpoints:
        raise UsageError(_LOCAL_ALONE.format("--endpoint"), _SERVE)
    return endpoints[0], tuple(endpoints)


_LOCAL_ALONE = "{}: the built-in endpoint `local` cannot be combined with others"
_SERVE = "start it with `batchrun serve`, and give its URL as --base-url: it accepts any endpoint ID"


def _refuse_unsendable(option: str, value: Any) -> None:
    """Refuse a value that cannot be written as JSON in a request.

    Raises:
        UsageError: it is nested too deeply, or contains invalid text.
    """
    for _ in range(_LEVELS_AROUND):
        value = [value]
    try:
        dump(value)
    except TypeError as error:
        raise UsageError(
            f"{option} cannot be sent as JSON: {error}", "use at most 100 levels of nesting, and valid UTF-8"
        ) from error


def _sweep_options(given: RequestArguments) -> config.SweepOptions:
    """The sweep, validated before anything is opened.

    Raises:
        UsageError: a key is unknown, set twice, has no values, or a value does not fit it.
    """
    keys = tuple((key, tuple(values)) for key, values in (given.sweep or {}).items())
    for key, _ in keys:
        if key in (given.set or {}):
            raise UsageError(f"--set {key} would override --sweep {key}", "remove one of them")
    options = config.SweepOptions(keys, given.repeat)
    Sweep(options)
    return options


def _output(output: str | None, inputs: tuple[str, ...], shard: Shard | None) -> tuple[Path, bool]:
    if output is not None:
        if output == "-":
            raise UsageError(
                "-o -: results cannot go to stdout: a run must be able to resume its results",
                "give a file, then write it to stdout with `batchrun export STATE -o -`",
            )
        found = look_at(output, "--output")
        path = Path(output)
        if is_url(output) and found is None and not state_of(path, is_folder=output.endswith("/")).is_file():
            raise UsageError(
                f"-o {shown(public_name(output))}: a run writes its results to this machine",
                "give a path here, and copy the results when the run has finished",
            )
        if not path.name or path.name == "..":
            path = path.resolve()
        if not path.name:
            raise UsageError(f"-o {output} is the root folder", "give a folder in it")
        return path, output.endswith("/") or _is_folder(found)
    (name, *others) = inputs or ("-",)
    if (
        others
        or name == "-"
        or is_pattern(name)
        or (not is_url(name) and _is_folder(look_at(name, "INPUT", InputError)))
    ):
        raise UsageError("no --output is given", "give -o results.jsonl, or -o results/ for one results file per input")
    # The results of a remote file are written into the current folder.
    path = Path(file_name(name) or "remote") if is_url(name) else Path(name)
    part = "" if shard is None else f".shard-{shard.index}-of-{shard.count}"
    return results_path(path.parent, path.name, part), False


def state_of(output: Path, *, is_folder: bool) -> Path:
    """The state file of an output: beside a file; in a folder, unless an earlier version has put one beside it."""
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
