"""Every option of a run, defined once; those of its requests and of a session are in modules of their own.

The command line, a TOML file, the environment and the Python API all fill in these dataclasses: `batchrun.cli` makes
click options from the fields, and `batchrun.api` passes its keyword arguments on. To add an option, add a field.
"""

from dataclasses import dataclass, field
from pathlib import Path

from batchrun.commands.definitions import (
    BASE_URL_VARIABLES,
    CONCURRENCY,
    FAILURES,
    MONEY,
    TIME,
    WHERE,
    Values,
    numbers,
    option,
    option_metadata,
    text_value,
)
from batchrun.commands.request_arguments import RequestArguments
from batchrun.commands.session_arguments import (
    CacheArguments,
    CheckArguments,
    DetachArguments,
    GuardArguments,
    KeyArguments,
    LocalArguments,
    SessionArguments,
    ShowArguments,
)
from batchrun.config import (
    DEFAULT_BASE_URL,
    DEFAULT_MEMORY_BYTES,
    DEFAULT_SILENCE_S,
    MOST_ROWS,
    MOST_ROWS_PER_JOB,
    Bounds,
    DryRun,
    FormatChoice,
    SchedulerOptions,
    Switch,
    UnconfirmedPolicy,
)

_SIZE = Values("size", "SIZE", Bounds(1_000_000, 1_000_000_000_000, whole=True))
_RATE = numbers(0, 1_000_000, whole=True)
_DEFAULTS = SchedulerOptions()


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class JobArguments(
    RequestArguments, CheckArguments, CacheArguments, GuardArguments, KeyArguments, LocalArguments, ShowArguments
):
    """Options of a run, whatever its inputs and outputs are."""

    config: Path | None = option(
        None,
        (WHERE, 3),
        "TOML file with any of these options, and INPUT... as `inputs`. The command line wins.",
        Values("run file", "FILE"),
    )
    endpoint: tuple[str, ...] | None = option(
        None,
        (WHERE, 1),
        "Endpoint ID; `local` starts the built-in endpoint in this process. Several IDs, with commas or repeated, are a"
        " pool: each row runs at the endpoint that will have it done first. To compare endpoints, use --sweep"
        " endpoint=ID1,ID2. [env: RUNPOD_ENDPOINT_ID]",
        Values("names", "ID,..."),
        flags="-e --endpoint",
        variables=("BATCHRUN_ENDPOINT", "RUNPOD_ENDPOINT_ID"),
    )
    mixed: bool = option(False, (WHERE, 6), "Accept that the endpoints of a pool answer with different models.")
    base_url: str = option(
        DEFAULT_BASE_URL,
        (WHERE, 7),
        "Submit jobs to URL/ID/run. [env: RUNPOD_ENDPOINT_BASE_URL]",
        text_value("URL"),
        variables=BASE_URL_VARIABLES,
    )
    limit: int | None = option(None, (WHERE, 2), "Run only the first N rows.", numbers(1, MOST_ROWS, whole=True))
    format: FormatChoice = option(
        "auto",
        (WHERE, 5),
        "Format of the results: that of the OpenAI batch API, or batchrun's own. auto: openai if all lines are OpenAI"
        " batch lines.",
    )
    ordered: bool = option(False, (WHERE, 5), "When the run has finished, put the results into input order.")
    with_request: bool = option(False, (WHERE, 5), "Write each row's input line into its result, too, as `request`.")
    split_think: bool = option(
        False, (WHERE, 5), "Move the <think> blocks of an answer from its `text` to its `reasoning`."
    )
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
    pack: int | None = option(
        _DEFAULTS.pack,
        (CONCURRENCY, 2),
        "Send up to N rows in one job, if they ask for the same but for their prompt and set max_tokens: the API takes"
        " only 100 jobs/s. auto: up to 16. See `batchrun help packing`.",
        numbers(1, MOST_ROWS_PER_JOB, whole=True, or_auto=True),
    )
    pack_check: Switch = option(
        _DEFAULTS.pack_check,
        (CONCURRENCY, 5),
        "Before a run with --pack, send a few rows together and one by one, and compare the answers.",
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
    reask: int | None = option(
        None,
        (FAILURES, 1),
        "Ask again, with another seed, when an answer does not fit --schema or is refused by --check or"
        " --require-text: at most N times, each of them paid for. [default: 2 with --schema, else 0]",
        numbers(0, 100, whole=True),
    )
    require_text: bool = option(
        False, (FAILURES, 1), "Treat answers that are empty, filtered or cut off as failures (invalid_output)."
    )
    skip_invalid: bool = option(
        False,
        (FAILURES, 4),
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
    dedupe: bool = option(
        False,
        (MONEY, 3),
        "Pay for equal requests once: all of their rows get the answer. Samples of --repeat stay separate.",
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RunArguments(JobArguments, DetachArguments, SessionArguments):
    """Options of `batchrun run`, and of `batchrun.run` in Python."""

    inputs: tuple[str, ...] = field(metadata=option_metadata((WHERE, 1), "", Values("name", "INPUT..."), flags=""))
    output: str | None = option(
        None,
        (WHERE, 1),
        "File for all results (JSON lines), or folder (existing, or ending in /) for one results file per input."
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
    confirm: bool = option(
        False,
        (MONEY, 2),
        "Run 30 random rows, show the estimated time and cost of the rest, and ask before running it.",
    )
    dry_run: DryRun | None = option(
        None,
        (WHERE, 2),
        "Show the first 3, or N, requests and the number of tokens, and send nothing; `all`: print every request body,"
        " one per line.",
        Values("or all", "[N|all]"),
    )


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
    settle: float = option(2.0, (WHERE, 2), "Run a file once its size and time have not changed for this long.", TIME)
