"""`batchrun check`: reports every invalid line, or sums the inputs up. Nothing is sent or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

from batchrun.config import RequestOptions, SweepOptions
from batchrun.display.units import counted
from batchrun.files.urls import place_in
from batchrun.prompts.fields import Fields, Finding
from batchrun.prompts.identity import SeenIds
from batchrun.prompts.line_rules import LineRules
from batchrun.prompts.requests import prompt_chars
from batchrun.prompts.shapes import LineError, Prompt
from batchrun.prompts.sources import Source, SourceKind, iter_source, places
from batchrun.prompts.sweep import Sweep

PROBLEMS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class LineProblem:
    """An invalid line."""

    file: str
    line: int
    """1-based; in a table, the number of the row, without the header."""
    message: str
    place: str = ""
    """The line in words, if it is the row of a table; empty if it is a line."""

    def __str__(self) -> str:
        return f"{self.place or f'{self.file}:{self.line}'}: {self.message}"


@dataclass(slots=True)
class CheckReport:
    """What was found in the inputs."""

    files: int = 0
    rows: int = 0
    """Valid lines."""
    shapes: Counter[str] = field(default_factory=Counter)
    with_id: int = 0
    """Rows that have an id of their own."""
    chars: int = 0
    """Estimated characters of prompt text in all rows."""
    largest_chars: int = 0
    largest_line_bytes: int = 0
    largest_line_at: str = ""
    """Its place, see `place_in`."""
    problem_count: int = 0
    problems: list[LineProblem] = field(default_factory=list)
    """The first `PROBLEMS_KEPT` of them."""
    findings: list[Finding] = field(default_factory=list)
    """How the fields of the lines are used, warnings first."""
    strict: bool = False
    """Whether warnings count as errors."""

    @property
    def warnings(self) -> list[Finding]:
        """The findings that are probably mistakes."""
        return [finding for finding in self.findings if finding.is_warning]

    @property
    def is_good(self) -> bool:
        """Whether the inputs can be run."""
        return not (self.problem_count or (self.strict and self.warnings))

    def add_problem(self, file: str, line: int, message: str) -> None:
        """Count an invalid line."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(LineProblem(file, line, message))

    def name_rows(self, sources: Sequence[Source]) -> None:
        """Say on which line of its file each invalid row of a table is, after all of them are known."""
        for source in sources:
            if source.kind is not SourceKind.FILE:
                numbers = {problem.line for problem in self.problems if problem.file == source.path}
                found = places(source.path, source.path, numbers) if numbers else {}
                self.problems = [
                    replace(problem, place=found[problem.line]) if problem.file == source.path else problem
                    for problem in self.problems
                ]

    def add_row(self, file: str, line: int, prompt: Prompt, size_bytes: int) -> None:
        """Count a valid line."""
        chars = prompt_chars(prompt.request)
        self.rows += 1
        self.shapes[prompt.shape.value] += 1
        self.with_id += prompt.id is not None
        self.chars += chars
        self.largest_chars = max(self.largest_chars, chars)
        if size_bytes > self.largest_line_bytes:
            self.largest_line_bytes, self.largest_line_at = size_bytes, place_in(file, line)


def inspect(
    sources: Sequence[Source],
    *,
    stdin: BinaryIO,
    request: RequestOptions | None = None,
    sweep: SweepOptions | None = None,
    strict: bool = False,
) -> CheckReport:
    """Read every line of the sources.

    Ids are compared by 8 bytes of their digest, which takes about 150 bytes of memory for each row with an id.

    Args:
        sources: The inputs.
        stdin: The stream that `-` stands for.
        request: Options that change the requests; None: none do.
        sweep: The variants of each line; None: one variant.
        strict: Whether warnings count as errors.

    Raises:
        InputError: a source cannot be read.
        UsageError: the sweep is not valid.
    """
    report = CheckReport(strict=strict)
    variants = Sweep(sweep or SweepOptions())
    fields = Fields(request or RequestOptions(), variants)
    rules = LineRules(request)
    ids = SeenIds()
    files: list[str] = []
    for source in sources:
        files.append(source.path)
        report.files += 1
        media = rules.media(source.origin)
        for line in iter_source(source, stdin):
            try:
                prompt = rules.parse(line.raw)
                if media is not None:
                    media.check(prompt.request)
                variants.apply(prompt, 0)
            except LineError as error:
                report.add_problem(source.path, line.number, error.message)
                continue
            if prompt.id is not None and (first := ids.first(prompt.id, source.path, line.number)):
                way = "" if first.rpartition(":")[0] == source.path else "; with -o FOLDER/ each file may use it once"
                report.add_problem(source.path, line.number, f"duplicate id {prompt.id!r}, first at {first}{way}")
                continue
            report.add_row(source.path, line.number, prompt, len(line.raw))
            fields.add(prompt, source.path, line.number)
    report.name_rows(sources)
    if not report.problem_count:
        rules.finish()
    report.findings = fields.findings()
    if not report.rows and not report.problem_count:
        report.add_problem(files[0] if files else "-", 1, "the input has no lines")
    return report


def render(report: CheckReport) -> str:
    """The report for a terminal: one `file:line: problem` per problem, or the totals if there are none."""
    found = [str(finding) for finding in report.findings]
    if report.problem_count:
        lines = [str(problem) for problem in report.problems]
        if report.problem_count > len(report.problems):
            lines.append(f"... and {report.problem_count - len(report.problems):,} more")
        valid = f"{report.rows:,} of {report.rows + report.problem_count:,} lines are valid"
        return "\n".join([*lines, *found, "", f"{report.problem_count:,} invalid; {valid}"]) + "\n"
    shapes = ", ".join(f"{count:,} {shape}" for shape, count in report.shapes.most_common())
    mean = report.chars / report.rows
    return (
        "".join(f"{line}\n" for line in [*found, ""] if found) + f"  files         {report.files:,}\n"
        f"  rows          {report.rows:,}: {shapes}\n"
        f"  with an id    {report.with_id:,}\n"
        f"  prompt text   {report.chars:,} characters (mean {mean:,.0f}, maximum {report.largest_chars:,}),"
        f" about {counted(report.chars // 4, 'token')}\n"
        f"  largest line  {report.largest_line_bytes:,} bytes at {report.largest_line_at}\n"
        + ("all lines are valid\n" if report.is_good else f"warnings that --strict refuses: {len(report.warnings):,}\n")
    )


def to_json(report: CheckReport) -> dict[str, Any]:
    """The report as one JSON object."""
    return {
        "files": report.files,
        "rows": report.rows,
        "shapes": dict(report.shapes),
        "with_id": report.with_id,
        "prompt_chars": report.chars,
        "largest_prompt_chars": report.largest_chars,
        "largest_line_bytes": report.largest_line_bytes,
        "largest_line_at": report.largest_line_at,
        "problem_count": report.problem_count,
        "problems": [{"file": p.file, "line": p.line, "message": p.message} for p in report.problems],
        "findings": [{**asdict(finding), "is_warning": finding.is_warning} for finding in report.findings],
    }
