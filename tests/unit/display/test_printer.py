"""A stream that nobody reads holds up nobody, and everything is said in order once it is read."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
import threading
import time

import pytest

from batchrun.display.printer import Printer, printing_stderr
from tests.support.terminals import stalled_terminal


class Pipe:
    """A pipe that is read when a test says so."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w", encoding="utf-8")
        self.printer = Printer(self.stream)
        self._seen = b""

    def fill(self) -> int:
        """Say things until the pipe takes no more; how many."""
        count = 0
        while select.select([], [self.stream], [], 0.2)[1]:
            for _ in range(100):
                self.printer.write(f"message {count}\n")
                count += 1
            self.printer.settle()
        return count

    def text(self) -> str:
        """All that was said, read to the end."""
        thread = threading.Thread(target=self._read)
        thread.start()
        self.printer.settle()
        self.stream.close()
        thread.join()
        return self._seen.decode()

    def _read(self) -> None:
        while block := os.read(self.reader, 65_536):
            self._seen += block
        os.close(self.reader)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchrun.display.printer._STALLED_S", 0.2)
    return Pipe()


def test_a_full_pipe_holds_up_nobody_and_is_given_up_at_the_end(pipe: Pipe):
    pipe.fill()
    began = time.monotonic()
    for n in range(10_000):
        pipe.printer.write(f"more {n}\n")
        pipe.printer.status(f"at {n}")
    assert time.monotonic() - began < 2
    began = time.monotonic()
    pipe.printer.settle()
    assert 0.1 < time.monotonic() - began < 2
    pipe.text()


def test_a_closed_printer_has_written_all_and_holds_the_stream_no_longer(pipe: Pipe):
    pipe.printer.write("the last words\n")
    pipe.printer.close()
    assert pipe.stream.closed
    pipe.printer.write("too late\n")
    pipe.printer.settle()
    pipe.printer.close()
    assert pipe.text() == "the last words\n"


def test_a_stream_whose_reader_is_stalled_is_not_closed(pipe: Pipe):
    pipe.fill()
    pipe.printer.write("more " * 10_000 + "the end\n")
    pipe.printer.close()
    assert not pipe.stream.closed
    assert pipe.text().endswith("the end\n")


def test_what_was_said_while_nobody_read_comes_whole_and_in_order(pipe: Pipe):
    count = pipe.fill()
    for n in range(count, count + 1000):
        pipe.printer.write(f"message {n}\n")
    assert pipe.text().splitlines() == [f"message {n}" for n in range(count + 1000)]


def test_of_too_many_messages_the_oldest_are_dropped_and_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("batchrun.display.printer._MOST_WAITING_CHARS", 2000)
    count = pipe.fill()
    for n in range(count, count + 1000):
        pipe.printer.write(f"message {n}\n")
    lines = pipe.text().splitlines()
    number, dropped = 0, 0
    for line in lines:
        if found := re.fullmatch(r"messages dropped: ([\d,]+)", line):
            dropped += int(found[1].replace(",", ""))
        else:
            assert line == f"message {number + dropped}"
            number += 1
    assert number + dropped == count + 1000
    assert dropped > 500
    assert lines[-1] == f"message {count + 999}"


def test_only_the_newest_status_is_drawn_when_nobody_has_read_the_others(pipe: Pipe):
    pipe.fill()
    for n in range(100):
        pipe.printer.status(f"<{n}>")
    pipe.printer.write("a message\n")
    shown = re.findall(r"<(\d+)>", pipe.text())
    assert shown[-1] == "99"
    assert len(shown) <= 2


def test_a_shorter_status_leaves_nothing_of_a_longer_one():
    stream = io.StringIO()
    printer = Printer(stream)
    for line in ("a long one", "short", ""):
        printer.status(line)
        printer.settle()
    assert stream.getvalue() == "\ra long one\rshort     \r     \r"


def test_a_message_erases_the_status_and_the_status_is_drawn_again():
    stream = io.StringIO()
    printer = Printer(stream)
    printer.status("12%")
    printer.settle()
    printer.write("a message\n")
    printer.settle()
    assert stream.getvalue() == "\r12%\r   \ra message\n\r12%"


def test_half_a_line_is_not_mixed_with_the_status():
    stream = io.StringIO()
    printer = Printer(stream)
    printer.status("12%")
    printer.settle()
    for half in ("one ", "line\n"):
        printer.write(half)
        printer.settle()
    assert stream.getvalue() == "\r12%\r   \rone line\n\r12%"


def test_what_a_full_disk_did_not_take_is_counted_and_told_when_there_is_room():
    class Disk(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    printer = Printer(disk)
    for n in range(3):
        printer.write(f"{n}\n")
        printer.settle()
    disk.is_full = False
    printer.write("3\n")
    printer.settle()
    assert disk.getvalue() == "messages dropped: 3\n3\n"


def test_a_terminal_that_another_program_made_non_blocking_loses_nothing(pipe: Pipe):
    os.set_blocking(pipe.stream.fileno(), False)
    for n in range(20_000):
        pipe.printer.write(f"message {n}\n")
    assert pipe.text().splitlines() == [f"message {n}" for n in range(20_000)]


def test_a_closed_stderr_is_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", None)
    with printing_stderr():
        print("unheard", file=sys.stderr)
        assert not sys.stderr.isatty()
    assert sys.stderr is None


def test_all_that_a_process_says_on_stderr_goes_through_the_printer_and_is_there_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with printing_stderr():
        for n in range(100):
            print(n, file=sys.stderr)
    assert stream.getvalue().split() == [str(n) for n in range(100)]
    assert sys.stderr is stream


FILLED = """
import os, sys
from batchrun.display.printer import printing_stderr
with printing_stderr():
    for n in range(10_000):
        print("a line that nobody reads", n, file=sys.stderr)
    os.write(1, b"said\\n")
    sys.exit(7)
"""


def test_a_process_on_a_terminal_that_nobody_reads_ends_with_its_own_exit_code():
    with stalled_terminal() as side:
        process = subprocess.Popen([sys.executable, "-c", FILLED], stderr=side, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"said\n"
        began = time.monotonic()
        assert process.wait(20) == 7
        assert time.monotonic() - began < 10
        process.stdout.close()
