"""Find the input line of a row, and make its request, its result line and its error line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from batchrun.config import FormatChoice, RequestOptions, RunOptions, SweepOptions
from batchrun.errors import BatchrunError
from batchrun.files.exactjson import load
from batchrun.files.urls import place_in
from batchrun.prompts.identity import is_written_so
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.lines import LineReader
from batchrun.prompts.requests import build_request, changes_requests, with_turns
from batchrun.prompts.shapes import LineError, Prompt
from batchrun.prompts.sweep import ENDPOINT, Sweep, with_parameter
from batchrun.results.completion import RequestTarget, target_of
from batchrun.results.error_record import error_line
from batchrun.results.openai import openai_line
from batchrun.results.record import JobInfo, result_line, shared_line
from batchrun.results.structured import NotJsonError, json_in
from batchrun.results.text import Text, extract
from batchrun.results.thinking import split_think
from batchrun.results.written import write_line
from batchrun.state.amendments import Amendments
from batchrun.state.positions import RowWithLine
from batchrun.state.records import Amendment, FailedJob, FailureRecord, RowRecord, SourceRecord

NO_SWEEP, AS_WRITTEN = SweepOptions(), RequestOptions()
NEVER_VALID = "invalid-"
"""The id of a line that was invalid from the start begins so: it has one row, whatever the sweep."""
_NO_JOB = JobInfo(None, "", 0, None, None, None, None, None)


class LineChangedError(BatchrunError):
    """A line has changed since the run began."""


class InvalidLineError(LineChangedError):
    """A line has not changed, but is invalid; `raw` has its bytes."""

    def __init__(self, message: str, raw: bytes) -> None:
        super().__init__(message)
        self.raw = raw

    @property
    def request(self) -> Any:
        """The line's JSON value; None if it is not JSON. As a line of another input it would be invalid again."""
        try:
            return load(self.raw)
        except ValueError:
            return None


class RowLines:
    """The lines of the rows of a run.

    Args:
        sources: The inputs by number.
        reader: Reads their lines.
        sweep: The run's variants.
        request: How a line becomes a request.
        endpoints: The endpoints of the run's jobs, by number; a variant may name another one.
        form: The format of the result lines.
        with_request: Whether result lines have the row's input line, as error lines do.
        splits_think: Whether `<think>` blocks of a text are its reasoning.
        amendments: The amendments of the rows; None: no row has one.
        since: When this session began, UTC epoch seconds: files that are changed later are not sent. None: all are.
    """

    def __init__(
        self,
        sources: Mapping[int, SourceRecord],
        reader: LineReader,
        *,
        sweep: SweepOptions = NO_SWEEP,
        request: RequestOptions = AS_WRITTEN,
        endpoints: Sequence[str] = ("",),
        form: FormatChoice = "batchrun",
        with_request: bool = False,
        splits_think: bool = False,
        amendments: Amendments | None = None,
        since: float | None = None,
    ) -> None:
        self._sources = sources
        self._reader = reader
        rules = LineRules(request, reader.reading)
        self._parse = rules.parse
        self._media = {number: rules.media(source.origin, since) for number, source in sources.items()}
        self._sweep = Sweep(sweep, reader.reading)
        self._is_swept = bool(self._sweep)
        self._request = request
        self._is_changed = changes_requests(request)
        self.endpoints = endpoints
        """The endpoints that the run has had, by number."""
        self._amendments = amendments
        self._is_openai = form == "openai"
        self._with_request = with_request
        self._splits_think = splits_think

    @classmethod
    def of(
        cls,
        options: RunOptions,
        sources: Mapping[int, SourceRecord],
        reader: LineReader,
        amendments: Amendments,
        since: float | None = None,
        *,
        endpoints: Sequence[str] | None = None,
    ) -> Self:
        """The lines of a run with these options; `endpoints` are those that it has ever had, None: those of now."""
        return cls(
            sources,
            reader,
            sweep=options.sweep,
            request=options.request,
            endpoints=options.endpoints if endpoints is None else endpoints,
            form=options.format,
            with_request=options.with_request,
            splits_think=options.split_think,
            amendments=amendments,
            since=since,
        )

    def output(self, row: RowRecord) -> int:
        """The number of the results file of a row."""
        return self._sources[row.source].output

    def line(self, row: RowWithLine) -> Prompt | LineChangedError:
        """A row's line, parsed again. An error is returned, not raised, if it has changed since the run began.

        Raises:
            InputError: the line cannot be read.
        """
        return self._parsed(row, self._reader.read(row.source, row.offset, row.length))

    def lines(self, rows: Sequence[RowWithLine]) -> list[Prompt | LineChangedError]:
        """The lines of some rows, as `line` gives them; cheaper for rows whose lines are near each other."""
        raws = self._reader.read_all([(row.source, row.offset, row.length) for row in rows])
        return list(map(self._parsed, rows, raws))

    def _parsed(self, row: RowWithLine, raw: bytes) -> Prompt | LineChangedError:
        if not is_written_so(raw, row.digest):
            source = self._sources.get(row.source)
            path = "" if source is None else source.path
            return LineChangedError(f"{place_in(path, row.line)} has changed during the run")
        try:
            return self._parse(raw)
        except LineError as error:
            return InvalidLineError(error.message, raw)

    def request(self, row: RowWithLine, line: Prompt, *, has_turns: bool = True) -> dict[str, Any]:
        """The request of a row with this line.

        Args:
            row: The row.
            line: Its line.
            has_turns: Whether it has the messages that were appended to ask again.

        Raises:
            LineError: a value of the row's variant does not apply to the line.
        """
        prompt = self._sweep.apply(line, row.variant) if self._is_swept else line
        amendment = None if self._amendments is None else self._amendments.get(row.row)
        if amendment is None:
            return build_request(prompt, self._request) if self._is_changed else prompt.request
        override = {**self._request.override, **amendment.override}
        if amendment.seed is not None:
            override["seed"] = amendment.seed
        request = build_request(prompt, replace(self._request, override=override))
        return with_turns(request, amendment.turns) if has_turns else request

    def amendment(self, row: int) -> Amendment | None:
        """How a row's request differs from that of its line; None if it does not."""
        return None if self._amendments is None else self._amendments.get(row)

    def amend(self, uncommitted: Mapping[int, Amendment] | None) -> None:
        """Use amendments that the next commit writes; None: they are committed."""
        if self._amendments is not None:
            self._amendments.note(uncommitted or {})

    def has_files(self, row: RowRecord) -> bool:
        """Whether the run sends the content of files that the lines of the row's input name."""
        return self._media.get(row.source) is not None

    def inlined(self, row: RowRecord, request: dict[str, Any]) -> dict[str, Any]:
        """The request of a row with the content of the files that it names, if the run sends that.

        Raises:
            LineError: a file cannot be read, or has changed since the session began.
        """
        media = self._media.get(row.source)
        return request if media is None else media.inlined(request)

    def read_request(self, row: RowWithLine) -> dict[str, Any] | None:
        """The request of a row, from its line read again; None if the line has changed."""
        line = self.line(row)
        return None if isinstance(line, LineChangedError) else self.request(row, line)

    def asked(self, row: RowWithLine) -> RequestTarget:
        """What a row's request asked for; needed only for answers that do not contain it."""
        request = self.read_request(row)
        return RequestTarget() if request is None else target_of(request)

    def endpoint(self, row: RowRecord, number: int) -> str:
        """The ID of the endpoint of this number, to which a row was submitted."""
        endpoint: str = self._variant(row).get(ENDPOINT) or self.endpoints[min(number, len(self.endpoints) - 1)]
        return endpoint

    def text(self, output: Any) -> Text:
        """The text of a job's output, and what the worker says about it."""
        text = extract(output)
        return split_think(text) if self._splits_think else text

    def result(
        self,
        row: RowRecord,
        text: Text,
        output: Any,
        *,
        carried: Mapping[str, Any],
        job: JobInfo | Mapping[str, Any],
        possible_duplicate: bool,
    ) -> bytes:
        """The result line of a row with an answer of its own job or from the cache, with its line end.

        Args:
            row: The row.
            text: What was extracted from the output.
            output: The job's output.
            carried: The fields of the row's line that are copied to its result.
            job: The job; for an answer from the cache, as the cache has it.
            possible_duplicate: Whether another job may have been paid for the same row.
        """
        return result_line(
            row_id=row.id,
            text=text,
            output=output,
            carried=carried,
            read=self._read(text),
            variant=self._variant(row),
            file=self._sources[row.source].path,
            line=row.line,
            job=job,
            possible_duplicate=possible_duplicate,
            request=self._as_asked(row, self.line(row)) if self._with_request else None,
            write=self._writer(row),
        )

    def _read(self, text: Text) -> dict[str, Any]:
        """What was read from the text of an answer."""
        if self._request.schema is not None and text.text is not None:
            with suppress(NotJsonError):
                return {"parsed": json_in(text.text)}
        return {}

    def draft(self, row: RowRecord, output: Any) -> bytes:
        """The record that a row would have with an output, for a check: with its `request`, and without its `job`."""
        text, line = self.text(output), self.line(row)
        return result_line(
            row_id=row.id,
            text=text,
            output=output,
            carried={} if isinstance(line, LineChangedError) else line.carried,
            read=self._read(text),
            variant=self._variant(row),
            file=self._sources[row.source].path,
            line=row.line,
            job=_NO_JOB,
            request=self._as_asked(row, line),
            write=lambda record: write_line({key: record[key] for key in record if key != "job"}),
        )

    def shared(self, row: RowRecord, answer: Mapping[str, Any]) -> bytes:
        """The result line of a row that has the answer of another row's job, with its line end.

        Args:
            row: The row.
            answer: The other row's record, in batchrun's own format.
        """
        line = self.line(row)
        return shared_line(
            answer,
            row_id=row.id,
            # Of a line that has changed since the run began, nothing is copied.
            carried={} if isinstance(line, LineChangedError) else line.carried,
            file=self._sources[row.source].path,
            line=row.line,
            variant=self._variant(row),
            request=self._as_asked(row, line) if self._with_request else None,
            write=self._writer(row),
        )

    def _as_asked(self, row: RowRecord, line: Prompt | LineChangedError) -> Any:
        """The JSON value of a row's line, with the values of its variant and its own; None if the line has changed."""
        if isinstance(line, LineChangedError):
            return None
        with suppress(LineError):  # raised for a line that is invalid because a value of the sweep does not apply
            line = self._sweep.apply(line, row.variant)
        return self._as_amended(row, line).line

    def _as_amended(self, row: RowRecord, line: Prompt) -> Prompt:
        """A row's line with the parameters of the row alone."""
        amendment = self.amendment(row.row)
        for key, value in () if amendment is None else amendment.override.items():
            with suppress(LineError):  # raised for an `input` object that is not for vLLM
                line = with_parameter(line, key, value)
        return line

    def failure(
        self,
        row: RowRecord,
        failure: FailureRecord,
        failed: FailedJob,
        write: Callable[[dict[str, Any]], bytes] | None = None,
    ) -> bytes:
        """The error line of a row that has failed, with its line end.

        Args:
            row: The row, with all of its attempts.
            failure: Why it failed.
            failed: Its last job.
            write: Makes the line from its record; None for batchrun's own format.
        """
        line = self.line(row)
        raw, request, variant = failure.raw, self._as_asked(row, line), self._variant(row)
        if isinstance(line, InvalidLineError):
            raw, request = line.raw.decode(errors="backslashreplace"), line.request
        if not row.attempts and row.id.startswith(NEVER_VALID):
            variant = {}
            request = line.line if isinstance(line, Prompt) else request
        if (media := self._media.get(row.source)) is not None:
            request = media.absolute(request)
        return error_line(
            row_id=row.id,
            status=failure.status,
            kind=failure.kind,
            message=failure.message,
            raw=raw,
            request=request,
            variant=variant,
            file=self._sources[row.source].path,
            line=row.line,
            job=self._failed_job(row, failure, failed) if row.attempts else None,
            same_as=failed.same_as,
            part=None if failed.output is None else load(failed.output),
            write=write,
        )

    def _failed_job(self, row: RowRecord, failure: FailureRecord, failed: FailedJob) -> JobInfo:
        return JobInfo(
            id=failed.remote_id,
            endpoint=self.endpoint(row, failed.endpoint),
            attempts=row.attempts,
            delay_ms=failed.delay_ms,
            execution_ms=failed.execution_ms,
            worker_id=failure.worker_id,
            submitted_at=None if failed.submitted_ms is None else failed.submitted_ms / 1000,
            completed_at=None if failure.completed_ms is None else failure.completed_ms / 1000,
        )

    def _variant(self, row: RowRecord) -> Mapping[str, Any]:
        return self._sweep.variant(row.variant).values

    def _writer(self, row: RowRecord) -> Callable[[dict[str, Any]], bytes] | None:
        return (lambda record: openai_line(record, lambda: self.asked(row))) if self._is_openai else None
