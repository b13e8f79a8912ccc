"""A summary as text: what came out, what failed, what it took, where the files are, and what to do next."""

from __future__ import annotations

import shlex
import textwrap
from datetime import datetime

from batchrun.display.cost import cost_lines
from batchrun.display.summary import Summary
from batchrun.display.text import clipped, visible
from batchrun.display.timeline import sparkline
from batchrun.display.units import duration

WIDTH = 78
"""Columns of the summary: fits a terminal of 80."""
_SPARK_COLUMNS = 32
_WORKERS_SHOWN = 3
_FILES_SHOWN = 5
"""Of each kind: a folder of shards would fill the screen."""
_NEED_CHANGE = (("bad_request", "rejected"), ("invalid",))
"""Kinds of failures that the same request, and the same line, meets again."""


def render(summary: Summary) -> str:
    """The summary for a terminal: at most 78 columns but for paths, ending in what to do next."""
    blocks = [_headline(summary), *_counts(summary), *_failures(summary), *_figures(summary), *_files(summary)]
    steps = _next_steps(summary)
    if steps:
        blocks += ["", "next", *(f"  {step}" for step in steps)]
    return "\n" + "\n".join(blocks) + "\n"


def _headline(s: Summary) -> str:
    rows = f"{s.succeeded:,} of {s.total:,} rows succeeded"
    match s.outcome:
        case "finished":
            return f"finished: {rows}"
        case "interrupted" | "cancelled":
            return f"{s.outcome}: {rows}"
        case _:
            lines = [f"stopped: {rows}", *textwrap.wrap(s.reason, WIDTH, initial_indent="  ", subsequent_indent="  ")]
            return "\n".join(lines)


def _counts(s: Summary) -> list[str]:
    succeeded = [("succeeded", s.succeeded)] if s.succeeded else []
    lines = [f"  {name:<12}{count:>12,}" for name, count in succeeded + s.rest]
    # Below the rows that succeeded: they are some of those.
    lines[1:1] = [f"    {name:<14}{count:>8,}" for name, count in s.answers] if s.succeeded else []
    return lines


def _failures(s: Summary) -> list[str]:
    if not s.failures:
        return []
    lines = ["", "failures"]
    for group in s.failures:
        example = " ".join(f"{group.example_id}: {group.example_message}".split())
        line = f"  {group.kind:<16}{group.rows:>8,}  {example}"
        lines.append(clipped(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…", WIDTH))
    return lines


def _broken(s: Summary) -> list[str]:
    others = sum(group.failed for group in s.workers) - sum(group.failed for group in s.broken)
    lines = [
        f"  worker {visible(group.worker_id)} failed {group.failed:,} of {group.jobs:,} jobs"
        for group in s.broken[:_WORKERS_SHOWN]
    ]
    if len(s.broken) > len(lines):
        lines.append(f"  so did {len(s.broken) - len(lines):,} more workers")
    if lines:
        lines[-1] += f", others {others:,}" if others else ", others none"
    return lines


def _figures(s: Summary) -> list[str]:
    lines = ["", f"  time        {duration(s.wall_s)}, {s.rows_per_s:,.1f} rows/s"]
    if s.wall_s - s.session_s > 1:
        lines[-1] += f" ({duration(s.session_s)} of it in this session)"
    for name, value in (("in queue", s.delay_ms), ("at work", s.execution_ms)):
        if value:
            p50, p90, p99 = (duration(ms / 1000) for ms in value)
            lines.append(f"  {name:<10}  p50 {p50}, p90 {p90}, p99 {p99}")
    if s.input_tokens is not None and s.output_tokens is not None:
        lines.append(f"  tokens      {s.input_tokens:,} in, {s.output_tokens:,} out")
    if s.cost is not None:
        first, *more = cost_lines(s.cost, is_over=not (s.not_run or s.in_flight))
        lines += [f"  cost        {first}", *(f"  {'':<10}  {line}" for line in more)]
    if s.calls:
        calls = ", ".join(f"{name} {count:,}" for name, count in sorted(s.calls.items()))
        lines.append(f"  API calls   {calls}" + (f"; {s.throttled:,} throttled" if s.throttled else ""))
    if len(s.windows) > 1 and max(s.windows) > min(s.windows):
        line = sparkline(s.windows, _SPARK_COLUMNS)
        lines.append(f"  window      {line} {min(s.windows):,} to {max(s.windows):,} jobs in flight")
    if s.retries:
        lines.append(f"  retries     {s.retries:,}")
    lines += _broken(s)
    if s.shared:
        lines.append(f"  shared      {s.shared:,} rows have the answer of another that asks for the same")
    if s.mismatched:
        lines.append(f"  mismatched  {s.mismatched:,} answers were those of other jobs, and not used")
    if s.unconfirmed:
        lines.append(f"  duplicates  {s.unconfirmed:,} possible: submissions whose answer never arrived")
    return lines


def _files(s: Summary) -> list[str]:
    lines = [""]
    manifest = [] if s.manifest is None else [s.manifest]
    for name, paths in (("results", s.results), ("errors", s.errors), ("state", [s.state]), ("manifest", manifest)):
        lines += [f"  {name:<10}  {path}" for path in paths[:_FILES_SHOWN]]
        if len(paths) > _FILES_SHOWN:
            lines.append(f"  {'':<10}  … and {len(paths) - _FILES_SHOWN:,} more")
    return lines


def _next_steps(s: Summary) -> list[str]:
    """Lines, prose wrapped; a command stays on one line, so that it can be copied."""
    steps = _wrapped(s.hint)
    if s.in_flight and s.rescue_by is not None:
        by = datetime.fromtimestamp(s.rescue_by).astimezone().strftime("%H:%M")
        steps += _wrapped(f"{s.in_flight:,} jobs go on at the endpoint: resume by {by}, or results may expire")
    state = shlex.quote(str(s.state))
    if s.in_flight or s.not_run:
        steps.append(f"go on: batchrun resume {state}")
    if s.failed:
        steps += _after_failures(s, state)
    if s.held:
        steps += _wrapped(
            f"submit the {s.held:,} held rows, which may pay twice: the same command with --unconfirmed resubmit"
        )
    if s.broken:
        steps += _wrapped("terminate a worker that fails its jobs in Runpod's console, or look at its log there")
    return steps + _about_answers(s)


def _about_answers(s: Summary) -> list[str]:
    steps = []
    at_limit = s.truncated - s.context_full
    if at_limit > 0:
        steps += _wrapped(f"{at_limit:,} texts were cut off at max_tokens: raise it in a new run, with another -o")
    if s.context_full:
        steps += _wrapped(
            f"{s.context_full:,} texts were cut off where the model's context was full: shorten their prompts,"
            " or serve the model with a larger max_model_len"
        )
    if without_text := s.empty + s.reasoning_only:
        steps += _wrapped(f"{without_text:,} answers have no text: look at the `output` of their results")
    return steps


def _after_failures(s: Summary, state: str) -> list[str]:
    """What to do about failed rows: what fails again as it is has to be changed, others are tried again."""
    refused, invalid = (sum(each.rows for each in s.failures if each.kind in kinds) for kinds in _NEED_CHANGE)
    others = [each.kind for each in s.failures if all(each.kind not in kinds for kinds in _NEED_CHANGE)]
    fix = f"{invalid:,} lines cannot be run as they are: fix them, then run the same command"
    steps = _wrapped(fix) if invalid else []
    if refused + invalid < s.failed:
        only = "".join(f" --only {kind}" for kind in others) if refused + invalid else ""
        steps.append(f"try the failed rows again: batchrun resume {state} --retry-failed{only}")
    if refused:
        files = " ".join(shlex.quote(str(path)) for path in s.errors[:_FILES_SHOWN]) or "FILE"
        steps += _wrapped(f"{refused:,} requests were refused for what they ask: change that in a new run, such as")
        skip = " --skip-invalid" if invalid else ""
        steps.append(f"  batchrun run {files} --set KEY=VALUE{skip} -o {'NEW/' if len(s.errors) > 1 else 'NEW.jsonl'}")
    return steps


def _wrapped(step: str) -> list[str]:
    return textwrap.wrap(step, WIDTH - 2, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
