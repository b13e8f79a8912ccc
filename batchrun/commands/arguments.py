"""Every option, defined once.

The command line, a TOML file, the environment and the Python API all fill in these dataclasses: `batchrun.cli` makes
click options from the fields, and `batchrun.api` passes its keyword arguments on. To add an option, add a field here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchrun.commands.definitions import (
    CONCURRENCY,
    DISPLAY,
    FAILURES,
    GUARDS,
    LOCAL,
    MONEY,
    REQUESTS,
    WHERE,
    Arguments,
    Values,
    numbers,
    option,
    option_metadata,
    text_value,
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
"""The longest time that Runpod accepts."""
_TIME = Values("time", "TIME", Bounds(0, 10 * 365 * 86400.0, above=True))
"""More than 10 years must be a typing error."""
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
        (REQUESTS, 1),
        "Set a sampling parameter for every line, overriding the line's own value; repeatable.",
        _PAIRS,
        variables=("BATCHRUN_OVERRIDE",),
    )
    default: Mapping[str, Any] | None = option(
        None, (REQUESTS, 1), "Set a sampling parameter for lines that do not have it; repeatable.", _PAIRS
    )
    system: str | None = option(
        None, (REQUESTS, 2), "Add a system message to lines that have none; implies --chat.", text_value("TEXT")
    )
    chat: bool = option(False, (REQUESTS, 2), "Send `prompt` lines as chat messages.")
    sweep: Mapping[str, Sequence[Any]] | None = option(
        None,
        (REQUESTS, 3),
        "Run every line with each of these values; with several --sweep options, with every combination. KEY is a"
        " sampling parameter, endpoint, body.FIELD of an OpenAI line, or input.FIELD of an `input` object.",
        _SWEEP,
    )
    repeat: int = option(
        1,
        (REQUESTS, 3),
        "Run every line, or every combination of a sweep, N times, each time with another seed.",
        numbers(1, 10_000_000, whole=True),
    )
    strict: bool = option(
        False, (REQUESTS, 4), "Treat warnings about the fields of a line as errors, and send nothing."
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class GuardArguments(Arguments):
    """What guards a run. Each may differ from session to session; None keeps the stored value, or else the default."""

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
        " if its first 20 finished rows, or any 200 in a row, all failed; `off` disables both.",
        _HALT,
    )
    canary: int | None = option(
        None,
        (GUARDS, 3),
        "Run N rows first, and the others only if all N succeed and not all of their answers are empty or cut off.",
        _ROWS,
    )
    canary_allow: CanaryAllows | None = option(
        None, (GUARDS, 4), "Let --canary accept answers that were cut off by max_tokens."
    )
    price_per_hour: float | None = option(
        None,
        (MONEY, 1),
        "Hourly price of one worker; enables cost estimates.",
        numbers(0, 1_000_000, above=True, metavar="$"),
    )
    max_cost: float | None = option(
        None,
        (MONEY, 2),
        "Stop submitting when the cost so far plus that of the jobs in flight reaches this; needs --price-per-hour.",
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
        " TIMED_OUT, and is retried up to --max-retries times. [default: its ttl plus 10 min]",
        _TIME,
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class RetryArguments(Arguments):
    """What to repeat or repair when a run is resumed."""

    retry_failed: bool = option(False, (FAILURES, 2), "Run the failed rows again, with a full set of retries.")
    only: tuple[str, ...] = option(
        (),
        (FAILURES, 2),
        "With --retry-failed: only rows that failed with this kind of error; repeatable.",
        text_value("KIND"),
        variables=("BATCHRUN_KINDS",),
    )
    repair: bool = option(
        False,
        (FAILURES, 3),
        "Recover lost or damaged results, free if the endpoint still has them; rebuild a lost state file.",
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class KeyArguments(Arguments):
    """Where the API key comes from, and how it may be sent."""

    api_key_file: Path | None = option(None, (WHERE, 8), "Read the API key from this file instead of RUNPOD_API_KEY.")
    insecure_http: bool = option(
        False,
        (WHERE, 9),
        "Allow plain http to another machine: everyone on the way can read the API key and the prompts.",
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ConfirmArguments(KeyArguments):
    """Confirms the base URL of a run that is known only from its state file, which may come from somebody else."""

    base_url: str | None = option(
        None,
        (WHERE, 7),
        "Confirm that the run's jobs go to this URL, if the state file does not prove that you chose it.",
        text_value("URL"),
        variables=_BASE_URL_VARIABLES,
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class LocalArguments(Arguments):
    """The worker of the local endpoint."""

    worker: WorkerChoice = option(
        "auto", (LOCAL, 5), "What answers: a small real model, or an echo. auto: the model if it is installed."
    )
    model_file: Path | None = option(None, (LOCAL, 5), "GGUF file of the local model, instead of SmolLM2.")
    upstream: str | None = option(
        None,
        (LOCAL, 5),
        "Use an OpenAI-compatible server (vLLM, llama.cpp, Ollama) as the local worker.",
        text_value("URL"),
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ShowArguments(Arguments):
    """What is shown, logged, and sent at the end."""

    progress: ProgressMode = option(
        "auto",
        (DISPLAY, 5),
        "Progress on stderr: a bar, a plain line every 30 s, JSON lines, or none. auto: a bar on a terminal, plain"
        " elsewhere.",
    )
    verbose: bool = option(False, (DISPLAY, 5), "Log each step and its reason to stderr.", flags="-v --verbose")
    quiet: bool = option(False, (DISPLAY, 5), "Show only errors: no progress, no summary.", flags="-q --quiet")
    log_file: Path | None = option(None, (DISPLAY, 5), "Append the log to this file.")
    notify: str | None = option(
        None,
        (DISPLAY, 5),
        "POST a JSON object with a `text` field to this URL when the run ends or stops.",
        text_value("URL"),
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SessionArguments(RetryArguments, LocalArguments, ShowArguments):
    """Options of one session, which the state file does not keep."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResumeArguments(GuardArguments, SessionArguments, ConfirmArguments):
    """Options of `batchrun resume`."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CancelArguments(ShowArguments, ConfirmArguments):
    """Options of `batchrun cancel`."""


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class JobArguments(RequestArguments, GuardArguments, KeyArguments, LocalArguments, ShowArguments):
    """Options of a run, whatever its inputs and outputs are."""

    config: Path | None = option(
        None,
        (WHERE, 3),
        "TOML file with any of these options, and INPUT... as `inputs`. The command line wins.",
        Values("run file", "FILE"),
    )
    endpoint: str | None = option(
        None,
        (WHERE, 1),
        "Endpoint ID; `local` starts the built-in endpoint in this process. For several endpoints use --sweep"
        " endpoint=ID1,ID2. [env: RUNPOD_ENDPOINT_ID]",
        text_value("ID"),
        flags="-e --endpoint",
        variables=("BATCHRUN_ENDPOINT", "RUNPOD_ENDPOINT_ID"),
    )
    base_url: str = option(
        DEFAULT_BASE_URL,
        (WHERE, 7),
        "Submit jobs to URL/ID/run. [env: RUNPOD_ENDPOINT_BASE_URL]",
        text_value("URL"),
        variables=_BASE_URL_VARIABLES,
    )
    limit: int | None = option(None, (WHERE, 2), "Run only the first N rows.", numbers(1, MOST_ROWS, whole=True))
    format: FormatChoice = option(
        "auto",
        (WHERE, 5),
        "Format of the results: that of the OpenAI batch API, or batchrun's own. auto: openai if all lines are OpenAI"
        " batch lines.",
    )
    ordered: bool = option(False, (WHERE, 5), "When the run has finished, put the results into input order.")
    concurrency: int | None = option(
        None,
        (CONCURRENCY, 1),
        "Jobs in flight at once (submitted and not finished). auto: just enough to keep every worker busy.",
        numbers(1, 1_000_000, whole=True, or_auto=True),
        flags="-j --concurrency",
    )
    connections: int | None = option(
        None,
        (CONCURRENCY, 5),
        "Number of HTTP connections, independent of the jobs in flight. auto: 64 to 256, by the distance.",
        numbers(1, 10_000, whole=True, or_auto=True),
    )
    low_priority: bool = option(False, (CONCURRENCY, 2), "Submit jobs that do not trigger scale-up.")
    run_limit: int | None = option(
        None,
        (CONCURRENCY, 3),
        "Submissions in any 10 s; 0: unlimited. [default: 1000; 0 for the local endpoint]",
        _RATE,
    )
    status_limit: int | None = option(
        None,
        (CONCURRENCY, 3),
        "Status requests in any 10 s; 0: unlimited. [default: 2000; 0 for the local endpoint]",
        _RATE,
    )
    memory: int = option(
        DEFAULT_MEMORY_BYTES,
        (CONCURRENCY, 5),
        "Memory for all answers that are held at once. Larger answers are read one at a time.",
        _SIZE,
    )
    max_retries: int = option(
        _DEFAULTS.max_retries,
        (FAILURES, 1),
        "Retries of a row after a failure that another try may fix; 0: none.",
        numbers(0, 1000, whole=True),
    )
    skip_invalid: bool = option(
        False,
        (FAILURES, 1),
        "Run the valid lines, and write the invalid ones to the error file as INVALID (exit code 3).",
    )
    unconfirmed: UnconfirmedPolicy = option(
        _DEFAULTS.unconfirmed,
        (FAILURES, 4),
        "If the answer to a submission never arrived, the job may exist and cost money: submit the row again, or hold"
        " it.",
    )
    inspect_output: bool = option(
        True,
        (FAILURES, 5),
        "Look for errors in the output of completed jobs.",
        flags="--inspect-output/--no-inspect-output",
    )
    request_timeout: float = option(
        DEFAULT_SILENCE_S,
        (FAILURES, 5),
        "Give up a request when the server has been silent for this many seconds.",
        numbers(1, 3600, metavar="S"),
    )
    execution_timeout: float | None = option(
        None,
        (GUARDS, 5),
        "Longest execution time of a job, in seconds. [default: Runpod's, 600]",
        numbers(5, _WEEK_S, metavar="S"),
    )
    ttl: float | None = option(
        None,
        (GUARDS, 5),
        "Longest life of a job, in seconds, queue time included. [default: Runpod's, 86400]",
        numbers(10, _WEEK_S, metavar="S"),
    )
    dedupe: bool = option(
        False,
        (MONEY, 3),
        "Pay for equal requests once: all of their rows get the answer. Samples of --repeat stay separate.",
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RunArguments(JobArguments, SessionArguments):
    """Options of `batchrun run`, and of `batchrun.run` in Python."""

    inputs: tuple[str, ...] = field(metadata=option_metadata((WHERE, 1), "", Values("name", "INPUT..."), flags=""))
    output: str | None = option(
        None,
        (WHERE, 1),
        "File for all results, or folder (existing, or ending in /) for one results file per input."
        " [default: <input>.results.jsonl]",
        Values("name", "PATH"),
        flags="-o --output",
    )
    state: str | None = option(
        None,
        (WHERE, 4),
        "State file. [default: <output>.state; in a folder: batchrun.state]",
        Values("name", "PATH"),
    )
    shard: str | None = option(
        None,
        (WHERE, 4),
        "Run only part I of N of the lines (I from 1 to N), for example one part on each of N machines. `merge` puts"
        " the results together.",
        text_value("I/N"),
    )
    dry_run: bool = option(False, (WHERE, 2), "Print the request bodies that would be sent, and send nothing.")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WatchArguments(JobArguments):
    """Options of `batchrun watch`: those of a run, for each file, and its own."""

    folder: Path = field(metadata=option_metadata((WHERE, 1), "", flags=""))
    output: Path = field(
        metadata=option_metadata(
            (WHERE, 1),
            "Folder for results, state files and records; created if missing. It must not be the watched folder.",
            text_value("FOLDER"),
            flags="-o --output",
        )
    )
    until_empty: bool = option(False, (WHERE, 2), "Exit when every file in the folder has a record.")
    settle: float = option(2.0, (WHERE, 2), "Run a file once its size and time have not changed for this long.", _TIME)
