"""Judge a job's final answer: it is a result, or a failure of some kind. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from batchrun.endpoint.protocol import JobAnswer, JobStatus
from batchrun.endpoint.worker_errors import decode_error, find_hidden_error, is_empty_output
from batchrun.errors import shown
from batchrun.results.structured import AnswerSchema
from batchrun.results.text import broken_off, extract
from batchrun.results.thinking import split_think
from batchrun.scheduler.events import Flaw
from batchrun.scheduler.failures import Failure, FailureKind, classify_job, is_overrun


def judge(answer: JobAnswer, *, inspect_output: bool, hide: Callable[[str], str] = str) -> Failure | None:
    """Why a final answer is not a result; None if it is one.

    A COMPLETED job may hide an error in its output, or have no output at all (runpod-python issues 299 and 309). A
    generation that the server broke off is not an answer of the model: another try may give one.

    Args:
        answer: The job's final answer.
        inspect_output: Whether to look for errors in the output of a completed job.
        hide: Redacts secrets in the texts of a failure; the default redacts nothing.
    """
    status = answer.status
    if status is JobStatus.COMPLETED:
        if not inspect_output:
            return None
        raw = find_hidden_error(answer.output) or answer.error
        if not raw:
            if word := broken_off(answer.output):
                message = f"the server broke off the generation (finish_reason `{word}`)"
                return Failure(FailureKind.WORKER_ERROR, message, hide(decode_error(answer.output).raw))
            empty = is_empty_output(answer.output, has_output=answer.has_output)
            return Failure(FailureKind.NO_OUTPUT, "the job completed without output", "") if empty else None
    else:
        raw = answer.error or find_hidden_error(answer.output)
        if not raw:
            kind, message = _SILENT[status]
            return Failure(kind, message, "", may_pass=kind is FailureKind.TIMED_OUT)
    error = decode_error(raw)
    kind = classify_job(status.value, error.message, error.code, error.error_type)
    may_pass = status is JobStatus.TIMED_OUT and not is_overrun(error.message)
    return Failure(kind, hide(error.message), hide(error.raw), may_pass)


def partial_output(answer: JobAnswer) -> Any:
    """The output, paid for, of a job that has no result; None if there is none."""
    output = answer.output
    if not output or (answer.status is JobStatus.COMPLETED and not (isinstance(output, list) and len(output) > 1)):
        return None
    return output if answer.error or isinstance(output, list) else None


def find_flaw(output: Any) -> Flaw | None:
    """Why a result may be useless; None if it looks good."""
    marks = split_think(extract(output)).marks
    if not {"empty", "filtered", "reasoning_only"}.isdisjoint(marks):
        return "empty"
    return "cut off" if "truncated" in marks else None


def find_kind(output: Any) -> str | None:
    """Which model made a result, and in which form, for a message; None if it is no answer of a language model."""
    first = output[0] if isinstance(output, list) and output else output
    choices = first.get("choices") if isinstance(first, dict) else None
    if not isinstance(choices, list):
        return None
    is_own = any(isinstance(choice, dict) and "tokens" in choice for choice in choices)
    model = first.get("model")
    named = f"model {shown(model)}" if model else "no model name"
    return f"{named} in {'the form of worker-vllm' if is_own else 'the form of OpenAI'}"


def refused(output: Any, *, schema: AnswerSchema | None, require_text: bool) -> Failure | None:
    """Why a result is not valid; None if it is.

    Args:
        output: The output of a completed job.
        schema: What the text of each choice must fit; None for anything.
        require_text: Whether each answer must have a text that was not cut off.
    """
    found = extract(output)
    if require_text and (flaw := _missing_text(split_think(found).marks)):
        return Failure(FailureKind.INVALID_OUTPUT, flaw, found.text or "")
    for number, text in enumerate(found.texts or ("",) if schema is not None else ()):
        problem = schema.problem(text or "") if schema is not None else None
        if problem is not None:
            if "truncated" in found.marks:
                problem = f"{_CUT_OFF}; {problem}"
            elif not (text or "").strip():
                problem = "the answer is empty"
            which = f"choice {number}: " if len(found.texts) > 1 else ""
            return Failure(FailureKind.INVALID_OUTPUT, which + problem, text or "")
    return None


def _missing_text(marks: Container[str]) -> str:
    """What an answer lacks; empty if it has all of its text."""
    if "truncated" in marks:
        return _CUT_OFF
    return next((said for mark, said in _NO_TEXT.items() if mark in marks), "")


_CUT_OFF = "the answer was cut off, by max_tokens or by the end of the context"
_NO_TEXT = {
    "empty": "the answer is empty",
    "filtered": "the answer was filtered, or refused by the model",
    "reasoning_only": "the answer has only the model's reasoning",
}
_SILENT = {
    JobStatus.FAILED: (FailureKind.PLATFORM, "the job failed without an error message"),
    JobStatus.CANCELLED: (FailureKind.CANCELLED, "the job was cancelled by somebody else"),
    JobStatus.TIMED_OUT: (FailureKind.TIMED_OUT, "the job overran its execution timeout or its ttl"),
}
"""The meaning of a failed job without an error message."""
