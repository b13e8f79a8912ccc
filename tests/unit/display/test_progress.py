from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios
import threading
from dataclasses import replace

import orjson
import pytest

from batchrun.display.printer import Printer
from batchrun.display.progress import BarObserver, JsonObserver, NullObserver, PlainObserver, make_observer
from batchrun.display.summary import Observer, Snapshot

HALF = Snapshot(
    total=10_000,
    succeeded=4_997,
    failed=3,
    held=0,
    pending=4_588,
    waiting=12,
    queued=300,
    running=100,
    retries=4,
    unconfirmed=0,
    ended_in_session=5_000,
    elapsed_s=60.0,
    rows_per_s=12.5,
    tokens_per_s=850.0,
    input_tokens=9,
    output_tokens=23,
    window=400,
    jobs=400,
    note="",
)
MODES = ["bar", "plain", "json"]


class Terminal:
    """A real pseudo-terminal of a given width, and all that was written to it."""

    def __init__(self, columns: int) -> None:
        self._screen, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(side, "w", encoding="utf-8")
        self.printer = Printer(self.stream)
        self._seen = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while block := os.read(self._screen, 65_536):
                self._seen += block
        except OSError:  # the kernel's word for the end of a terminal
            return

    def text(self) -> str:
        self.printer.settle()
        self.stream.close()
        self._reader.join()
        os.close(self._screen)
        return self._seen.decode()


def play(observer: Observer, printer: Printer, *snapshots: Snapshot) -> None:
    """A run that is shown to a reader who keeps up with it."""
    observer.begin(HALF)
    printer.settle()
    observer.message("one worker is throttled")
    for snapshot in snapshots:
        printer.settle()
        observer.update(snapshot)
    printer.settle()
    observer.end(replace(HALF, succeeded=9_997, pending=0, queued=0, running=0, waiting=0))
    printer.settle()


def show(mode: str, printer: Printer, *snapshots: Snapshot) -> None:
    play(make_observer(mode, printer), printer, *snapshots)


def later(elapsed_s: float) -> Snapshot:
    return replace(HALF, elapsed_s=elapsed_s)


def test_auto_is_a_bar_on_a_terminal_and_lines_elsewhere():
    terminal = Terminal(80)
    assert isinstance(make_observer("auto", terminal.stream), BarObserver)
    terminal.text()
    assert isinstance(make_observer("auto", io.StringIO()), PlainObserver)
    assert isinstance(make_observer("json", io.StringIO()), JsonObserver)
    assert isinstance(make_observer("none", io.StringIO()), NullObserver)


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("note", ["", "no network: waiting for it"])
def test_the_bar_fits_its_terminal_and_cuts_no_figure_in_the_middle(columns, note):
    terminal = Terminal(columns)
    show("bar", terminal.printer, replace(HALF, note=note))
    frames = [frame for frame in terminal.text().replace("\n", "\r").split("\r") if "|" in frame]
    assert len(frames) >= 3
    assert all(len(frame) <= columns for frame in frames)
    busy = {
        "12.5/s",
        "ETA 6 min 40 s",
        "3 failed",
        "400 in flight",
        "300 queued",
        "window 400",
        "850 tok/s",
        "12 to retry",
    }
    at_the_end = {"0 in flight", "0 queued"}
    shown = {figure for frame in frames[:-1] for figure in frame.split("| ")[1].strip().split(", ")[1:]}
    assert shown <= {*busy, *at_the_end, note}
    assert "12.5/s" in shown
    if columns >= 80:
        assert "3 failed" in shown
        assert not note or note in shown
    if columns == 200:
        assert shown >= busy


def test_a_run_that_was_stopped_has_no_time_left():
    stream = io.StringIO()
    show("plain", Printer(stream), replace(HALF, queued=0, running=0))
    assert "12.5/s, 3 failed, 0 in flight" in stream.getvalue()


def test_the_bar_starts_at_what_was_done_before():
    terminal = Terminal(80)
    show("bar", terminal.printer)
    first = next(frame for frame in terminal.text().split("\r") if "5,000/10,000" in frame)
    assert first.strip().startswith("50%")


def test_a_message_is_a_line_of_its_own_above_the_bar():
    terminal = Terminal(80)
    show("bar", terminal.printer, HALF)
    lines = terminal.text().split("\n")
    assert [line.split("\r")[-2].strip() for line in lines if "throttled" in line] == ["one worker is throttled"]


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_that_is_gone_does_not_end_the_run(mode):
    read_end, write_end = os.pipe()
    os.close(read_end)
    stream = os.fdopen(write_end, "w", buffering=1)
    show(mode, Printer(stream), HALF, later(120))
    stream.close()  # without an error: nothing is left in its buffer


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_stream_does_not_end_the_run(mode):
    stream = io.StringIO()
    printer = Printer(stream)
    observer = make_observer(mode, printer)
    observer.begin(HALF)
    printer.settle()
    stream.close()
    observer.update(later(120))
    observer.message("unheard")
    observer.end(HALF)
    printer.settle()


def test_a_character_that_the_stream_cannot_write_does_not_silence_it():
    sink = io.BytesIO()
    printer = Printer(io.TextIOWrapper(sink, encoding="ascii"))
    observer = make_observer("plain", printer)
    observer.message("no room on /tmp/überlauf")
    observer.message("still here")
    printer.settle()
    assert sink.getvalue() == b"no room on /tmp/\\xfcberlauf\nstill here\n"


def test_plain_lines_come_at_the_ends_and_every_thirty_seconds():
    stream = io.StringIO()
    show("plain", Printer(stream), *(later(elapsed_s / 10) for elapsed_s in range(1_000)))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("10,000 rows, 5,000")
    assert lines[1] == "one worker is throttled"
    assert [line.split(":")[0] for line in lines[2:]] == ["30 s", "1 min 00 s", "1 min 30 s", "1 min 00 s"]
    assert (
        "5,000/10,000, 12.5/s, ETA 6 min 40 s, 3 failed, 400 in flight, 300 queued, window 400, 850 tok/s" in lines[2]
    )


def test_json_is_one_event_a_line_and_at_most_one_progress_a_second():
    stream = io.StringIO()
    show("json", Printer(stream), *(later(elapsed_s / 10) for elapsed_s in range(41)))
    events = [orjson.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["begin", "message", *["progress"] * 5, "end"]
    assert [event["elapsed_s"] for event in events if event["event"] == "progress"] == [0, 1, 2, 3, 4]
    assert events[0] | {"done": 5_000, "in_flight": 400, "eta_s": 400.0, "total": 10_000} == events[0]
    assert events[1]["message"] == "one worker is throttled"


@pytest.mark.parametrize("mode", ["plain", "json"])
def test_a_second_run_is_shown_like_the_first(mode):
    stream = io.StringIO()
    printer = Printer(stream)
    observer = make_observer(mode, printer)
    for _ in range(2):
        play(observer, printer, *(later(elapsed_s) for elapsed_s in range(100)))
    lines = stream.getvalue().splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_nothing_is_shown_when_nothing_is_asked_for():
    stream = io.StringIO()
    show("none", Printer(stream), HALF)
    assert stream.getvalue() == ""


def test_why_nothing_continues_is_cut_rather_than_left_out():
    terminal = Terminal(80)
    why = "waiting for the endpoint: no connection: api.runpod.ai: Temporary failure in name resolution"
    show("bar", terminal.printer, replace(HALF, note=why))
    shown = terminal.text()
    assert "waiting for the endpoint: no c" in shown
    assert "…" in shown
