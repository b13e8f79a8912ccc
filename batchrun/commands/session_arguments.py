"""The options of one session: what guards it, what it repeats, how its key is found, and what it shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from batchrun.commands.definitions import (
    BASE_URL_VARIABLES,
    CONCURRENCY,
    DISPLAY,
    FAILURES,
    GUARDS,
    LOCAL,
    MONEY,
    TIME_OR_OFF,
    WHERE,
    Arguments,
    Values,
    numbers,
    option,
    text_value,
)
from batchrun.config import (
    MOST_ROWS,
    AnswerOptions,
    Bounds,
    CanaryAllows,
    HaltOptions,
    InterruptPolicy,
    ProgressMode,
    WorkerChoice,
)

_WEEK_S = 604_800
"""The longest time that Runpod accepts."""
_HALT = Values("halt", "N|N%|off", Bounds(1, MOST_ROWS, whole=True))


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class GuardArguments(Arguments):
    """What guards a run. Each may differ from session to session; None keeps the stored value, or else the default.

    A limit that is `OFF` holds no more, also in later sessions.
    """

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
        numbers(0, MOST_ROWS, whole=True),
    )
    canary_allow: CanaryAllows | None = option(
        None, (GUARDS, 4), "Let --canary accept answers that were cut off by max_tokens."
    )
    price_per_hour: float | dict[str, float] | None = option(
        None,
        (MONEY, 1),
        "Hourly price of one worker; enables cost estimates. For several endpoints with different prices:"
        " ID=PRICE,ID=PRICE.",
        Values("price", "$|ID=$,...", Bounds(0, 1_000_000, above=True)),
    )
    max_cost: float | None = option(
        None,
        (MONEY, 2),
        "Stop submitting when the cost so far plus that of the jobs in flight reaches this; needs --price-per-hour.",
        numbers(0, 1_000_000_000, above=True, metavar="$", or_off=True),
    )
    deadline: float | None = option(
        None,
        (GUARDS, 1),
        "Stop submitting in time for running jobs to finish by then, and exit at the deadline in any case: 8h, 90m.",
        TIME_OR_OFF,
    )
    job_timeout: float | None = option(
        None,
        (GUARDS, 1),
        "Cancel a job that has not finished this long after its submission, queue time included. It counts as"
        " TIMED_OUT, and is retried up to --max-retries times. [default: its ttl plus 10 min]",
        TIME_OR_OFF,
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


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class WindowArguments(Arguments):
    """How many jobs may be in flight, for a run that has started. None keeps the stored number."""

    concurrency: int | Literal["auto"] | None = option(
        None,
        (CONCURRENCY, 1),
        "Jobs in flight at once (submitted and not finished). auto: just enough to keep every worker busy. [default:"
        " as before]",
        numbers(1, 1_000_000, whole=True, or_auto=True),
        flags="-j --concurrency",
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class CheckArguments(Arguments):
    """The function that checks answers. None keeps the stored one."""

    check: str | None = option(
        None,
        (FAILURES, 2),
        "Call FUNCTION with each result, in a process of its own; it returns or raises why the answer is not valid."
        " MODULE is imported from this folder, or is a FILE.py.",
        text_value("MODULE:FUNCTION"),
    )
    check_timeout: float | None = option(
        None,
        (FAILURES, 2),
        "Give up a call of --check after this many seconds: the answer is not valid."
        f" [default: {AnswerOptions().check_timeout_s:g}]",
        numbers(0.1, 3600, metavar="S"),
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class CacheArguments(Arguments):
    """The answer cache. None keeps the stored file."""

    cache: Path | None = option(
        None,
        (MONEY, 3),
        "Reuse answers to the same requests of earlier runs at the same endpoint from this file, and store new ones in"
        " it. Runs can share it. `off`: no cache.",
        Values(metavar="FILE|off"),
    )
    cache_sampled: bool = option(
        False,
        (MONEY, 3),
        "With --cache: also reuse sampled answers, those to requests with a temperature other than 0 and no seed, which"
        " another try might not give again.",
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class RetryArguments(Arguments):
    """What to repeat or repair when a run is resumed."""

    retry_failed: bool = option(False, (FAILURES, 3), "Run the failed rows again, with a full set of retries.")
    only: tuple[str, ...] = option(
        (),
        (FAILURES, 3),
        "With --retry-failed: only rows that failed with this kind of error; repeatable.",
        text_value("KIND"),
        variables=("BATCHRUN_KINDS",),
    )
    abandon: bool = option(
        False,
        (FAILURES, 4),
        "With fewer endpoints than before: give up the jobs in flight at the others, and run their rows again. They may"
        " be paid for twice.",
    )
    repair: bool = option(
        False,
        (FAILURES, 3),
        "Recover lost or damaged results, free if the endpoint still has them. `run --repair` also rebuilds a"
        " lost state file.",
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
class ConfirmArguments(KeyArguments, CheckArguments):
    """Confirms what a run does that is known only from its state file, which may come from somebody else."""

    base_url: str | None = option(
        None,
        (WHERE, 7),
        "Confirm that the run's jobs go to this URL, if the state file does not prove that you chose it.",
        text_value("URL"),
        variables=BASE_URL_VARIABLES,
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
class DetachArguments(Arguments):
    """Whether the run continues in the background."""

    detach: bool = option(
        False,
        (WHERE, 3),
        "Go into the background once the input is read, the endpoint answers and the canary is back. Prints the process"
        " ID and the log (<output stem>.log) as JSON. See `batchrun help nights`.",
    )


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SessionArguments(RetryArguments, LocalArguments, ShowArguments):
    """Options of one session, which the state file does not keep."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ResumeArguments(
    DetachArguments, GuardArguments, WindowArguments, CacheArguments, SessionArguments, ConfirmArguments
):
    """Options of `batchrun resume`."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class CancelArguments(ShowArguments, ConfirmArguments):
    """Options of `batchrun cancel`."""
