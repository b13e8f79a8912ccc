"""The options of `batchrun estimate`: those of a run, and the size of the pilot."""

from dataclasses import dataclass

from batchrun.commands.arguments import RunArguments
from batchrun.commands.definitions import DISPLAY, MONEY, numbers, option
from batchrun.config import DryRun

PILOT_ROWS = 30
"""Enough for a reliable range, and cheap."""
_MOST = 10_000


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EstimateArguments(RunArguments):
    """Options of `batchrun estimate`: those of `run` without those that preview, repeat, repair or detach."""

    pilot: int = option(
        PILOT_ROWS,
        (MONEY, 1),
        "Run N random rows first; they are part of the run. 0: send nothing, and only count characters.",
        numbers(0, _MOST, whole=True),
    )
    as_json: bool = option(False, (DISPLAY, 1), "Print one JSON object on stdout.", flags="--json")
    dry_run: DryRun | None = None
    confirm: bool = False
    detach: bool = False
    retry_failed: bool = False
    only: tuple[str, ...] = ()
    repair: bool = False
