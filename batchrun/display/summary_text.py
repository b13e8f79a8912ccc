"""The summary as text: counts, failures, figures, files, and what to do next."""

from __future__ import annotations

import shlex
import textwrap
from datetime import datetime

from batchrun.display.cost import cost_lines
from batchrun.display.summary import Summary
from batchrun.display.text import clipped, visible
from batchrun.display.timeline import sparkline
from batchrun.display.units import counted, duration

WIDTH = 78
"""Columns of the summary; fits a terminal of 80 columns."""
_SPARK_COLUMNS = 32
_WORKERS_SHOWN = 3
_FILES_SHOWN = 5
"""Files that are shown of each kind: a folder may have very many."""
_NEED_CHANGE = (("bad_request", "rejected"), ("invalid",))
"""Kinds of failures that occur again unless the request, or the line, is changed."""

_MORE_WORKERS = (
    "too few jobs for the workers: an autoscaler counts jobs, not their rows. If the endpoint may have more workers,"
    " use a smaller --pack (and a larger -j, if you chose one), or set its scaler to request count with a lower"
    " value, or give it more active workers"
)


def render(summary: Summary) -> str:
    """The summary for a terminal: at most 78 columns except for paths and commands."""
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
        case "interrupted" | "cancelled" | "pilot":
            return f"{s.outcome}: {rows}"
        case _:
            lines = [f"stopped: {rows}", *textwrap.wrap(s.reason, WIDTH, initial_indent="  ", subsequent_indent="  ")]
            return "\n".join(lines)


def _counts(s: Summary) -> list[str]:
    succeeded = [("succeeded", s.succeeded)] if s.succeeded else []
    lines = [f"  {name:<12}{count:>12,}" for name, count in succeeded + s.rest]
    # Indented below the succeeded rows, of which they are a part.
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


def _tries(s: Summary) -> list[str]:
    if not s.reasks:
        return []
    valid = ", ".join(
        f"{rows:,} after {tries} {'try' if tries == '1' else 'tries'}" for tries, rows in s.tries.items() if rows
    )
    again = f"  asked again {counted(s.reasks, 'time')}, because an answer was not valid"
    return [again, *([f"  valid       {valid}"] if valid else [])]


def _broken(s: Summary) -> list[str]:
    others = sum(group.failed for group in s.workers) - sum(group.failed for group in s.broken)
    lines = [
        f"  worker {visible(group.worker_id)} failed {group.failed:,} of {counted(group.jobs, 'job')}"
        for group in s.broken[:_WORKERS_SHOWN]
    ]
    if len(s.broken) > len(lines):
        lines.append(f"  and so did {counted(len(s.broken) - len(lines), 'more worker')}")
    if lines:
        lines[-1] += f"; other workers: {others:,}" if others else "; other workers: none"
    return lines


def _figures(s: Summary) -> list[str]:
    lines = ["", f"  time        {duration(s.wall_s)}, {s.rows_per_s:,.1f} rows/s"]
    if s.wall_s - s.session_s > 1:
        lines[-1] += f" ({duration(s.session_s)} of it in this session)"
    lines += [f"  {each}" for each in s.endpoints]
    for name, value in (("in queue", s.delay_ms), ("executing", s.execution_ms)):
        if value:
            p50, p90, p99 = (duration(ms / 1000) for ms in value)
            lines.append(f"  {name:<10}  p50 {p50}, p90 {p90}, p99 {p99}")
    if s.input_tokens is not None and s.output_tokens is not None:
        lines.append(f"  tokens      {s.input_tokens:,} in, {s.output_tokens:,} out")
    if s.refused_input_tokens or s.refused_output_tokens:
        refused = f"{s.refused_input_tokens:,} in, {s.refused_output_tokens:,} out"
        lines.append(f"  refused     answers that were not valid: {refused}")
    if s.cost is not None:
        first, *more = cost_lines(s.cost, is_over=not (s.not_run or s.in_flight))
        lines += [f"  cost        {first}", *(f"  {'':<10}  {line}" for line in more)]
    if s.calls:
        calls = ", ".join(f"{name} {count:,}" for name, count in sorted(s.calls.items()))
        lines.append(f"  API calls   {calls}" + (f"; {s.throttled:,} throttled" if s.throttled else ""))
    if len(s.windows) > 1 and max(s.windows) > min(s.windows):
        line = sparkline(s.windows, _SPARK_COLUMNS)
        lines.append(f"  window      {line} {min(s.windows):,} to {max(s.windows):,} jobs in flight")
    lines += _packs(s)
    if s.retries:
        lines.append(f"  retries     {s.retries:,}")
    lines += [*_tries(s), *_broken(s)]
    lines += _not_paid(s)
    if s.mismatched:
        lines.append(f"  mismatched  {counted(s.mismatched, 'answer')} dropped, which belonged to other jobs")
    if s.unconfirmed:
        what = "rows of submissions" if s.packed_jobs else "submissions"
        lines.append(f"  duplicates  {s.unconfirmed:,} possible: {what} whose answer never arrived")
    return lines


def _not_paid(s: Summary) -> list[str]:
    sources = (("shared", s.shared, "the answer to an equal request"), ("cached", s.cached, "an answer from the cache"))
    return [f"  {name:<10}  {counted(rows, 'row')} with {what}" for name, rows, what in sources if rows]


def _packs(s: Summary) -> list[str]:
    if not s.packed_jobs:
        return []
    again = f"; {counted(s.separated, 'row')} sent again, because a shared job failed" if s.separated else ""
    lines = [f"  shared jobs {counted(s.packed_jobs, 'job')} for {counted(s.packed_rows, 'row')}{again}"]
    return lines + [f"              {line}" for each in s.few_jobs for line in textwrap.wrap(str(each), WIDTH - 14)]


def _files(s: Summary) -> list[str]:
    lines = [""]
    manifest = [] if s.manifest is None else [s.manifest]
    for name, paths in (("results", s.results), ("errors", s.errors), ("state", [s.state]), ("manifest", manifest)):
        lines += [f"  {name:<10}  {path}" for path in paths[:_FILES_SHOWN]]
        if len(paths) > _FILES_SHOWN:
            lines.append(f"  {'':<10}  … and {len(paths) - _FILES_SHOWN:,} more")
    return lines


def _next_steps(s: Summary) -> list[str]:
    """The lines of the last section. Prose is wrapped; a command stays on one line, so that it can be copied."""
    steps = _wrapped(s.hint)
    if s.in_flight and s.rescue_by is not None:
        by = datetime.fromtimestamp(s.rescue_by).astimezone().strftime("%H:%M")
        what = "rows whose jobs are" if s.packed_jobs else "jobs"
        steps += _wrapped(f"{what} still at the endpoint: {s.in_flight:,}; resume by {by}, or results may expire")
    stuck = " and ".join(each.endpoint for each in s.endpoints if each.in_flight)
    if stuck and s.outcome == "stopped":
        steps += _wrapped(
            f"only {stuck} can answer these jobs; to give them up, give the command with the other endpoints and"
            " --abandon, which may pay for their rows twice"
        )
    state = shlex.join([str(s.state), *s.to_confirm])
    if s.in_flight or s.not_run:
        steps.append(f"resume: batchrun resume {state}")
    if s.failed:
        steps += _after_failures(s, state)
    if s.held:
        steps += _wrapped(
            f"held rows: {s.held:,}; to submit them, which may pay twice, give the same command with"
            " --unconfirmed resubmit"
        )
    if s.broken:
        steps += _wrapped("failing worker: check its log in Runpod's console, or terminate it there")
    if s.few_jobs:
        steps += _wrapped(_MORE_WORKERS)
    return steps + _about_answers(s, state)


def _about_answers(s: Summary, state: str) -> list[str]:
    steps: list[str] = []
    at_limit = s.truncated - s.context_full
    if at_limit > 0:
        steps += _wrapped(f"texts cut off at max_tokens: {at_limit:,}; to run these rows again with more:")
        steps.append(f"  batchrun redo {state} --where finish_reason=length --set max_tokens=N")
    if s.context_full:
        steps += _wrapped(
            f"texts cut off because the model's context was full: {s.context_full:,}; shorten their prompts, or serve"
            " the model with a larger max_model_len"
        )
    if without_text := s.empty + s.reasoning_only:
        steps += _wrapped(
            f"answers without text: {without_text:,}; look at the `output` of their results; to run these rows again:"
        )
        with_text = " --where finish_reason!=tool_calls" * bool(s.tool_calls)
        steps.append(f"  batchrun redo {state} --where text={with_text}")
    return steps


def _after_failures(s: Summary, state: str) -> list[str]:
    """What to do about failed rows: retry them, or first change those that would fail again."""
    refused, invalid = (sum(each.rows for each in s.failures if each.kind in kinds) for kinds in _NEED_CHANGE)
    others = [each.kind for each in s.failures if all(each.kind not in kinds for kinds in _NEED_CHANGE)]
    fix = f"invalid lines: {invalid:,}; fix them, then give the same command again"
    steps = _wrapped(fix) if invalid else []
    if refused + invalid < s.failed:
        only = "".join(f" --only {kind}" for kind in others) if refused + invalid else ""
        steps.append(f"retry the failed rows: batchrun resume {state} --retry-failed{only}")
    if refused:
        kinds = "".join(f" --only {each.kind}" for each in s.failures if each.kind in _NEED_CHANGE[0])
        steps += _wrapped(f"requests refused because of their content: {refused:,}; to change it, and run them again:")
        steps.append(f"  batchrun redo {state} --failed{kinds} --set KEY=VALUE")
    if not_valid := sum(each.rows for each in s.failures if each.kind == "invalid_output"):
        steps += _wrapped(f"answers that were not valid: {not_valid:,}; to ask again in another way:")
        steps.append(f"  batchrun redo {state} --failed --only invalid_output --set KEY=VALUE")
    return steps


def _wrapped(step: str) -> list[str]:
    return textwrap.wrap(step, WIDTH - 2, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
