"""What a user may say: each option once.

The command line, a TOML file, the environment and the Python API all make these dataclasses: `batchrun.cli` makes its
options from the fields, and `batchrun.api` passes its keywords as they are. A new option is a field here, and its use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchrun.commands.definitions import (
    ASKED,
    AT_ONCE,
    DISPLAY,
    FAILURES,
    GUARDS,
    LOCAL,
    MONEY,
    WHERE,
    Arguments,
    Values,
    numbers,
    option,
    said,
    words,
)
from batchrun.config import (
    DEFAULT_BASE_URL,
    DEFAULT_MEMORY_BYTES,
    DEFAULT_SILENCE_S,
    MOST_ROWS,
    Bounds,
    CanaryAllows,
    FormatChoice,
    HaltOptions,
    InterruptPolicy,
    ProgressMode,
    SchedulerOptions,
    UnconfirmedPolicy,
    WorkerChoice,
)

_WEEK_S = 604_800
"""The longest time that Runpod takes."""
_TIME = Values("time", "TIME", Bounds(0, 10 * 365 * 86400.0, above=True))
"""Longer than 10 years is a slip; and it is still far from what a clock can add up."""
_SIZE = Values("size", "SIZE", Bounds(1_000_000, 1_000_000_000_000, whole=True))
_HALT = Values("halt", "N|N%|off", Bounds(1, MOST_ROWS, whole=True))
_PAIRS = Values("pairs", "KEY=VALUE")
_SWEEP = Values("sweep", "KEY=V1,V2,...")
_ROWS = numbers(0, MOST_ROWS, whole=True)
_RATE = numbers(0, 1_000_000, whole=True)
_BASE_URL_VARIABLES = ("BATCHRUN_BASE_URL", "RUNPOD_ENDPOINT_BASE_URL")
_DEFAULTS = SchedulerOptions()


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RequestArguments(Arguments):
    """How a line becomes its requests."""

    set: Mapping[str, Any] | None = option(
        None,
        (ASKED, 1),
        "A sampling parameter for every line, winning over the line's own; repeatable.",
        _PAIRS,
        variables=("BATCHRUN_OVERRIDE",),
    )
    default: Mapping[str, Any] | None = option(
        None, (ASKED, 1), "A sampling parameter for lines that do not have it; repeatable.", _PAIRS
    )
    system: str | None = option(
        None, (ASKED, 2), "A system message for lines that have none; implies --chat.", words("TEXT")
    )
    chat: bool = option(False, (ASKED, 2), "Send `prompt` lines as chat messages.")
    sweep: Mapping[str, Sequence[Any]] | None = option(
        None,
        (ASKED, 3),
        "Run every line with each of these values; several sweeps: with all combinations. KEY is a sampling"
        " parameter, endpoint, body.FIELD of an OpenAI line, or input.FIELD of an `input` object.",
        _SWEEP,
    )
    repeat: int = option(
        1,
        (ASKED, 3),
        "Samples of every line, or of each combination of a sweep; each with a seed of its own.",
        numbers(1, 10_000_000, whole=True),
    )
    strict: bool = option(False, (ASKED, 4), "Treat warnings about the fields of a line as errors: send nothing.")


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class GuardArguments(Arguments):
    """What keeps watch over a run; each may differ from one session to the next. None: as before, or the default."""

    on_interrupt: InterruptPolicy | None = option(
        None,
        (GUARDS, 2),
        "What the first Ctrl-C or SIGTERM does with the jobs in flight: collect them, leave them running, or cancel"
        " them. The second always exits at once. [default: drain]",
    )
    halt: HaltOptions | None = option(
        None,
        (GUARDS, 2),
        "Stop after N failed rows, or once N% of the finished rows have failed (from the 50th on). A run also stops"
        " when its first 20 finished rows, or its last 200, all failed; `off` disables both.",
        _HALT,
    )
    canary: int | None = option(
        None,
        (GUARDS, 3),
        "Run N rows first, and the others only if all of these succeed, and not all of them with answers that are"
        " empty or cut off.",
        _ROWS,
    )
    canary_allow: CanaryAllows | None = option(
        None, (GUARDS, 4), "Accept answers that max_tokens has cut off as good for --canary."
    )
    price_per_hour: float | None = option(
        None,
        (MONEY, 1),
        "Hourly price of one worker: shows what the run costs.",
        numbers(0, 1_000_000, above=True, metavar="$"),
    )
    max_cost: float | None = option(
        None,
        (MONEY, 2),
        "Stop submitting when the cost so far plus the jobs in flight reaches this; needs --price-per-hour.",
        numbers(0, 1_000_000_000, above=True, metavar="$"),
    )
    deadline: float | None = option(
        None,
        (GUARDS, 1),
        "Stop submitting in time for running jobs to finish by then, and exit at the deadline in any case: 8h, 90m.",
        _TIME,
    )
    job_timeout: float | None = option(
        None,
        (GUARDS, 1),
        "Cancel a job that has not finished this long after its submission, queue time included. It counts as"
        " TIMED_OUT, and is tried again up to --max-retries times. [default: its ttl and 10 min]",
        _TIME,
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class RetryArguments(Arguments):
    """What resuming a run can ask for."""

    retry_failed: bool = option(False, (FAILURES, 2), "Run the failed rows again, with all their retries.")
    only: tuple[str, ...] = option(
        (),
        (FAILURES, 2),
        "With --retry-failed: only this kind of failure; repeatable.",
        words("KIND"),
        variables=("BATCHRUN_KINDS",),
    )
    repair: bool = option(
        False,
        (FAILURES, 3),
        "Get lost or damaged results again, free where the endpoint still has them; rebuild a lost state file.",
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class KeyArguments(Arguments):
    """Where the key comes from, and how it may travel."""

    api_key_file: Path | None = option(None, (WHERE, 8), "Read the API key from this file instead of RUNPOD_API_KEY.")
    insecure_http: bool = option(
        False,
        (WHERE, 9),
        "Send the API key and the prompts to an http URL of another machine, readable by everyone on the way.",
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ConfirmArguments(KeyArguments):
    """The same for a run that is known from its state file, which is not trusted with where the key goes."""

    base_url: str | None = option(
        None,
        (WHERE, 7),
        "Confirm that the run's jobs go to this URL, where the state file does not prove that you chose it.",
        words("URL"),
        variables=_BASE_URL_VARIABLES,
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class LocalArguments(Arguments):
    """What answers at the local endpoint."""

    worker: WorkerChoice = option(
        "auto", (LOCAL, 5), "What answers: a small real model where it is installed, or an echo."
    )
    model_file: Path | None = option(None, (LOCAL, 5), "A GGUF file for the local model, instead of SmolLM2.")
    upstream: str | None = option(
        None, (LOCAL, 5), "An OpenAI-compatible server (vLLM, llama.cpp, Ollama) as the local worker.", words("URL")
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ShowArguments(Arguments):
    """What is shown, logged, and told at the end."""

    progress: ProgressMode = option(
        "auto",
        (DISPLAY, 5),
        "A bar on a terminal and a line every 30 s elsewhere (auto), either of these, one JSON object a line, or"
        " nothing; on stderr.",
    )
    verbose: bool = option(False, (DISPLAY, 5), "Log what is done, and why, on stderr.", flags="-v --verbose")
    quiet: bool = option(False, (DISPLAY, 5), "Show only errors: no progress, no summary.", flags="-q --quiet")
    log_file: Path | None = option(None, (DISPLAY, 5), "Append the log to this file.")
    notify: str | None = option(
        None, (DISPLAY, 5), "POST a JSON object with a `text` to this URL when the run ends or stops.", words("URL")
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SessionArguments(RetryArguments, LocalArguments, ShowArguments):
    """What is asked of one session of a run; the state file does not keep it."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResumeArguments(GuardArguments, SessionArguments, ConfirmArguments):
    """`batchrun resume`, for the run of a state file."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CancelArguments(ShowArguments, ConfirmArguments):
    """`batchrun cancel`, for the run of a state file."""


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class JobArguments(RequestArguments, GuardArguments, KeyArguments, LocalArguments, ShowArguments):
    """What a run is asked for, wherever its inputs are and its results go."""

    config: Path | None = option(
        None,
        (WHERE, 3),
        "A TOML file that may hold any of these options; INPUT... as `inputs`. The command line wins.",
        Values("run file", "FILE"),
    )
    endpoint: str | None = option(
        None,
        (WHERE, 1),
        "The endpoint's ID; `local` starts the built-in one in this process. A --sweep over endpoint names several"
        " instead. [env: RUNPOD_ENDPOINT_ID]",
        words("ID"),
        flags="-e --endpoint",
        variables=("BATCHRUN_ENDPOINT", "RUNPOD_ENDPOINT_ID"),
    )
    base_url: str = option(
        DEFAULT_BASE_URL,
        (WHERE, 7),
        "Jobs go to URL/ID/run. [env: RUNPOD_ENDPOINT_BASE_URL]",
        words("URL"),
        variables=_BASE_URL_VARIABLES,
    )
    limit: int | None = option(None, (WHERE, 2), "Only the first N rows.", numbers(1, MOST_ROWS, whole=True))
    format: FormatChoice = option(
        "auto",
        (WHERE, 5),
        "Of the results: as the OpenAI batch API writes them, or batchrun's own. auto: openai if all lines are"
        " OpenAI batch lines.",
    )
    ordered: bool = option(False, (WHERE, 5), "Put the results of a finished run into input order.")
    concurrency: int | None = option(
        None,
        (AT_ONCE, 1),
        "Jobs in flight at once: submitted and not finished. auto: as many as keep every worker busy, and no more.",
        numbers(1, 1_000_000, whole=True, or_auto=True),
        flags="-j --concurrency",
    )
    connections: int | None = option(
        None,
        (AT_ONCE, 5),
        "HTTP connections at once, however many jobs are in flight. auto: 64 to 256, by the distance.",
        numbers(1, 10_000, whole=True, or_auto=True),
    )
    low_priority: bool = option(False, (AT_ONCE, 2), "Submit jobs that do not make the endpoint scale up.")
    run_limit: int | None = option(
        None, (AT_ONCE, 3), "Submissions in any 10 s; 0: unlimited. [default: 1000; 0 for the local endpoint]", _RATE
    )
    status_limit: int | None = option(
        None,
        (AT_ONCE, 3),
        "Status requests in any 10 s; 0: unlimited. [default: 2000; 0 for the local endpoint]",
        _RATE,
    )
    memory: int = option(
        DEFAULT_MEMORY_BYTES,
        (AT_ONCE, 5),
        "Memory for the answers that are held at once. Larger answers are read one at a time.",
        _SIZE,
    )
    max_retries: int = option(
        _DEFAULTS.max_retries,
        (FAILURES, 1),
        "Further submissions of a row after a failure that another try may fix; 0: none.",
        numbers(0, 1000, whole=True),
    )
    skip_invalid: bool = option(
        False,
        (FAILURES, 1),
        "Run the valid lines although others are not: those go to the error file as INVALID (exit code 3).",
    )
    unconfirmed: UnconfirmedPolicy = option(
        _DEFAULTS.unconfirmed,
        (FAILURES, 4),
        "A submission whose answer never arrived may be a paid job: submit it again, or hold the row.",
    )
    inspect_output: bool = option(
        True,
        (FAILURES, 5),
        "Look for errors inside the output of completed jobs.",
        flags="--inspect-output/--no-inspect-output",
    )
    request_timeout: float = option(
        DEFAULT_SILENCE_S,
        (FAILURES, 5),
        "Seconds that the server may send nothing, before its answer and within it.",
        numbers(1, 3600, metavar="S"),
    )
    execution_timeout: float | None = option(
        None, (GUARDS, 5), "Seconds that a job may run. [default: Runpod's, 600]", numbers(5, _WEEK_S, metavar="S")
    )
    ttl: float | None = option(
        None,
        (GUARDS, 5),
        "Seconds that a job may live, queue included. [default: Runpod's, 86400]",
        numbers(10, _WEEK_S, metavar="S"),
    )
    dedupe: bool = option(
        False,
        (MONEY, 3),
        "Pay for equal requests once: each of their rows gets the answer. Samples of --repeat stay apart.",
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RunArguments(JobArguments, SessionArguments):
    """`batchrun run`, and `batchrun.run` in Python."""

    inputs: tuple[str, ...] = field(metadata=said((WHERE, 1), "", Values("name", "INPUT..."), flags=""))
    output: str | None = option(
        None,
        (WHERE, 1),
        "A file for all results, or a folder (existing, or ending in /): one file for each input."
        " [default: <input>.results.jsonl]",
        Values("name", "PATH"),
        flags="-o --output",
    )
    state: str | None = option(
        None,
        (WHERE, 4),
        "The state file. [default: <output>.state; in a folder: batchrun.state]",
        Values("name", "PATH"),
    )
    shard: str | None = option(
        None,
        (WHERE, 4),
        "Only the lines of part I of N, by their ids: for one of N machines, counted from 1. `merge` puts the"
        " parts together.",
        words("I/N"),
    )
    dry_run: bool = option(False, (WHERE, 2), "Print the request bodies that would be sent, and send nothing.")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WatchArguments(JobArguments):
    """`batchrun watch`: the options of a run, for each of its files."""

    folder: Path = field(metadata=said((WHERE, 1), "", flags=""))
    output: Path = field(
        metadata=said(
            (WHERE, 1),
            "Where results, state files and records go; made if it is missing, and never the watched folder.",
            words("FOLDER"),
            flags="-o --output",
        )
    )
    until_empty: bool = option(False, (WHERE, 2), "End when every file in the folder has a record.")
    settle: float = option(
        2.0, (WHERE, 2), "A file is whole when its size and time have not changed for this long.", _TIME
    )
