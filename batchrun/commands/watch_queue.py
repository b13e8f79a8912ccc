"""Decides which file in a watched folder is run next. Pure: entries, records and the time in, a picture out.

A file is complete once its size and time have not changed for a while. One that was written elsewhere and renamed into
the folder is complete at once. Results are named after a file's stem, its name without the suffix, so of two files with
the same stem only one can be run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from batchrun.prompts.forms import stem_of
from batchrun.results.record import iso_time

RECORD_VERSION = 1
"""Version of the record's format."""

Became = Literal["finished", "stopped", "refused"]
"""The outcome of a file: its run finished, its run stopped early, or nothing of it was sent."""


class Entry(NamedTuple):
    """A file in the watched folder."""

    name: str
    size_bytes: int
    mtime_ns: int

    @property
    def stem(self) -> str:
        """The name without suffixes, after which results and record are named: `haikus` for `haikus.jsonl.gz`."""
        return stem_of(self.name)

    @property
    def shown(self) -> str:
        """The name as printable text, even if it is not valid UTF-8."""
        return os.fsencode(self.name).decode("utf-8", "backslashreplace")

    @property
    def arrival(self) -> tuple[int, str]:
        """Sort key: order of arrival."""
        return self.mtime_ns, self.name


class NoRecordError(ValueError):
    """A file that is named like a record is not one."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The outcome of a file, stored beside its results."""

    file: str
    """Its name, see `Entry.shown`."""
    size_bytes: int
    mtime_ns: int
    sha256: str | None
    """The file's digest when its run started; None if it could not be read."""
    outcome: Became
    exit_code: int
    reason: str = ""
    """Why it stopped or was refused."""
    hint: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    """Counts of rows: total, succeeded, failed, held, not_run, in_flight; empty if the file was refused."""
    started_at: float = 0.0
    """Start of the file's last session, in UTC epoch seconds."""
    ended_at: float = 0.0
    files: dict[str, Any] = field(default_factory=dict)
    """Paths of results, errors, state and manifest."""

    @property
    def is_done(self) -> bool:
        """Whether its run finished, even if rows failed."""
        return self.outcome == "finished"

    @property
    def suffix(self) -> str:
        """The suffix of the record's name, after the file's stem."""
        return ".done" if self.is_done else ".failed"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        data = asdict(self)
        of_input = {name: data.pop(name) for name in ("file", "size_bytes", "mtime_ns", "sha256")}
        files = data.pop("files")
        times = {name: iso_time(data.pop(name)) for name in ("started_at", "ended_at")}
        return {"record_version": RECORD_VERSION, **data, "input": of_input, **times, **files}

    @classmethod
    def from_json(cls, data: Any) -> FileRecord:
        """Parse a record; times and paths are left out.

        Raises:
            NoRecordError: it is not a record, or of a later version.
        """
        try:
            if data["record_version"] != RECORD_VERSION:
                raise NoRecordError
            of_input = data["input"]
            return cls(
                file=str(of_input["file"]),
                size_bytes=int(of_input["size_bytes"]),
                mtime_ns=int(of_input["mtime_ns"]),
                sha256=of_input["sha256"],
                outcome=data["outcome"],
                exit_code=int(data["exit_code"]),
                reason=str(data["reason"]),
                rows={str(name): int(count) for name, count in data["rows"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NoRecordError from error


@dataclass(frozen=True, slots=True)
class Picture:
    """The folder at one moment: each file is in exactly one of these lists."""

    ready: list[Entry] = field(default_factory=list)
    """To be run, in this order: interrupted ones first, then the others in order of arrival."""
    settling: list[Entry] = field(default_factory=list)
    """Changed recently: may still be being written."""
    busy: list[Entry] = field(default_factory=list)
    """Being run by another process."""
    unclear: list[Entry] = field(default_factory=list)
    """Have a record with another size or time: their content must be compared with its digest."""
    over: list[Entry] = field(default_factory=list)
    """Have a record."""
    changed: list[Entry] = field(default_factory=list)
    """Changed since their run finished."""
    clashing: list[Entry] = field(default_factory=list)
    """Have the same stem, and so the same results file, as another file."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing left to run or to wait for."""
        return not (self.ready or self.settling or self.busy or self.unclear)


class Queue:
    """Remembers since when each file has been unchanged.

    Args:
        settle_s: Seconds > 0 for which a file must not have changed before it is run.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[Entry, float] = {}
        self._is_same: dict[Entry, bool] = {}

    def compared(self, entry: Entry, *, is_same: bool) -> None:
        """Set whether the content of an unclear file is the same as in its record."""
        self._is_same[entry] = is_same

    def look(
        self,
        entries: Iterable[Entry],
        records: Mapping[str, FileRecord],
        begun: Mapping[str, str],
        busy: Collection[str],
        now: float,
    ) -> Picture:
        """Sort the files into the lists of a picture.

        Args:
            entries: The files in the folder.
            records: Stem -> the file's record.
            begun: Stem -> the name of the input file, where there is a state file but no record.
            busy: Stems whose state file is in use by another process.
            now: UTC epoch seconds.
        """
        found = sorted(entries, key=lambda entry: entry.arrival)
        # A file that was already older when it was first seen has not been written to since.
        self._since = {entry: self._since.get(entry, min(now, entry.mtime_ns / 1e9)) for entry in found}
        self._is_same = {entry: same for entry, same in self._is_same.items() if entry in self._since}
        picture, owners = Picture(), _owners(found, records, begun)
        for entry in found:
            if entry.shown != owners[entry.stem]:
                picture.clashing.append(entry)
            else:
                self._place(picture, entry, records.get(entry.stem), is_busy=entry.stem in busy, now=now)
        picture.ready.sort(key=lambda entry: (entry.stem in records or entry.stem not in begun, entry.arrival))
        return picture

    def _place(self, picture: Picture, entry: Entry, record: FileRecord | None, *, is_busy: bool, now: float) -> None:
        is_complete = now - self._since[entry] >= self._settle_s
        is_same = self._is_same.get(entry)
        if record and (is_same or (record.size_bytes, record.mtime_ns) == (entry.size_bytes, entry.mtime_ns)):
            picture.over.append(entry)
        elif is_busy:
            picture.busy.append(entry)
        elif not is_complete:
            picture.settling.append(entry)
        elif record and is_same is None:
            picture.unclear.append(entry)
        elif record and record.is_done:
            picture.changed.append(entry)
        else:
            picture.ready.append(entry)


def _owners(found: list[Entry], records: Mapping[str, FileRecord], begun: Mapping[str, str]) -> dict[str, str]:
    """Stem -> the file that owns its results: the one that has been run, else the first to arrive."""
    owners: dict[str, str] = {}
    for entry in found:
        if entry.stem not in owners:
            record = records.get(entry.stem)
            owners[entry.stem] = record.file if record else begun.get(entry.stem, entry.shown)
    return owners


@dataclass(frozen=True, slots=True)
class Total:
    """The totals of a watch, over the records of all files in the folder, whenever they were run.

    The rows of a run that was interrupted count as well.
    """

    outcome: Literal["finished", "stopped", "interrupted"]
    done: int
    """Files whose run finished."""
    incomplete: int
    """Those of them with rows that did not succeed."""
    failed: int
    """Files whose run stopped early, or that were refused."""
    not_run: int
    """Files that are skipped: changed since their run, with the stem of another file, or unusable."""
    left: int
    """Files without a record."""
    rows: int
    succeeded: int
    reason: str = ""
    hint: str = ""

    @property
    def exit_code(self) -> int:
        """0: all rows succeeded; 3: some did not; 4: stopped, or a file failed or was skipped; 130: interrupted."""
        if self.outcome == "interrupted":
            return 130
        if self.outcome == "stopped" or self.failed or self.not_run:
            return 4
        return 3 if self.incomplete else 0

    def __str__(self) -> str:
        """One line for the user."""
        parts = [f"{self.done:,} done" + (f" ({self.incomplete:,} with failed rows)" if self.incomplete else "")]
        others = (("failed", self.failed), ("skipped", self.not_run), ("left", self.left))
        parts += [f"{count:,} {name}" for name, count in others if count]
        return f"watch {self.outcome}: files: {', '.join(parts)}; {self.succeeded:,} of {self.rows:,} rows succeeded"

    def to_json(self) -> dict[str, Any]:
        """The total as JSON values."""
        return {**asdict(self), "exit_code": self.exit_code}
