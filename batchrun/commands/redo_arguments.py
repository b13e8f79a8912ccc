"""The options of `batchrun redo`: which rows are run again, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchrun.commands.definitions import ROWS, option, text_value
from batchrun.commands.request_arguments import PAIRS
from batchrun.commands.session_arguments import ResumeArguments


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RedoArguments(ResumeArguments):
    """Options of `batchrun redo`: those of `batchrun resume`, but for the ones that repeat or repair."""

    where: tuple[str, ...] = option(
        (),
        (ROWS, 1),
        "Rows whose result meets this: PATH=VALUE, PATH!=VALUE, or PATH~REGEX. PATH is a field of the results, with"
        " dots into objects and lists; an absent field is null. Repeatable: all must hold.",
        text_value("CONDITION"),
    )
    ids: Path | tuple[str, ...] | None = option(
        None, (ROWS, 1), "Rows whose ids are in this file, one per line; `-` reads stdin, and needs --yes."
    )
    failed: bool = option(False, (ROWS, 1), "Rows that failed, and no others; --where then looks at error records.")
    kinds: tuple[str, ...] = option(
        (),
        (ROWS, 1),
        "With --failed: only rows that failed with this kind of error; repeatable.",
        text_value("KIND"),
        flags="--only",
    )
    set: Mapping[str, Any] | None = option(
        None,
        (ROWS, 2),
        "Set a sampling parameter for these rows alone, from now on; repeatable.",
        PAIRS,
    )
    yes: bool = option(False, (ROWS, 3), "Do not ask whether to pay for the rows.", flags="-y --yes")
    retry_failed: bool = False
    only: tuple[str, ...] = ()
    repair: bool = False
    detach: bool = False
