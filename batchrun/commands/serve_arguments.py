"""The options of `batchrun serve`; see `arguments`."""

from dataclasses import dataclass

from batchrun.commands.definitions import EMULATED, WHERE, numbers, option, text_value
from batchrun.commands.session_arguments import LocalArguments
from batchrun.config import ScalingRule

_WEEK_S = 604_800


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ServeArguments(LocalArguments):
    """Options of `batchrun serve`."""

    port: int = option(8000, (WHERE, 1), "Port to listen on; 0: any free port.", numbers(0, 65_535, whole=True))
    host: str = option(
        "127.0.0.1",
        (WHERE, 1),
        "Address to listen on. One that other machines can reach needs --api-key.",
        text_value("ADDRESS"),
    )
    api_key: str | None = option(
        None,
        (WHERE, 1),
        "Require this key, any word, in each request; clients set it as RUNPOD_API_KEY. [env: BATCHRUN_API_KEY]",
        text_value("KEY"),
    )
    workers: int = option(2, (EMULATED, 1), "Number of workers.", numbers(0, 100_000, whole=True))
    jobs_per_worker: int = option(
        1, (EMULATED, 1), "Number of jobs that each worker runs at once.", numbers(1, 10_000, whole=True)
    )
    limits: bool = option(
        False, (EMULATED, 1), "Enforce Runpod's documented rate limits.", flags="--limits/--no-limits"
    )
    autoscale: ScalingRule | None = option(
        None,
        (EMULATED, 2),
        "Start and stop workers as Runpod's autoscaler does: one more when a job has waited too long, or one for every "
        "few jobs. --workers is the maximum. Without it all workers stay.",
    )
    autoscale_value: float = option(
        4.0,
        (EMULATED, 2),
        "For --autoscale: seconds that a job waits, or jobs for each worker.",
        numbers(0, _WEEK_S, above=True),
    )
    workers_min: int = option(
        0, (EMULATED, 2), "For --autoscale: workers that always stay.", numbers(0, 100_000, whole=True)
    )
    idle_timeout: float = option(
        5.0, (EMULATED, 2), "For --autoscale: seconds after which an idle worker goes.", numbers(0, _WEEK_S)
    )
    latency: float = option(0.0, (EMULATED, 2), "Seconds added to each job.", numbers(0, _WEEK_S))
    cold_start: float = option(
        0.0, (EMULATED, 2), "Seconds from the start of a worker until it is ready.", numbers(0, _WEEK_S)
    )
    context: int | None = option(
        None,
        (EMULATED, 2),
        "Words that a prompt and its answer may have with --worker echo; a longer prompt is refused.",
        numbers(1, 10_000_000, whole=True),
    )
    fail_rate: float = option(0.0, (EMULATED, 2), "Fraction of the jobs that fail, 0 to 1.", numbers(0, 1))
    seed: int = option(0, (EMULATED, 2), "Random seed.", numbers(-(2**63), 2**63 - 1, whole=True))
