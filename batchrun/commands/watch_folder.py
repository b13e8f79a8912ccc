"""A watched folder: each file that arrives is one run, one after the other, with a record of what became of it.

Nothing in the folder is moved or written, but for the lock. What is to be done is read from the two folders at every
look, so that a watch which was killed goes on from what stands there.
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
"""A look at very many files takes time: it is made so seldom that it takes a twentieth of it."""
_LOCK = ".batchrun-watch"
_ENDINGS = (".done", ".failed")
_NAMES_SHOWN = 3
_LONGEST_ENDING = ".0-0123456789ab.jsonl"
"""Of the files of a run, behind the name of its state file."""
_MOST_NAME_BYTES = 255
"""Of a file's name, on every usual file system."""


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """How the run of a file ended."""

    summary: Summary | None = None
    """None: it was refused, and nothing was sent."""
    error: BatchrunError | None = None
    """Why it was refused, or stopped early."""
    is_for_all: bool = False
    """Whether every further file would end like that."""

    def to_json(self) -> dict[str, Any]:
        """Why, as JSON values."""
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
        output: Where their results go, another folder.
        settle_s: How long a file must have been the same to be whole, seconds > 0.
        until_empty: Whether to end when no file is left without a record.
        observer: Told what is taken up and what is waited for.
        take: Runs a file.
        show: Shown how a file's run ended, with the file's name.
        clock: Seconds that never go back.
        wall: UTC epoch seconds.
        pause: Waits for seconds.

    Raises:
        UsageError: the folders cannot be these, or another watch has one of them.
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
        """Watch until nothing is left, if that was asked for, until a signal, or until no file can be run.

        Raises:
            BatchrunError: the folders or a record in them cannot be used, or a defect.
        """
        with ExitStack() as stack:
            stack.callback(_lock(self._output).release)
            # A folder that can only be read is watched without a lock of its own.
            if os.access(self._folder, os.W_OK):
                stack.callback(_lock(self._folder).release)
            try:
                return self._go_on()
            except KeyboardInterrupt:
                return self._total("interrupted")

    def _go_on(self) -> Total:
        while True:
            began = self._clock()
            picture = self._look()
            if picture.ready:
                ending = self._run(picture)
                if ending.summary is not None and ending.summary.outcome in ("interrupted", "cancelled"):
                    return self._total("interrupted")
                if ending.is_for_all:
                    return self._total("stopped", ending.error)
            elif picture.is_empty and self._until_empty:
                return self._total("finished")
            else:
                self._tell_waiting(picture)
                self._pause(max(_LOOK_EVERY_S, _LOOK_SHARE * (self._clock() - began)))

    def _look(self) -> Picture:
        """The folder as it is now, with every doubt about content settled."""
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
                self._unusable[found.name] = error.strerror or "it cannot be looked at"
                continue
            entry = Entry(found.name, status.st_size, status.st_mtime_ns)
            if len(os.fsencode(self._task(entry).state.name + _LONGEST_ENDING)) > _MOST_NAME_BYTES:
                self._unusable[found.name] = "its name is too long: those of its results are even longer"
            elif stat.S_ISREG(status.st_mode):
                yield entry

    def _read_records(self, entries: list[Entry], names: dict[str, os.DirEntry[str]]) -> None:
        """Read the records that are new, and forget those that were removed: their files are to be run again."""
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
        goes_on = entry.stem in self._begun
        self._waits_for = ""
        self._observer.message(
            f"{entry.shown}: {'gone on with' if goes_on else 'taken up'}; {len(others):,} more in the queue"
        )
        # It tells of what the file said before. Without it a kill from here on leaves a run to go on with.
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
        said = summary.to_json()
        return FileRecord(
            **known,
            outcome="stopped" if summary.outcome == "stopped" else "finished",
            exit_code=summary.exit_code,
            rows={name: said[name] for name in ("total", "succeeded", "failed", "held", "not_run", "in_flight")},
            files={name: said[name] for name in ("results", "errors", "state", "manifest")},
        )

    def _tell_waiting(self, picture: Picture) -> None:
        """Say what is waited for, once for each reason."""
        waits = [
            _listed(entries) + reason
            for entries, reason in (
                (picture.settling, " to be written to the end"),
                (picture.busy, ", which another process runs"),
            )
            if entries
        ]
        text = f"waiting for {' and '.join(waits) or f'files in {self._folder}'}; {len(picture.over):,} are over"
        if text != self._waits_for:
            self._waits_for = text
            self._observer.message(text)

    def _tell_not_run(self, picture: Picture) -> None:
        """Say of each file that will not be run why, and what to do; once, as long as it looks like that."""
        for name, reason in self._unusable.items():
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            self._tell_once((name, reason), f"{shown} is not run: {reason}; rename it, or remove it")
        for entry in picture.changed:
            record = self._output / self._records[entry.stem][0]
            self._tell_once(
                entry,
                f"{entry.shown} has changed since it was run, and is not run again: give it another name to run it as a"
                f" new file, or remove {record} to run the lines that are new",
            )
        for entry in picture.clashing:
            results = self._task(entry).results
            self._tell_once(entry, f"{entry.shown} is not run: {results} is that of another file; give it another name")

    def _tell_once(self, entry: object, text: str) -> None:
        if entry not in self._told:
            self._told.add(entry)
            self._observer.message(text)

    def _total(
        self, outcome: Literal["finished", "stopped", "interrupted"], error: BatchrunError | None = None
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
            rows=sum(record.rows.get("total", 0) for record in records),
            succeeded=sum(record.rows.get("succeeded", 0) for record in records),
            reason=error.message if error else "",
            hint=error.hint if error else "",
        )


def _refuse_folders(folder: Path, output: Path) -> None:
    """Refuse folders that a watch cannot have.

    Raises:
        UsageError: they are no folders, or the same.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder", "give the folder in which the files arrive")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is no folder", "each file gets its own results: give a folder for them")
    if output.exists() and output.samefile(folder):
        raise UsageError(
            f"--output {output} is the watched folder: what is written there would be taken up",
            f"give another folder, for example {folder / 'results'}",
        )


def _lock(folder: Path) -> StateLock:
    place = folder / _LOCK
    try:
        return StateLock(place)
    except StateError as error:
        raise StateError(
            f"{folder} is in use by another watch ({holder(place) or Holder(0)})",
            "one is enough: it takes up whatever arrives",
        ) from error


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise StoppedError(
            f"{folder}: the folder cannot be read: {error.strerror}", "see that it is there, then run the same command"
        ) from error


def _read_record(path: Path) -> FileRecord:
    try:
        return FileRecord.from_json(orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError, NoRecordError) as error:
        raise StateError(
            f"{path} is no record of a watch", "move it away, or give another --output: it is not overwritten"
        ) from error


def _begun_with(state: Path) -> str:
    """The name of the file that a state file is of; empty when it does not say, which its run will."""
    try:
        with StateReader(state) as store:
            return Path(read_options(store).inputs[0]).name
    except (BatchrunError, IndexError):
        return ""


def _digest(path: Path) -> str | None:
    """The SHA-256 of a file; None when it cannot be read, which its run will say better."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _listed(entries: list[Entry]) -> str:
    names = ", ".join(entry.shown for entry in entries[:_NAMES_SHOWN])
    more = len(entries) - _NAMES_SHOWN
    return names + (f" and {more:,} more" if more > 0 else "")
