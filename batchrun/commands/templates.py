"""Makes the template of a run from the options of a command, which may name files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from batchrun.commands.request_arguments import RequestArguments, several
from batchrun.config import TemplateOptions
from batchrun.errors import InputError, UsageError
from batchrun.prompts.template import Template

_MOST_BYTES = 1 << 20


def template_options(given: RequestArguments) -> tuple[TemplateOptions | None, str | None]:
    """The template of a run, and its system message.

    Returns:
        The template, or None if the lines are sent as they are. The system message if it is a plain text: with a
        template it is part of that.

    Raises:
        UsageError: the options contradict each other, a file cannot be read, or a text is not a template.
    """
    files = {
        option: Path(path)
        for option, path in (
            ("--prompt-file", given.prompt_file),
            ("--messages-file", given.messages_file),
            ("--system-file", given.system_file),
        )
        if path is not None
    }
    texts = {option: _text(option, path) for option, path in files.items()}
    system = _one_of("--system", given.system, texts)
    prompt, messages = _one_of("--prompt", given.prompt, texts), texts.get("--messages-file")
    if prompt is None and messages is None:
        for option, value in (
            ("--raw", given.raw),
            ("--columns", given.columns),
            ("--image-column", given.image_column),
        ):
            if value:
                raise UsageError(f"{option} needs a template", "give --prompt, --prompt-file or --messages-file")
        return None, system
    if messages is not None:
        _refuse_both("--messages-file", [("--prompt", prompt), ("--system", system), ("--raw", given.raw)])
    if given.raw:
        others = [("--chat", given.chat), ("--system", system), ("--image-column", given.image_column)]
        _refuse_both("--raw", others)
    if prompt is not None and not prompt.strip():
        raise UsageError("--prompt is empty", "write the name of a column in double braces: {{ column }}")
    template = TemplateOptions(
        prompt,
        messages,
        system,
        given.raw,
        None if given.columns is None else tuple(several(given.columns)),
        given.image_column,
        tuple((option, str(path)) for option, path in files.items()),
    )
    Template(template, given.id_column).compile()
    return template, None


def _one_of(option: str, text: str | None, texts: dict[str, str]) -> str | None:
    """The text of an option, or that of the file of its second form."""
    if text is not None:
        _refuse_both(option, [(f"{option}-file", texts.get(f"{option}-file"))])
    return texts.get(f"{option}-file", text)


def _refuse_both(option: str, others: Sequence[tuple[str, object]]) -> None:
    for other, value in others:
        if value not in (None, False):
            raise UsageError(f"both {option} and {other} are given", "remove one of them")


def _text(option: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise InputError(f"{option} {path}: larger than {_MOST_BYTES >> 20} MiB", "give the file with the text")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}", "check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{option} {path}: byte {error.start + 1:,} is not UTF-8", "convert it to UTF-8") from error
