"""What a user may say of a served local endpoint; see `arguments`."""

from dataclasses import dataclass

from batchrun.commands.arguments import LocalArguments
from batchrun.commands.definitions import EMULATED, WHERE, numbers, option, words

_WEEK_S = 604_800


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ServeArguments(LocalArguments):
    """`batchrun serve`."""

    port: int = option(8000, (WHERE, 1), "0 picks a free one.", numbers(0, 65_535, whole=True))
    host: str = option(
        "127.0.0.1", (WHERE, 1), "Where to listen. What other machines can reach needs --api-key.", words("ADDRESS")
    )
    api_key: str | None = option(
        None,
        (WHERE, 1),
        "Demanded of each request: the RUNPOD_API_KEY of the clients, any word. [env: BATCHRUN_API_KEY]",
        words("KEY"),
    )
    workers: int = option(2, (EMULATED, 1), "Workers to emulate.", numbers(0, 100_000, whole=True))
    jobs_per_worker: int = option(1, (EMULATED, 1), "Jobs that a worker runs at once.", numbers(1, 10_000, whole=True))
    limits: bool = option(
        False, (EMULATED, 1), "Enforce Runpod's documented rate limits.", flags="--limits/--no-limits"
    )
    latency: float = option(0.0, (EMULATED, 2), "Seconds added to each job.", numbers(0, _WEEK_S))
    cold_start: float = option(0.0, (EMULATED, 2), "Seconds without workers.", numbers(0, _WEEK_S))
    fail_rate: float = option(0.0, (EMULATED, 2), "Share of the jobs that fail, 0 to 1.", numbers(0, 1))
    seed: int = option(0, (EMULATED, 2), "Random seed.", numbers(-(2**63), 2**63 - 1, whole=True))
