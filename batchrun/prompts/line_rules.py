"""The rules by which the lines of a run become prompts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from batchrun.config import RequestOptions
from batchrun.prompts.media import MediaFiles
from batchrun.prompts.shapes import READING, Prompt, parse_line
from batchrun.prompts.template import Template


class LineRules:
    """The rules of a run.

    Args:
        request: Its template and the column of its ids, if it has them; None: it has neither.
        reading: The version of the rules; see `shapes.READING`.
    """

    def __init__(self, request: RequestOptions | None = None, reading: int = READING) -> None:
        request = request or RequestOptions()
        self._inline_files = request.inline_files
        self.reading = reading
        self.template = None
        self.parse: Callable[[bytes], Prompt] = parse_line
        """Parses a line; raises a LineError if it is invalid."""
        if request.template is not None:
            self.parse = self.template = Template(request.template, request.id_column, reading)
        elif reading != READING or request.id_column is not None:
            self.parse = partial(parse_line, reading=reading, id_column=request.id_column)

    def media(self, origin: str, since: float | None = None) -> MediaFiles | None:
        """The files that the lines of an input name; None if their paths are sent as they are. See `MediaFiles`."""
        return None if self._inline_files is None else MediaFiles(self._inline_files, origin, since)

    def finish(self) -> None:
        """Check what can be known only after all lines.

        Raises:
            InputError: a column that should be carried is in no line.
        """
        if self.template is not None:
            self.template.refuse_unseen()
