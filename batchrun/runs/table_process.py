"""The program of a process that reads rows for a table; see `table_workers` for what is sent to it and back.

It is started by its path, and then told where batchrun is. It ends when its stdin does.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
from typing import Any, BinaryIO

LENGTH_BYTES = 8


def send(pipe: BinaryIO, value: Any) -> None:
    """Write a value to a pipe."""
    send_data(pipe, marshal.dumps(value))


def send_data(pipe: BinaryIO, data: bytes) -> None:
    """Write what `marshal` has written to a pipe."""
    pipe.write(len(data).to_bytes(LENGTH_BYTES, "big"))
    pipe.write(data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """Read a value from a pipe.

    Raises:
        EOFError: the other side has closed it.
    """
    head = pipe.read(LENGTH_BYTES)
    length = int.from_bytes(head, "big")
    data = pipe.read(length) if len(head) == LENGTH_BYTES else b""
    if not data or len(data) < length:
        raise EOFError
    return marshal.loads(data)  # noqa: S302 - of our own process


def _serve() -> None:
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    sys.path[:] = receive(asked)
    from batchrun.errors import BatchrunError  # noqa: PLC0415 - found only now
    from batchrun.runs.table_reading import TableReading  # noqa: PLC0415

    gc.freeze()
    gc.set_threshold(20_000)
    reading = TableReading()
    send(answers, ("found", None))
    while True:
        task, value = receive(asked)
        answer: tuple[Any, ...]
        try:
            answer = "found", getattr(reading, task)(value)
        except BatchrunError as error:
            answer = "error", type(error).__name__, error.message, error.hint
        except MemoryError:
            answer = "error", "OutputError", "there is not enough memory to read the rows", ""
        send(answers, answer)


if __name__ == "__main__":
    try:
        _serve()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the process that started this one is gone
