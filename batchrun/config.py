"""Options as frozen dataclasses: every default is defined here once, with its unit and its reason.

Nothing here reads a file, an environment variable or a clock; the command line and the Python API fill these in.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from batchrun.files.server_urls import without_user
from batchrun.files.urls import absolute_name

VERSION = "0.1.0"

FORMER_NAMES = {"detach": "leave"}
"""Words that earlier versions had for the values of options; they are still accepted."""

Switch = Literal["on", "off"]
UnconfirmedPolicy = Literal["resubmit", "hold"]
InterruptPolicy = Literal["drain", "leave", "cancel"]
CanaryAllows = Literal["length"]
ResultFormat = Literal["openai", "batchrun"]
FormatChoice = Literal["auto", "openai", "batchrun"]
ProgressMode = Literal["auto", "bar", "plain", "json", "none"]
WorkerChoice = Literal["auto", "smollm2", "echo"]
ScalingRule = Literal["queue-delay", "request-count"]
DryRun = int | Literal["first", "all"]
InlineFiles = Literal["anywhere", "in_folder"]

DEFAULT_BASE_URL = "https://api.runpod.ai/v2"
"""The only data-plane host in Runpod's documentation; jobs go to `<base>/<endpoint>/run`."""

LOCAL_ENDPOINT = "local"
"""The endpoint ID that starts the built-in endpoint in this process."""

FOLDER_STATE = "batchrun.state"
"""The state file's name inside a results folder: it is copied, moved and renamed together with the results."""

WINDOW_S = 10.0
"""Runpod counts requests in any 10 seconds."""

PROMPTS_AT_ONCE = 256
"""How many prompts a worker serves at once (MAX_NUM_SEQS of worker-vllm, by default)."""
MAX_REQUEST_BYTES = 10_000_000
"""The body limit of `/run`. Runpod's docs say MB, runpodctl checks MiB: the smaller of the two is safe for both."""

DEFAULT_SILENCE_S = 30.0
"""An edge server gives up on its backend after 100 s, and reports it; a dead connection stays silent forever."""

DEFAULT_MEMORY_BYTES = 256_000_000
"""For answers that are arriving or waiting to be written: three of 10 MB at once, or any number of ordinary ones."""

RETENTION_S = 30 * 60.0
"""A finished job's result is kept for 30 minutes, then `/status` answers 404. This cannot be extended."""

DEFAULT_TTL_S = 24 * 3600.0
"""The API's default ttl of a job: from its submission, with the time in the queue and the execution."""

MAX_TTL_S = 7 * 24 * 3600.0
"""The longest ttl that the API accepts."""

TTL_GRACE_S = 600.0
"""A job that has not ended this long after its ttl never will: its state was lost (runpod-python issue 250)."""

MOST_ROWS = 2**31 - 1
"""The most rows that a state file can number."""

SCORE_TIMEOUT_S = 10.0
"""How long a scoring function or pattern may take per row."""

VIEW_ROWS = 20_000
"""A browser shows a page of this many rows within two seconds."""

MOST_ROWS_PER_JOB = 64
"""One lost answer should not cost more rows, nor should a job run into its execution timeout."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of numbers that an option accepts. NaN and infinity are never accepted."""

    least: float
    most: float
    whole: bool = False
    """Whether only whole numbers are accepted."""
    above: bool = False
    """Whether `least` itself is excluded."""

    def hold(self, value: object) -> bool:
        """Whether a value is a number within the bounds; True and False are not numbers."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{kind} above {self.least:,} and at most {self.most:,}"
        return f"{kind} from {self.least:,} to {self.most:,}"


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """How a row of columns becomes a line. It has `prompt` or `messages`."""

    prompt: str | None = None
    """`--prompt`, or the text of `--prompt-file`: the template of the user's message."""
    messages: str | None = None
    """The text of `--messages-file`: the template of a list of messages."""
    system: str | None = None
    """`--system`, or the text of `--system-file`: the template of a system message before `prompt`. None for none."""
    raw: bool = False
    """`--raw`: a plain prompt instead of a message."""
    columns: tuple[str, ...] | None = None
    """`--columns`: the columns that are carried as `metadata`; None for all."""
    image_column: str | None = None
    """`--image-column`: the column with the picture for the user's message; None for none."""
    files: tuple[tuple[str, str], ...] = ()
    """The option and the path of each text that was read from a file: only messages name it."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How a prompt line becomes a request. They decide what is sent, so a resumed run must have the same options."""

    override: dict[str, object] = field(default_factory=dict)
    """`--set`: sampling parameters that win over the line's own."""
    default: dict[str, object] = field(default_factory=dict)
    """`--default`: sampling parameters for lines that do not have them."""
    chat: bool = False
    """`--chat`: send a `prompt` line as one user message."""
    system: str | None = None
    """`--system`: a system message before the line's own messages; implies chat for prompt lines. None for none."""
    template: TemplateOptions | None = None
    """How a row of columns becomes a line, its system message included; None: the lines are as they are."""
    id_column: str | None = None
    """`--id-column`: the column with the id of a row; None for `id` or `custom_id`."""
    inline_files: InlineFiles | None = None
    """`--inline-files`: send the content of files that a line names: any files, or (`watch`) only those in the folder
    of its input. None: a path is sent as it is."""
    schema: dict[str, object] | None = None
    """`--schema`: the JSON schema that answers are asked to fit, and must fit; None for any text."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RequestOptions:
        """The inverse of `asdict`, after JSON has made lists of tuples."""
        template = data.get("template")
        if template is not None:
            columns, files = template["columns"], tuple((option, path) for option, path in template["files"])
            template = {**template, "columns": None if columns is None else tuple(columns), "files": files}
        return cls(**{**data, "template": None if template is None else TemplateOptions(**template)})


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Which rows are made of a line. They decide what is sent, so a resumed run must have the same options."""

    keys: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """`--sweep`: each key with its values, in the order given; the rows are their product."""
    repeat: int = 1
    """`--repeat`: samples of each combination, >= 1."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints that are compared; empty if there is only the run's own."""
        return next((values for key, values in self.keys if key == "endpoint"), ())

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {"keys": [[key, list(values)] for key, values in self.keys], "repeat": self.repeat}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SweepOptions:
        """The inverse of `to_json`."""
        keys = tuple((key, tuple(values)) for key, values in data.get("keys", ()))
        return cls(keys, data.get("repeat", 1))


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """The job's `policy` object. None leaves Runpod's default. Times are sent in milliseconds."""

    execution_timeout_s: float | None = None
    """Runpod's default is 600 s; 5 s to 7 days are accepted."""
    ttl_s: float | None = None
    """How long the job may live from its submission; Runpod's default is 24 h; 10 s to 7 days are accepted."""
    low_priority: bool = False
    """Whether the job does not make the endpoint scale up."""


@dataclass(frozen=True, slots=True)
class OperationLimit:
    """What the API allows for one operation of one endpoint."""

    per_window: int
    """Requests in any 10 s; 0 for no limit."""
    concurrent: int
    """Concurrent requests; 0 for no limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Runpod's documented limits, for each user and endpoint (docs, page send-requests)."""

    run: OperationLimit = OperationLimit(per_window=1000, concurrent=200)
    status: OperationLimit = OperationLimit(per_window=2000, concurrent=400)
    cancel: OperationLimit = OperationLimit(per_window=100, concurrent=20)


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """What the scheduler's decisions depend on."""

    concurrency: int | None = None
    """The number of jobs in flight; None for as many as the endpoint's workers need, and no more."""
    connections: int | None = None
    """Concurrent HTTP requests; None for as many as the distance to the server needs, 64 to 256."""
    limits: Limits = field(default_factory=Limits)
    max_retries: int = 3
    """Further submissions of one row after a retryable failure; 0 for none."""
    unconfirmed: UnconfirmedPolicy = "resubmit"
    """What to do with a submission whose answer never arrived."""
    reask: int = 0
    """Further submissions of one row whose answers are not valid; 0 for none."""
    pack: int | None = 1
    """`--pack`: the most rows of one job, 1 to 64; None for as many as suit the endpoint and the number of rows."""
    pack_check: Switch = "on"
    """`--pack-check`: whether rows are first sent both together and one by one, to compare their answers."""


@dataclass(frozen=True, slots=True)
class HaltOptions:
    """How many failed rows stop a run. A stopped run collects the jobs in flight, and can be resumed."""

    rows: int | None = None
    """`--halt N`: the number of failed rows, >= 1; None for no such limit."""
    share: float | None = None
    """`--halt N%`: the failed share of the finished rows, 0..1, from the 50th of them on; None for no such limit."""
    automatic: bool = True
    """Stop when the first 20 finished rows, or the last 200, all failed: that proves the deployment broken."""


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """The guards of an unattended run. Each may differ from one session to the next."""

    on_interrupt: InterruptPolicy = "drain"
    """What the first Ctrl-C or SIGTERM does. Jobs in flight are paid for, so they are collected by default."""
    halt: HaltOptions = field(default_factory=HaltOptions)
    canary: int = 0
    """`--canary N`: rows that must succeed before any other is submitted; 0 for none."""
    canary_allow: CanaryAllows | None = None
    """`--canary-allow length`: an answer that was cut off is good enough for a canary; None if it is not."""
    price_per_hour: float | None = None
    """Price of one worker in dollars per hour; None for no cost estimate."""
    prices: dict[str, float] | None = None
    """The same for each endpoint, by its ID, if they differ; None if they do not."""
    max_cost: float | None = None
    """In dollars, over all sessions of the run; None for no limit."""
    deadline_s: float | None = None
    """Seconds from the session's start; None for no deadline."""
    job_timeout_s: float | None = None
    """Seconds from a job's submission to its end; None if only its ttl limits it."""

    def price_of(self, endpoint: str) -> float | None:
        """The price of one worker of an endpoint in dollars per hour; None if no price is known.

        An endpoint that the pool has lost may have none: the highest is then the safe one.
        """
        return self.prices.get(endpoint, max(self.prices.values())) if self.prices else self.price_per_hour

    @property
    def have_price(self) -> bool:
        """Whether the cost is estimated."""
        return self.price_per_hour is not None or bool(self.prices)


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Where an answer may come from, and how it is checked. Each may differ from one session to the next."""

    require_text: bool = False
    """`--require-text`: it has a text that was not cut off."""
    check: str | None = None
    """`--check`: a function accepts it, `MODULE:FUNCTION` or `FILE.py:FUNCTION`, the file with its absolute path."""
    check_timeout_s: float = 10.0
    """`--check-timeout`: how many seconds the function may take for one answer: more than any rule needs."""
    cache: str | None = None
    """`--cache`: the file with answers of earlier runs, an absolute path; None for no cache."""
    cache_sampled: bool = False
    """`--cache-sampled`: also reuse sampled answers, those that another try might not give again."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """All options of `batchrun run`; kept in the state file, so that `resume` can use them."""

    inputs: tuple[str, ...]
    """Files, folders, patterns, URLs or `-` for stdin, as given."""
    endpoint: str
    output: Path
    """A file for all results, or a folder with one results file for each input."""
    output_is_folder: bool
    state: Path
    pool: tuple[str, ...] = ()
    """The endpoints of a pool, `endpoint` first; empty without a pool."""
    mixed: bool = False
    """`--mixed`: endpoints of a pool may answer with different models."""
    base_url: str = DEFAULT_BASE_URL
    request: RequestOptions = field(default_factory=RequestOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)
    policy: JobPolicy = field(default_factory=JobPolicy)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    guards: GuardOptions = field(default_factory=GuardOptions)
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    limit: int | None = None
    """Only the first N rows; None for all."""
    shard: str | None = None
    """`I/N`: only the lines of this shard; None for all lines."""
    abandon: bool = False
    """`--abandon`: give up jobs at endpoints that the pool has lost. For this session only: it is not stored."""
    strict: bool = False
    """`--strict`: treat probable mistakes in the lines as errors. For this session only: it is not stored."""
    skip_invalid: bool = False
    """`--skip-invalid`: invalid lines fail as INVALID, instead of the whole run being refused."""
    dedupe: bool = False
    """`--dedupe`: rows with equal requests share one job. A resumed run must have the same value."""
    format: FormatChoice = "auto"
    """Format of the results and error files. `auto` is decided by the input when the run begins, once for all."""
    ordered: bool = False
    """`--ordered`: the results files of a finished run are put into input order."""
    with_request: bool = False
    """`--with-request`: result lines have the row's input line as `request`. A resumed run must have the same value."""
    split_think: bool = False
    """`--split-think`: `<think>` blocks are not part of `text`. A resumed run must have the same value."""
    inspect_output: bool = True
    """Look for errors inside the output of completed jobs."""
    timeout_s: float = DEFAULT_SILENCE_S
    """`--request-timeout`: how many seconds a server may be silent, before its answer and within it."""
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """`--memory`: the memory, in bytes, for all answers that are held at once."""

    @property
    def is_local(self) -> bool:
        """Whether the run uses the built-in endpoint, which exists only as long as this process."""
        return self.endpoint == LOCAL_ENDPOINT

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The endpoints that rows are submitted to: the run's own, its pool, or those that the sweep compares."""
        return self.sweep.endpoints or self.pool or (self.endpoint,)

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values, for the state file: inputs absolute, output relative to the state file.

        The built-in endpoint has no base URL.
        """
        data = asdict(self)
        del data["state"], data["strict"], data["abandon"]
        data["sweep"] = self.sweep.to_json()
        data["base_url"] = None if self.is_local else without_user(self.base_url)
        data["inputs"] = [absolute_name(name) for name in self.inputs]
        data["output"] = os.path.relpath(self.output, self.state.parent)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any], state: Path) -> RunOptions:
        """The inverse of `to_json`, for a state file that may have been moved together with its results."""
        scheduler = dict(data["scheduler"])
        known = {item.name for item in fields(Limits)}
        limits = {name: OperationLimit(**limit) for name, limit in scheduler["limits"].items() if name in known}
        scheduler["limits"] = Limits(**limits)
        guards = dict(data.get("guards", {}))
        guards["halt"] = HaltOptions(**guards.get("halt", {}))
        if (word := guards.get("on_interrupt")) in FORMER_NAMES:
            guards["on_interrupt"] = FORMER_NAMES[word]
        return cls(
            **{
                **data,
                "inputs": tuple(data["inputs"]),
                "pool": tuple(data.get("pool", ())),
                "base_url": without_user(data["base_url"] or DEFAULT_BASE_URL),
                "format": data.get("format", "batchrun"),
                "output": Path(os.path.normpath(state.absolute().parent / data["output"])),
                "state": state,
                "request": RequestOptions.from_json(data["request"]),
                "sweep": SweepOptions.from_json(data.get("sweep", {})),
                "policy": JobPolicy(**data["policy"]),
                "scheduler": SchedulerOptions(**scheduler),
                "guards": GuardOptions(**guards),
                "answers": AnswerOptions(**data.get("answers", {})),
            }
        )
