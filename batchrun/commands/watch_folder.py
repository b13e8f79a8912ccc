"""A watched folder: each file that arrives is run, one after another, and gets a record of its outcome.

Nothing in the folder is moved or written, except the lock. What is left to do is read from the two folders at each
scan, so a watch that was killed can be started again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from batchrun.commands.watch_queue import Entry, FileRecord, NoRecordError, Picture, Queue, Total
from batchrun.display.summary import Observer, Summary
from batchrun.errors import BatchrunError, StateError, StoppedError, UsageError
from batchrun.prompts.sources import is_prompt_file
from batchrun.results.writer import write_whole, writing
from batchrun.runs.locations import results_name
from batchrun.state.lock import Holder, StateLock, holder
from batchrun.state.reader import StateReader
from batchrun.state.stored_options import read_options

_LOOK_EVERY_S = 1.0
_LOOK_SHARE = 20
"""Scanning very many files takes time: the pause is at least 20 times as long as the scan."""
_LOCK = ".batchrun-watch"
_ENDINGS = (".done", ".failed")
_NAMES_SHOWN = 3
_LONGEST_ENDING = ".0-0123456789ab.jsonl"
"""The longest suffix that a file of a run adds to the name of its state file."""
_MOST_NAME_BYTES = 255
"""The longest file name on all common file systems."""


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """How the run of a file ended."""

    summary: Summary | None = None
    """None: the file was refused, and nothing was sent."""
    error: BatchrunError | None = None
    """Why it was refused, or stopped early."""
    is_for_all: bool = False
    """True if every later file would fail the same way."""

    def to_json(self) -> dict[str, Any]:
        """The error as JSON values; empty if there is none."""
        error = self.error
        return {"exit_code": error.exit_code, "reason": error.message, "hint": error.hint} if error else {}


@dataclass(frozen=True, slots=True)
class Task:
    """The run of a file."""

    path: Path
    results: Path

    @property
    def state(self) -> Path:
        """Its state file."""
        return self.results.with_name(self.results.name + ".state")


class Watch:
    """Watches a folder.

    Args:
        folder: Where the files arrive.
        output: Where their results go; not the same folder.
        settle_s: Seconds > 0 for which a file must not have changed before it is run.
        until_empty: Whether to return when every file has a record.
        observer: Receives a message for each file that is run, and about what the watch waits for.
        take: Runs a file.
        show: Called at the end of a file's run, with the file's name and its outcome.
        clock: Monotonic seconds.
        wall: UTC epoch seconds.
        pause: Sleeps for this many seconds.

    Raises:
        UsageError: the folders are unusable, or in use by another watch.
        OutputError: the output folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        *,
        settle_s: float,
        until_empty: bool,
        observer: Observer,
        take: Callable[[Task], FileOutcome],
        show: Callable[[str, FileOutcome], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
        pause: Callable[[float], None],
    ) -> None:
        _refuse_folders(folder, output)
        self._folder = folder
        self._output = output
        self._until_empty = until_empty
        self._observer = observer
        self._take = take
        self._show = show
        self._clock = clock
        self._wall = wall
        self._pause = pause
        self._queue = Queue(settle_s)
        self._records: dict[str, tuple[str, int, FileRecord]] = {}
        self._begun: dict[str, str] = {}
        self._unusable: dict[str, str] = {}
        self._told: set[object] = set()
        self._waits_for = ""

    def run(self) -> Total:
        """Watch until a signal, until no file can be run, or, with `until_empty`, until every file has a record.

        Raises:
            BatchrunError: the folders or a record in them are unusable, or batchrun has a defect.
        """
        with ExitStack() as stack:
            stack.callback(_lock(self._output).release)
            # A read-only folder is watched without a lock in it.
            if os.access(self._folder, os.W_OK):
                stack.callback(_lock(self._folder).release)
            try:
                return self._watch()
            except KeyboardInterrupt:
                return self._total("interrupted")

    def _watch(self) -> Total:
        while True:
            began = self._clock()
            picture = self._look()
            if picture.ready:
                ending = self._run(picture)
                if ending.summary is not None and ending.summary.outcome in ("interrupted", "cancelled"):
                    return self._total("interrupted", interrupted=ending.summary)
                if ending.is_for_all:
                    return self._total("stopped", ending.error)
            elif picture.is_empty and self._until_empty:
                return self._total("finished")
            else:
                self._tell_waiting(picture)
                self._pause(max(_LOOK_EVERY_S, _LOOK_SHARE * (self._clock() - began)))

    def _look(self) -> Picture:
        """Scan the folder, and compare the content of files whose size or time has changed."""
        while True:
            picture = self._picture()
            for entry in picture.unclear:
                known = self._records[entry.stem][2].sha256
                self._queue.compared(entry, is_same=known is not None and known == _digest(self._folder / entry.name))
            if not picture.unclear:
                self._tell_not_run(picture)
                return picture

    def _picture(self) -> Picture:
        entries = list(self._entries())
        names = {entry.name: entry for entry in _scan(self._output)}
        self._read_records(entries, names)
        records = {stem: record for stem, (_, _, record) in self._records.items()}
        states = {entry.stem: self._task(entry).state for entry in entries if entry.stem not in records}
        states = {stem: state for stem, state in states.items() if state.name in names}
        begun = {stem: self._begun.get(stem) or _begun_with(state) for stem, state in states.items()}
        self._begun = {stem: name for stem, name in begun.items() if name}
        busy = {stem for stem, state in states.items() if holder(state) is not None}
        return self._queue.look(entries, records, self._begun, busy, self._wall())

    def _entries(self) -> Iterator[Entry]:
        self._unusable.clear()
        for found in _scan(self._folder):
            if found.name.startswith(".") or not is_prompt_file(found.name):
                continue
            try:
                status = found.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                self._unusable[found.name] = error.strerror or "it cannot be read"
                continue
            entry = Entry(found.name, status.st_size, status.st_mtime_ns)
            if len(os.fsencode(self._task(entry).state.name + _LONGEST_ENDING)) > _MOST_NAME_BYTES:
                self._unusable[found.name] = "its name is too long, because the names of its results are even longer"
            elif stat.S_ISREG(status.st_mode):
                yield entry

    def _read_records(self, entries: list[Entry], names: dict[str, os.DirEntry[str]]) -> None:
        """Read the new records, and forget the removed ones, whose files are to be run again."""
        stems = {entry.stem for entry in entries}
        known, self._records = self._records, {}
        for stem in stems:
            for name in (stem + ending for ending in _ENDINGS):
                if name not in names or stem in self._records:
                    continue
                mtime_ns = names[name].stat().st_mtime_ns
                before = known.get(stem)
                is_known = before is not None and before[:2] == (name, mtime_ns)
                record = before[2] if before and is_known else _read_record(self._output / name)
                self._records[stem] = (name, mtime_ns, record)

    def _task(self, entry: Entry) -> Task:
        return Task(self._folder / entry.name, self._output / results_name(entry.name))

    def _run(self, picture: Picture) -> FileOutcome:
        entry, *others = picture.ready
        task = self._task(entry)
        is_resumed = entry.stem in self._begun
        self._waits_for = ""
        self._observer.message(
            f"{'resuming' if is_resumed else 'running'} {entry.shown}; files still queued: {len(others):,}"
        )
        # This record is about the file's earlier content. If we are killed after removing it, the run is resumed.
        outdated = self._output / f"{entry.stem}.failed"
        with writing(outdated):
            outdated.unlink(missing_ok=True)
        sha256, started_at = _digest(task.path), self._wall()
        ending = self._take(task)
        self._show(entry.shown, ending)
        is_over = ending.summary is None or ending.summary.outcome in ("finished", "stopped")
        if is_over and not ending.is_for_all:
            record = self._record(entry, ending, sha256, started_at)
            data = orjson.dumps(record.to_json(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            write_whole(self._output / (entry.stem + record.suffix), [data])
        return ending

    def _record(self, entry: Entry, ending: FileOutcome, sha256: str | None, started_at: float) -> FileRecord:
        summary, error = ending.summary, ending.error
        known: dict[str, Any] = {
            "file": entry.shown,
            "size_bytes": entry.size_bytes,
            "mtime_ns": entry.mtime_ns,
            "sha256": sha256,
            "reason": error.message if error else "",
            "hint": error.hint if error else "",
            "started_at": started_at,
            "ended_at": self._wall(),
        }
        if summary is None:
            return FileRecord(**known, outcome="refused", exit_code=error.exit_code if error else 1)
        data = summary.to_json()
        return FileRecord(
            **known,
            outcome="stopped" if summary.outcome == "stopped" else "finished",
            exit_code=summary.exit_code,
            rows={name: data[name] for name in ("total", "succeeded", "failed", "held", "not_run", "in_flight")},
            files={name: data[name] for name in ("results", "errors", "state", "manifest")},
        )

    def _tell_waiting(self, picture: Picture) -> None:
        """Say what the watch waits for, once for each reason."""
        waits = [
            _listed(entries) + reason
            for entries, reason in (
                (picture.settling, " to be written completely"),
                (picture.busy, ", which another process is running"),
            )
            if entries
        ]
        text = f"waiting for {' and '.join(waits) or f'files in {self._folder}'}; {len(picture.over):,} done"
        if text != self._waits_for:
            self._waits_for = text
            self._observer.message(text)

    def _tell_not_run(self, picture: Picture) -> None:
        """Say why a file is skipped, and what to do; once, unless it changes again."""
        for name, reason in self._unusable.items():
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            self._tell_once((name, reason), f"{shown} is skipped: {reason}; rename it, or remove it")
        for entry in picture.changed:
            record = self._output / self._records[entry.stem][0]
            self._tell_once(
                entry,
                f"{entry.shown} is skipped: it has changed since it was run; rename it to run it as a new file, or"
                f" remove {record} to run only its new lines",
            )
        for entry in picture.clashing:
            results = self._task(entry).results
            self._tell_once(entry, f"{entry.shown} is skipped: {results} belongs to another file; rename it")

    def _tell_once(self, entry: object, text: str) -> None:
        if entry not in self._told:
            self._told.add(entry)
            self._observer.message(text)

    def _total(
        self,
        outcome: Literal["finished", "stopped", "interrupted"],
        error: BatchrunError | None = None,
        interrupted: Summary | None = None,
    ) -> Total:
        picture = self._picture()
        records = [record for _, _, record in self._records.values()]
        return Total(
            outcome,
            done=sum(record.is_done for record in records),
            incomplete=sum(record.is_done and record.exit_code != 0 for record in records),
            failed=sum(not record.is_done for record in records),
            not_run=len(picture.changed) + len(picture.clashing) + len(self._unusable),
            left=len(picture.ready) + len(picture.settling) + len(picture.busy),
            rows=sum(record.rows.get("total", 0) for record in records) + (interrupted.total if interrupted else 0),
            succeeded=sum(record.rows.get("succeeded", 0) for record in records)
            + (interrupted.succeeded if interrupted else 0),
            reason=error.message if error else "",
            hint=error.hint if error else "",
        )


def _refuse_folders(folder: Path, output: Path) -> None:
    """Refuse unusable folders.

    Raises:
        UsageError: one is not a folder, or both are the same.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "give the folder in which the files arrive")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is not a folder", "give a folder: each file gets its own results there")
    if output.exists() and output.samefile(folder):
        raise UsageError(
            f"--output {output} is the watched folder: the results would be run as inputs",
            f"give another folder, for example {folder / 'results'}",
        )


def _lock(folder: Path) -> StateLock:
    place = folder / _LOCK
    try:
        return StateLock(place)
    except StateError as error:
        raise StateError(
            f"{folder} is in use by another watch ({holder(place) or Holder(0)})",
            "one watch is enough: it runs every file that arrives",
        ) from error


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise StoppedError(
            f"{folder}: the folder cannot be read: {error.strerror}",
            "make sure that it exists, then give the same command again",
        ) from error


def _read_record(path: Path) -> FileRecord:
    try:
        return FileRecord.from_json(orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError, NoRecordError) as error:
        raise StateError(
            f"{path} is not a record of batchrun watch", "move it away, or give another --output"
        ) from error


def _begun_with(state: Path) -> str:
    """The name of the input file of a state file; empty if it cannot be read, which opening its run will report."""
    try:
        with StateReader(state) as store:
            return Path(read_options(store).inputs[0]).name
    except (BatchrunError, IndexError):
        return ""


def _digest(path: Path) -> str | None:
    """The SHA-256 of a file; None if it cannot be read, which its run will report."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _listed(entries: list[Entry]) -> str:
    names = ", ".join(entry.shown for entry in entries[:_NAMES_SHOWN])
    more = len(entries) - _NAMES_SHOWN
    return names + (f" and {more:,} more" if more > 0 else "")
