"""The options that say how a line becomes its requests."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchrun.commands.definitions import REQUESTS, Arguments, Values, numbers, option, text_value

PAIRS = Values("pairs", "KEY=VALUE")
_NAMES = Values("names", "A,B,...")
_FILE = text_value("FILE")
_SWEEP = Values("sweep", "KEY=V1,V2,...")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RequestArguments(Arguments):
    """How a line becomes its requests."""

    set: Mapping[str, Any] | None = option(
        None,
        (REQUESTS, 1),
        "Set a sampling parameter for every line, overriding the line's own value; repeatable.",
        PAIRS,
        variables=("BATCHRUN_OVERRIDE",),
    )
    default: Mapping[str, Any] | None = option(
        None, (REQUESTS, 1), "Set a sampling parameter for lines that do not have it; repeatable.", PAIRS
    )
    prompt: str | None = option(
        None,
        (REQUESTS, 2),
        "Make the user's message of each row from its columns: a Jinja template such as 'Summarise: {{ review }}'. The"
        " columns become `metadata`. See `batchrun help templates`.",
        text_value("TEMPLATE"),
    )
    prompt_file: Path | None = option(None, (REQUESTS, 2), "File with the template of --prompt.", _FILE)
    messages_file: Path | None = option(
        None, (REQUESTS, 2), "File with a template of a JSON list of messages, instead of --prompt.", _FILE
    )
    raw: bool = option(
        False,
        (REQUESTS, 2),
        "Send what --prompt makes as a plain prompt, for base models. An instruct model rambles on it.",
    )
    id_column: str | None = option(
        None, (REQUESTS, 2), "Column with the id of a row. [default: `id` or `custom_id`]", text_value("NAME")
    )
    columns: Sequence[str] | None = option(
        None, (REQUESTS, 2), "Columns that --prompt carries to the results; repeatable. [default: all]", _NAMES
    )
    image_column: str | None = option(
        None,
        (REQUESTS, 2),
        "Column with a picture (a path, URL or data URL) for the user's message; implies --inline-files.",
        text_value("NAME"),
    )
    inline_files: bool = option(
        False,
        (REQUESTS, 2),
        "Send the content of each picture, sound and video whose path is in a line: in `image_url`, `input_audio`,"
        " `audio_url` or `video_url`, relative to the input's folder.",
    )
    system: str | None = option(
        None,
        (REQUESTS, 2),
        "Add a system message to lines that have none; implies --chat. With --prompt it is a template, too.",
        text_value("TEXT"),
    )
    system_file: Path | None = option(None, (REQUESTS, 2), "File with the text of --system.", _FILE)
    chat: bool = option(False, (REQUESTS, 2), "Send `prompt` lines as chat messages.")
    schema: str | os.PathLike[str] | Mapping[str, Any] | type[Any] | None = option(
        None,
        (REQUESTS, 2),
        "JSON schema that answers must fit: a file, or in short 'name, age int, tags list'. Sent as `response_format`;"
        " the value of each answer is `parsed` in its result.",
        text_value("FILE|FIELDS"),
    )
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


def several(given: str | Iterable[str]) -> Iterable[str]:
    """Several texts of a program, which may give a single one as it is."""
    return (given,) if isinstance(given, str) else given
