"""Opens the cache of a run."""

from __future__ import annotations

import asyncio
from pathlib import Path

from batchrun.config import DEFAULT_BASE_URL, RunOptions
from batchrun.display.summary import warn
from batchrun.engine.cached import CachedAnswers
from batchrun.files.server_urls import without_user
from batchrun.runs.opening import OpenRun
from batchrun.state.answer_cache import AnswerCache

WORKER_NAME = "worker_name"
"""The setting that has the name of the local endpoint's worker."""


def open_cache(run: OpenRun) -> CachedAnswers | None:
    """The cache of a run; None if it has none. To be called in the event loop of the session.

    Raises:
        StateError: it cannot be used.
    """
    options, loop = run.options, asyncio.get_running_loop()
    if options.answers.cache is None:
        return None
    return CachedAnswers(
        AnswerCache(Path(options.answers.cache)),
        run.lines,
        {endpoint: _name(options, endpoint, run.store.get_setting(WORKER_NAME)) for endpoint in options.endpoints},
        is_swept=bool(options.sweep.endpoints),
        repeat=options.sweep.repeat,
        takes_sampled=options.answers.cache_sampled,
        tell=lambda text: loop.call_soon_threadsafe(warn, run.observer, text),
    )


def _name(options: RunOptions, endpoint: str, worker: object) -> str:
    """The name of an endpoint in the cache: Runpod's are unique, the local one depends on its worker."""
    if options.is_local:
        return f"{endpoint}: {worker}"
    base_url = without_user(options.base_url)
    return endpoint if base_url == DEFAULT_BASE_URL else f"{base_url}/{endpoint}"
