"""Libraries that batchrun does without, unless somebody asks for what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from batchrun.errors import UsageError


@contextmanager
def needs_extra(
    what: str, install: str = "'runpod-batchrun[data]'", kind: type[UsageError] = UsageError
) -> Iterator[None]:
    """Import a library of the extra `data` in this block.

    Args:
        what: What needs the library, as the beginning of the message.
        install: What pip is given to install it.
        kind: The class of the error.

    Raises:
        UsageError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or "a library").partition(".")[0]
        raise kind(f"{what}, which needs {library}", f"pip install {install}") from error
