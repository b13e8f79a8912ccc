"""The options of the commands, each with its help; every default is that of `config`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from batchrun import config
from batchrun.cli.values import PATH, Number, duration, halt, key_values, size, sweeps


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
    click.option("--log-file", type=PATH, help="Append the log to this file."),
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
    click.option("--model-file", type=PATH, help="A GGUF file for the local model, instead of SmolLM2."),
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
        callback=halt,
        metavar="N|N%|off",
        help="Stop after so many failed rows, or at this share of them (from the 50th finished row on). Without it, and"
        " beside it, a run stops when its first 20 finished rows all failed, or its last 200; off: never.",
    ),
    click.option(
        "--canary",
        type=Number("canary"),
        metavar="N",
        help="Run N rows first, and the others only when all of these have succeeded, not all of them with answers that"
        " are empty or cut off.",
    ),
    click.option(
        "--canary-allow",
        type=click.Choice(["length"]),
        help="Answers that max_tokens has cut off are good enough for --canary.",
    ),
    click.option(
        "--price-per-hour",
        type=Number("price_per_hour"),
        metavar="$",
        help="Of one worker: shows what the run costs.",
    ),
    click.option(
        "--max-cost",
        type=Number("max_cost"),
        metavar="$",
        help="Submit nothing more when what is spent and in flight reaches this; needs --price-per-hour.",
    ),
    click.option(
        "--deadline",
        callback=duration,
        metavar="TIME",
        help="Submit nothing more when it would not be over by then, and leave then at the latest: 8h, 90m.",
    ),
    click.option(
        "--job-timeout",
        callback=duration,
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
        type=PATH,
        help="Read the API key from this file instead of RUNPOD_API_KEY.",
    ),
    click.option(
        "--insecure-http",
        is_flag=True,
        help="Send the API key and the prompts to an http URL of another machine, readable by all on the way.",
    ),
]
"""Where the key comes from, and how it may travel."""

_BASE_URL_VARIABLES = ["BATCHRUN_BASE_URL", "RUNPOD_ENDPOINT_BASE_URL"]

CONFIRM_OPTIONS = [
    *KEY_OPTIONS,
    click.option(
        "--base-url",
        envvar=_BASE_URL_VARIABLES,
        metavar="URL",
        help="Confirm that the run's jobs go to this URL, where the state file does not prove that you chose it.",
    ),
]
"""The same for a run that is known from its state file, which is not believed in where the key goes."""

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
        from batchrun.cli.run_file import use_run_file

        use_run_file(path, ctx)
    return path


REQUEST_OPTIONS = [
    click.option(
        "--set",
        "override",
        multiple=True,
        callback=key_values,
        metavar="KEY=VALUE",
        help="A sampling parameter for every line, winning over the line's own; repeatable.",
    ),
    click.option(
        "--default",
        "default",
        multiple=True,
        callback=key_values,
        metavar="KEY=VALUE",
        help="A sampling parameter for lines that have none of that name; repeatable.",
    ),
    click.option(
        "--sweep",
        multiple=True,
        callback=sweeps,
        metavar="KEY=V1,V2,...",
        help="Run every line with each of these values; several: with all of their combinations. KEY is a sampling"
        " parameter, endpoint, body.FIELD of an OpenAI line, or input.FIELD of an `input` object.",
    ),
    click.option(
        "--repeat",
        type=Number("repeat"),
        default=1,
        show_default=True,
        metavar="N",
        help="Samples of every line, or of each combination of a sweep; each with a seed of its own.",
    ),
    click.option("--chat", is_flag=True, help="Send `prompt` lines as chat messages."),
    click.option("--system", metavar="TEXT", help="A system message for lines that have none; implies --chat."),
    click.option(
        "--strict",
        is_flag=True,
        help="Send nothing when a field of a line is probably a mistake: what is a warning otherwise.",
    ),
]
"""How a line becomes its requests."""

RUN_OPTIONS = [
    click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
    click.option(
        "--config",
        type=PATH,
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
        envvar=_BASE_URL_VARIABLES,
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
    click.option(
        "--state", metavar="PATH", help="The state file. [default: <output>.state; in a folder: batchrun.state]"
    ),
    click.option(
        "-j",
        "--concurrency",
        type=Number("concurrency", may_be_auto=True),
        metavar="N|auto",
        default="auto",
        show_default=True,
        help="Jobs in flight at once: submitted and not final. auto: as many as keep every worker busy, and no more.",
    ),
    click.option(
        "--connections",
        type=Number("connections", may_be_auto=True),
        metavar="N|auto",
        default="auto",
        show_default=True,
        help="HTTP connections at once, however many jobs are in flight. auto: 64 to 256, by the distance.",
    ),
    click.option(
        "--request-timeout",
        type=Number("request_timeout"),
        metavar="S",
        default=config.DEFAULT_SILENCE_S,
        show_default=True,
        help="Seconds that the server may send nothing, before its answer and within it.",
    ),
    click.option(
        "--memory",
        callback=size,
        metavar="SIZE",
        default=f"{config.DEFAULT_MEMORY_BYTES // 1_000_000}MB",
        show_default=True,
        help="Memory for the answers that are held at once. Larger answers than that are read one at a time.",
    ),
    click.option(
        "--max-retries",
        type=Number("max_retries"),
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
        type=Number("execution_timeout"),
        metavar="S",
        help="Seconds that a job may run. [default: Runpod's, 600]",
    ),
    click.option(
        "--ttl",
        type=Number("ttl"),
        metavar="S",
        help="Seconds that a job may live, queue included. [default: Runpod's, 86400]",
    ),
    click.option("--low-priority", is_flag=True, help="The jobs do not make the endpoint scale up."),
    *REQUEST_OPTIONS,
    click.option(
        "--dedupe",
        is_flag=True,
        help="Pay equal requests once: the answer is written for each of their rows. Samples of --repeat stay apart.",
    ),
    click.option(
        "--skip-invalid",
        is_flag=True,
        help="Run the good lines although others are wrong: these go to the error file as INVALID (exit code 3).",
    ),
    click.option(
        "--run-limit",
        type=Number("run_limit"),
        metavar="N",
        help="Submissions in any 10 s; 0: unlimited. [default: 1000; 0 for the local endpoint]",
    ),
    click.option(
        "--status-limit",
        type=Number("status_limit"),
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
    click.option("--limit", type=Number("limit"), metavar="N", help="Only the first N rows."),
    click.option("--dry-run", is_flag=True, help="Print the request bodies that would be sent, and send nothing."),
]
"""What a run is and asks for."""

WATCH_OPTIONS = [
    click.argument("folder", type=PATH),
    click.option(
        "-o",
        "--output",
        type=PATH,
        metavar="FOLDER",
        required=True,
        help="Where results, state files and records go; made when it is missing, and never the watched folder.",
    ),
    click.option(
        "--settle",
        callback=duration,
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
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        metavar="ADDRESS",
        help="Where to listen. What others than this machine reach needs --api-key.",
    ),
    click.option(
        "--api-key",
        metavar="KEY",
        help="Demanded of each request: the RUNPOD_API_KEY of those who ask, any word. [env: BATCHRUN_API_KEY]",
    ),
    click.option("--port", type=Number("port"), default=8000, show_default=True, help="0 picks a free one."),
    click.option("--workers", type=Number("workers"), default=2, show_default=True, help="Workers to emulate."),
    click.option(
        "--jobs-per-worker",
        type=Number("jobs_per_worker"),
        default=1,
        show_default=True,
        help="Jobs a worker runs at once.",
    ),
    click.option(
        "--latency", type=Number("latency"), default=0.0, show_default=True, help="Seconds added to each job."
    ),
    click.option(
        "--fail-rate", type=Number("fail_rate"), default=0.0, show_default=True, help="Share of the jobs that fail."
    ),
    click.option(
        "--seed", type=Number("seed"), default=0, show_default=True, help="Of everything that is drawn by chance."
    ),
    click.option(
        "--cold-start", type=Number("cold_start"), default=0.0, show_default=True, help="Seconds without workers."
    ),
    click.option(
        "--limits/--no-limits", default=False, show_default=True, help="Enforce Runpod's documented rate limits."
    ),
]
"""What a served endpoint is like."""
