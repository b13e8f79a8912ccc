"""The options of the commands, each with its help; every default is that of `config`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchrun import config

if TYPE_CHECKING:
    from collections.abc import Callable


def _key_values(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, object]:
    """KEY=VALUE options; a value is JSON where it can be read as such, else text."""
    result: dict[str, object] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, for example temperature=0.7", param=param)
        result[key.strip()] = _json_or(text)
    return result


def _json_or(text: str) -> Any:
    """Text as JSON where it can be read as such, else as it is."""
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _sweeps(
    _ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, tuple[object, ...]], ...]:
    """KEY=V1,V2,... options, or KEY=[V1, V2, ...] as JSON; each value is JSON where it can be read as such."""
    keys: dict[str, tuple[object, ...]] = {}
    for value in values:
        key, equals, text = value.partition("=")
        key = key.strip()
        if not equals or not key:
            raise click.BadParameter(f"{value!r} is not KEY=V1,V2,..., for example temperature=0,0.7", param=param)
        if key in keys:
            raise click.BadParameter(f"{key} is given twice: put all of its values into one", param=param)
        whole = _json_or(text)
        if isinstance(whole, list):
            keys[key] = tuple(whole)
        elif isinstance(whole, dict):
            keys[key] = (whole,)
        else:
            parts = [part.strip() for part in text.split(",")] if text.strip() else []
            if "" in parts:
                raise click.BadParameter(f"{value!r}: a value between the commas is empty", param=param)
            keys[key] = tuple(_json_or(part) for part in parts)
    return tuple(keys.items())


def _duration(_ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """`8h`, `90m`, `1h30m`, `45s`, `2d`. Becomes seconds, more than 0."""
    if value is None:
        return None
    if value.strip().replace(".", "", 1).isdecimal():
        raise click.BadParameter(
            f"{value!r}: hours, minutes or seconds? Say {value}h, {value}m or {value}s", param=param
        )
    match = _DURATION.fullmatch(value.strip().lower())
    numbers = match.groups() if match else ()
    seconds = sum(float(number) * unit_s for number, unit_s in zip(numbers, _UNITS_S, strict=False) if number)
    if not 0 < seconds < float("inf"):
        raise click.BadParameter(f"{value!r} is no time above 0, for example 8h, 90m, 1h30m or 45s", param=param)
    return seconds


_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(f"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")
_UNITS_S = (86400, 3600, 60, 1)


def _halt(_ctx: click.Context, param: click.Parameter, value: str | None) -> config.HaltOptions | None:
    """`50` failed rows, `10%` of the rows, or `off`."""
    if value is None:
        return None
    text = value.strip().lower()
    if text == "off":
        return config.HaltOptions(automatic=False)
    if text.isdecimal() and int(text) > 0:
        return config.HaltOptions(rows=int(text))
    match = re.fullmatch(f"{_NUMBER}\\s*%", text)
    share = float(match.group(1)) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"{value!r}: give failed rows (50), a share of them (10%), or off", param=param)
    return config.HaltOptions(share=share)


def _auto_or(most: int) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """`auto`, which becomes None, or a number of at least 1."""

    def convert(_ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        if value is None or value.strip().lower() == "auto":
            return None
        if not value.strip().isdecimal() or not 1 <= int(value) <= most:
            raise click.BadParameter(f"{value!r} is neither auto nor a number from 1 to {most:,}", param=param)
        return int(value)

    return convert


def with_options(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Give a command these options, in their order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def without(options: list[Callable[[Any], Any]], *names: str) -> list[Callable[[Any], Any]]:
    """These options but for those with the given parameter names."""

    def name(option: Callable[[Any], Any]) -> str | None:
        command: click.Command = click.command()(option(lambda: None))
        return command.params[0].name

    return [option for option in options if name(option) not in names]


_SCHEDULER = config.SchedulerOptions()

SHOW_OPTIONS = [
    click.option(
        "--progress",
        type=click.Choice(["auto", "bar", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="A bar on a terminal, a line every 30 s elsewhere, one JSON object a line, or nothing; on stderr.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Log what is done, and why, on stderr."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no summary: only errors."),
    click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), help="Append the log to this file."),
]
"""What is shown and logged."""

LOCAL_OPTIONS = [
    click.option(
        "--worker",
        type=click.Choice(["auto", "smollm2", "echo"]),
        default="auto",
        show_default=True,
        help="What answers at the local endpoint: a small real model where it is installed, or an echo.",
    ),
    click.option(
        "--model-file", type=click.Path(path_type=Path), help="A GGUF file for the local model, instead of SmolLM2."
    ),
    click.option(
        "--upstream", metavar="URL", help="An OpenAI-compatible server (vLLM, llama.cpp, Ollama) as the local worker."
    ),
]
"""What answers at the local endpoint."""

GUARD_OPTIONS = [
    click.option(
        "--on-interrupt",
        type=click.Choice(["drain", "detach", "cancel"]),
        help="What the first Ctrl-C or SIGTERM does with the jobs in flight: collect them, leave them at work, or"
        " cancel them; the second always leaves at once. [default: drain]",
    ),
    click.option(
        "--halt",
        callback=_halt,
        metavar="N|N%|off",
        help="Stop after so many failed rows, or at this share of them (from the 50th finished row on). Without it, and"
        " beside it, a run stops when its first 20 finished rows all failed, or its last 200; off: never.",
    ),
    click.option(
        "--canary",
        type=click.IntRange(0),
        metavar="N",
        help="Run N rows first, and the others only when all of these have succeeded.",
    ),
    click.option(
        "--price-per-hour",
        type=click.FloatRange(0, min_open=True),
        metavar="$",
        help="Of one worker: shows what the run costs.",
    ),
    click.option(
        "--max-cost",
        type=click.FloatRange(0, min_open=True),
        metavar="$",
        help="Submit nothing more when what is spent and in flight reaches this; needs --price-per-hour.",
    ),
    click.option(
        "--deadline",
        callback=_duration,
        metavar="TIME",
        help="Submit nothing more when it would not be over by then, and leave then at the latest: 8h, 90m.",
    ),
    click.option(
        "--job-timeout",
        callback=_duration,
        metavar="TIME",
        help="Cancel a job that is not over so long after its submission, its time in the queue included; it counts"
        " as TIMED_OUT, and is tried again up to --max-retries times. [default: its ttl and 10 min]",
    ),
]
"""What keeps watch over a run; each may differ from one session to the next."""

NOTIFY_OPTIONS = [
    click.option(
        "--notify", metavar="URL", help="POST a JSON object with a `text` to this URL when the run ends or stops."
    ),
]
"""Who is told at the end."""

KEY_OPTIONS = [
    click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help="Read the API key from this file instead of RUNPOD_API_KEY.",
    ),
]
"""Where the key comes from."""

RETRY_OPTIONS = [
    click.option("--retry-failed", is_flag=True, help="Take up the failed rows again, with all their retries."),
    click.option(
        "--only", "kinds", multiple=True, metavar="KIND", help="With --retry-failed: only this kind; repeatable."
    ),
    click.option(
        "--repair",
        is_flag=True,
        help="Get lost or damaged results again, free where the endpoint has them; rebuild a lost state file.",
    ),
]
"""What going on with a run can ask for."""


def _config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Take the options of a file as the defaults of the others."""
    if path is not None:
        from batchrun.runfile import use_run_file

        use_run_file(path, ctx)
    return path


RUN_OPTIONS = [
    click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        callback=_config,
        metavar="FILE",
        help="A TOML file in which any of these options may stand; INPUT... as `inputs`. The command line wins.",
    ),
    click.option(
        "-e",
        "--endpoint",
        envvar=["BATCHRUN_ENDPOINT", "RUNPOD_ENDPOINT_ID"],
        metavar="ID",
        help="The endpoint's ID; `local` starts the built-in one in this process. A --sweep over endpoint names"
        " several instead. [env: RUNPOD_ENDPOINT_ID]",
    ),
    click.option(
        "--base-url",
        envvar=["BATCHRUN_BASE_URL", "RUNPOD_ENDPOINT_BASE_URL"],
        default=config.DEFAULT_BASE_URL,
        show_default=True,
        metavar="URL",
        help="Jobs go to URL/ID/run. [env: RUNPOD_ENDPOINT_BASE_URL]",
    ),
    click.option(
        "-o",
        "--output",
        metavar="PATH",
        help="A file for all results, or a folder (existing, or ending in /): one file for each input."
        " [default: <input>.results.jsonl]",
    ),
    click.option("--state", metavar="PATH", help="The state file. [default: <output>.state]"),
    click.option(
        "-j",
        "--concurrency",
        callback=_auto_or(1_000_000),
        metavar="N|auto",
        default="auto",
        show_default=True,
        help="Jobs in flight at once: submitted and not final. auto: as many as keep every worker busy, and no more.",
    ),
    click.option(
        "--connections",
        callback=_auto_or(10_000),
        metavar="N|auto",
        default="auto",
        show_default=True,
        help="HTTP connections at once, however many jobs are in flight. auto: 64 to 256, by the distance.",
    ),
    click.option(
        "--max-retries",
        type=click.IntRange(0, 1000),
        metavar="N",
        default=_SCHEDULER.max_retries,
        show_default=True,
        help="Further submissions of a row after a failure that another try may mend; 0: none.",
    ),
    click.option(
        "--unconfirmed",
        type=click.Choice(["resubmit", "hold"]),
        default=_SCHEDULER.unconfirmed,
        show_default=True,
        help="A submission whose answer never arrived may be a paid job: submit it again, or keep it aside.",
    ),
    click.option(
        "--execution-timeout",
        type=click.FloatRange(5, 604_800),
        metavar="S",
        help="Seconds that a job may run. [default: Runpod's, 600]",
    ),
    click.option(
        "--ttl",
        type=click.FloatRange(10, 604_800),
        metavar="S",
        help="Seconds that a job may live, queue included. [default: Runpod's, 86400]",
    ),
    click.option("--low-priority", is_flag=True, help="The jobs do not make the endpoint scale up."),
    click.option(
        "--set",
        "override",
        multiple=True,
        callback=_key_values,
        metavar="KEY=VALUE",
        help="A sampling parameter for every line, winning over the line's own; repeatable.",
    ),
    click.option(
        "--default",
        "default",
        multiple=True,
        callback=_key_values,
        metavar="KEY=VALUE",
        help="A sampling parameter for lines that have none of that name; repeatable.",
    ),
    click.option(
        "--sweep",
        multiple=True,
        callback=_sweeps,
        metavar="KEY=V1,V2,...",
        help="Run every line with each of these values; several: with all of their combinations. KEY is a sampling"
        " parameter, endpoint, body.FIELD of an OpenAI line, or input.FIELD of an `input` object.",
    ),
    click.option(
        "--repeat",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Samples of every line, or of each combination of a sweep; each with a seed of its own.",
    ),
    click.option(
        "--dedupe",
        is_flag=True,
        help="Pay equal requests once: the answer is written for each of their rows. Samples of --repeat stay apart.",
    ),
    click.option("--chat", is_flag=True, help="Send `prompt` lines as chat messages."),
    click.option("--system", metavar="TEXT", help="A system message for lines that have none; implies --chat."),
    click.option(
        "--run-limit",
        type=click.IntRange(0),
        metavar="N",
        help="Submissions in any 10 s; 0: unlimited. [default: 1000; 0 for the local endpoint]",
    ),
    click.option(
        "--status-limit",
        type=click.IntRange(0),
        metavar="N",
        help="Status requests in any 10 s; 0: unlimited. [default: 2000; 0 for the local endpoint]",
    ),
    click.option(
        "--inspect-output/--no-inspect-output",
        default=True,
        show_default=True,
        help="Look for errors inside the output of completed jobs.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Only the lines that fall to part I of N, by their ids: one of N machines, counted from 1."
        " `merge` puts the parts together.",
    ),
    click.option(
        "--format",
        type=click.Choice(["auto", "openai", "batchrun"]),
        default="auto",
        show_default=True,
        help="Of the results: as the OpenAI batch API writes them, or batchrun's own. auto: openai when all lines are"
        " OpenAI batch lines.",
    ),
    click.option("--ordered", is_flag=True, help="Leave the results of a finished run in input order."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows."),
    click.option("--dry-run", is_flag=True, help="Print the request bodies that would be sent, and send nothing."),
]
"""What a run is and asks for."""

WATCH_OPTIONS = [
    click.argument("folder", type=click.Path(path_type=Path)),
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        required=True,
        help="Where results, state files and records go; made when it is missing, and never the watched folder.",
    ),
    click.option(
        "--settle",
        callback=_duration,
        default="2s",
        show_default=True,
        metavar="TIME",
        help="A file is whole when its size and time have not changed for so long.",
    ),
    click.option("--until-empty", is_flag=True, help="End when no file is left that has no record."),
    *without(RUN_OPTIONS, "inputs", "output", "state", "shard", "dry_run"),
]
"""What a watch is and asks for: the options of a run, for each of its files."""

SERVE_OPTIONS = [
    click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free one."),
    click.option(
        "--workers", type=click.IntRange(0, 100_000), default=2, show_default=True, help="Workers to emulate."
    ),
    click.option(
        "--jobs-per-worker",
        type=click.IntRange(1, 10_000),
        default=1,
        show_default=True,
        help="Jobs a worker runs at once.",
    ),
    click.option(
        "--latency", type=click.FloatRange(0), default=0.0, show_default=True, help="Seconds added to each job."
    ),
    click.option(
        "--fail-rate", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of the jobs that fail."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn by chance."),
    click.option(
        "--cold-start", type=click.FloatRange(0), default=0.0, show_default=True, help="Seconds without workers."
    ),
    click.option(
        "--limits/--no-limits", default=False, show_default=True, help="Enforce Runpod's documented rate limits."
    ),
]
"""What a served endpoint is like."""
