"""The rules that an answer must keep to be a result: a text, a schema, and a function of the user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from batchrun.config import RunOptions
from batchrun.endpoint.protocol import JobAnswer
from batchrun.engine.checking import Checker, CheckFailedError, refuse_missing
from batchrun.engine.judging import refused
from batchrun.results.structured import AnswerSchema
from batchrun.results.text import extract
from batchrun.scheduler.failures import Failure, FailureKind

Draft = Callable[[int, JobAnswer], Awaitable[bytes]]
"""Makes the record that a row would have with an answer, as a line."""
_MOST_CHARS = 500


class Rules:
    """Applies the rules of a run.

    Args:
        schema: What the JSON value in each text must fit; None for any text.
        require_text: Whether each answer must have a text that was not cut off.
        checker: The function; None if there is none.
    """

    def __init__(self, schema: AnswerSchema | None, *, require_text: bool, checker: Checker | None) -> None:
        self._schema = schema
        self._require_text = require_text
        self._checker = checker

    @classmethod
    def of(cls, options: RunOptions) -> Rules | None:
        """The rules of a run; None if it has none.

        Raises:
            UsageError: the schema is not valid, or the library for it is missing.
        """
        if not has_rules(options):
            return None
        given, schema = options.answers, options.request.schema
        checker = None if given.check is None else Checker(given.check, given.check_timeout_s)
        return cls(None if schema is None else AnswerSchema(schema), require_text=given.require_text, checker=checker)

    async def refuse(
        self, row: int, answer: JobAnswer, draft: Draft, *, aside: bool, hide: Callable[[str], str] = str
    ) -> Failure | None:
        """Why the answer for a row is not a result; None if it is.

        Args:
            row: The row's number.
            answer: The answer of its job.
            draft: Makes its record.
            aside: Whether the answer is so large that it is looked at in a thread.
            hide: Redacts secrets in what the function says; the default redacts nothing.
        """

        def look() -> Failure | None:
            return refused(answer.output, schema=self._schema, require_text=self._require_text)

        failure = await asyncio.to_thread(look) if aside else look()
        if failure is not None or self._checker is None:
            return failure
        try:
            reason = await self._checker.reason(await draft(row, answer))
        except CheckFailedError as error:
            reason = str(error)
        if reason is None:
            return None
        # A function may return a text that is not Unicode, which no file can hold.
        said = " ".join(reason.split())[:_MOST_CHARS].encode(errors="backslashreplace").decode()
        said = hide(said) or f"refused by {self._checker.name}"
        return Failure(FailureKind.INVALID_OUTPUT, said, extract(answer.output).text or "")

    def close(self) -> None:
        """End the processes of the function."""
        if self._checker is not None:
            self._checker.close()


def has_rules(options: RunOptions) -> bool:
    """Whether an answer must keep rules to be a result."""
    given = options.answers
    return options.request.schema is not None or given.require_text or given.check is not None


def refuse_unusable_rules(options: RunOptions) -> None:
    """Refuse a schema that is none, and a function that cannot be found, before anything is sent.

    Raises:
        UsageError: says which, and why.
    """
    if options.request.schema is not None:
        AnswerSchema(options.request.schema)
    if options.answers.check is not None:
        refuse_missing(options.answers.check)
