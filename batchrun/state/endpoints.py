"""The numbers of a run's endpoints, by which its jobs name them.

A number stays with its endpoint whatever pool a later session has: a job can be polled only where it was submitted.
"""

from __future__ import annotations

from batchrun.config import RunOptions
from batchrun.state.reader import StateReader
from batchrun.state.store import Store

_SETTING = "endpoints"


def known_endpoints(store: StateReader, options: RunOptions) -> list[str]:
    """The endpoints that jobs of a run may have been submitted to, in the order of their numbers.

    Args:
        store: The run's state.
        options: Its stored options: files of versions before 6, and new ones, have only the endpoints of these.
    """
    known = store.get_setting(_SETTING)
    return [str(endpoint) for endpoint in known] if isinstance(known, list) else list(options.endpoints)


def note_endpoints(store: Store, was: RunOptions | None, options: RunOptions) -> None:
    """Number the endpoints of a session that have no number yet.

    Args:
        store: The run's state.
        was: The options of earlier sessions; None for a new run.
        options: Those of this session.
    """
    known = known_endpoints(store, was or options)
    found = [*known, *(endpoint for endpoint in options.endpoints if endpoint not in known)]
    if store.get_setting(_SETTING) != found:
        store.set_setting(_SETTING, found)
