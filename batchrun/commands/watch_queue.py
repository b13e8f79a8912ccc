"""Which of the files in a watched folder comes next. Pure: entries, records and the time in, a picture out.

A file is whole once its size and time have not changed for a while; one that was written elsewhere and renamed into
the folder has lain still before, and is whole at once. Files are named by what is left of their name without the
ending, because their results are: of two files with the same such stem one alone can be run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from batchrun.results.record import iso_time

RECORD_VERSION = 1
"""Of the record's shape."""

Became = Literal["finished", "stopped", "refused"]
"""What became of a file: its run ended, its run stopped early, or nothing of it was sent."""


class Entry(NamedTuple):
    """A file in the folder as it looks now."""

    name: str
    size_bytes: int
    mtime_ns: int

    @property
    def stem(self) -> str:
        """What its results and its record are named after: `haikus` for `haikus.jsonl` and for `haikus.jsonl.gz`."""
        return self.name.removesuffix(".gz").removesuffix(".jsonl")

    @property
    def shown(self) -> str:
        """The name as text that can be written anywhere, also where it is no valid UTF-8."""
        return os.fsencode(self.name).decode("utf-8", "backslashreplace")

    @property
    def arrival(self) -> tuple[int, str]:
        """Sorts files by when they came."""
        return self.mtime_ns, self.name


class NoRecordError(ValueError):
    """A file that bears the name of a record is none."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What became of a file, kept beside its results."""

    file: str
    """Its name as shown."""
    size_bytes: int
    mtime_ns: int
    sha256: str | None
    """Of the file as it was taken up; None when it could not be read."""
    outcome: Became
    exit_code: int
    reason: str = ""
    """Why it stopped or was refused."""
    hint: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    """Counts of rows: total, succeeded, failed, held, not_run, in_flight; empty when it was refused."""
    started_at: float = 0.0
    """UTC epoch seconds, of the session that ended it."""
    ended_at: float = 0.0
    files: dict[str, Any] = field(default_factory=dict)
    """Where results, errors, state and manifest stand."""

    @property
    def is_done(self) -> bool:
        """Whether its run came to its end, whatever became of single rows."""
        return self.outcome == "finished"

    @property
    def suffix(self) -> str:
        """What its name ends in, behind the file's stem."""
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
        """What a record says of its file; when and where is for people.

        Raises:
            NoRecordError: it is no record, or one of a later version.
        """
        try:
            if data["record_version"] != RECORD_VERSION:
                raise NoRecordError
            asked = data["input"]
            return cls(
                file=str(asked["file"]),
                size_bytes=int(asked["size_bytes"]),
                mtime_ns=int(asked["mtime_ns"]),
                sha256=asked["sha256"],
                outcome=data["outcome"],
                exit_code=int(data["exit_code"]),
                reason=str(data["reason"]),
                rows={str(name): int(count) for name, count in data["rows"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NoRecordError from error


@dataclass(frozen=True, slots=True)
class Picture:
    """The folder at one moment: each file stands in one of these."""

    ready: list[Entry] = field(default_factory=list)
    """To be run, in this order: those that were cut off, then the others as they came."""
    settling: list[Entry] = field(default_factory=list)
    """May still be written to."""
    busy: list[Entry] = field(default_factory=list)
    """Run by another process."""
    unclear: list[Entry] = field(default_factory=list)
    """Have a record, and another size or time than it says: their content is to be compared."""
    over: list[Entry] = field(default_factory=list)
    """Have a record."""
    changed: list[Entry] = field(default_factory=list)
    """Have been run, and say something else now."""
    clashing: list[Entry] = field(default_factory=list)
    """Would write into the results of another file."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to do, or to wait for."""
        return not (self.ready or self.settling or self.busy or self.unclear)


class Queue:
    """Remembers since when each file has looked as it does.

    Args:
        settle_s: How long a file must have been the same to be whole, seconds > 0.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[Entry, float] = {}
        self._is_same: dict[Entry, bool] = {}

    def compared(self, entry: Entry, *, is_same: bool) -> None:
        """Whether the content of an unclear file is the one that its record tells of."""
        self._is_same[entry] = is_same

    def look(
        self,
        entries: Iterable[Entry],
        records: Mapping[str, FileRecord],
        begun: Mapping[str, str],
        busy: Collection[str],
        now: float,
    ) -> Picture:
        """Put each file into its place.

        Args:
            entries: The files in the folder.
            records: By stem.
            begun: By stem, where there is a state file and no record: the name of the file that it is of.
            busy: Stems whose state file another process uses.
            now: UTC epoch seconds.
        """
        found = sorted(entries, key=lambda entry: entry.arrival)
        # A file that is older than the first look at it has not been written to since.
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
        is_whole = now - self._since[entry] >= self._settle_s
        is_same = self._is_same.get(entry)
        if record and (is_same or (record.size_bytes, record.mtime_ns) == (entry.size_bytes, entry.mtime_ns)):
            picture.over.append(entry)
        elif is_busy:
            picture.busy.append(entry)
        elif not is_whole:
            picture.settling.append(entry)
        elif record and is_same is None:
            picture.unclear.append(entry)
        elif record and record.is_done:
            picture.changed.append(entry)
        else:
            picture.ready.append(entry)


def _owners(found: list[Entry], records: Mapping[str, FileRecord], begun: Mapping[str, str]) -> dict[str, str]:
    """By stem, the file that its results are of: the one that has been run, else the first that came."""
    owners: dict[str, str] = {}
    for entry in found:
        if entry.stem not in owners:
            record = records.get(entry.stem)
            owners[entry.stem] = record.file if record else begun.get(entry.stem, entry.shown)
    return owners


@dataclass(frozen=True, slots=True)
class Total:
    """What a watch came to: the records of all files in the folder, whenever they were run."""

    outcome: Literal["finished", "stopped", "interrupted"]
    done: int
    """Files whose run came to its end."""
    incomplete: int
    """Of these, the ones with rows that did not succeed."""
    failed: int
    """Files that stopped early, or were refused."""
    not_run: int
    """Files that are not run: changed since, or in each other's way."""
    left: int
    """Files without a record."""
    rows: int
    succeeded: int
    reason: str = ""
    hint: str = ""

    @property
    def exit_code(self) -> int:
        """0: all is done; 3: but for some rows; 4: a file, or the watch, stopped early; 130: interrupted."""
        if self.outcome == "interrupted":
            return 130
        if self.outcome == "stopped" or self.failed or self.not_run:
            return 4
        return 3 if self.incomplete else 0

    def __str__(self) -> str:
        """One line for people."""
        parts = [f"{self.done:,} done" + (f" ({self.incomplete:,} with rows that failed)" if self.incomplete else "")]
        others = (("failed", self.failed), ("changed or in the way", self.not_run), ("left", self.left))
        parts += [f"{count:,} {name}" for name, count in others if count]
        return f"watch {self.outcome}: files {', '.join(parts)}; {self.succeeded:,} of {self.rows:,} rows succeeded"

    def to_json(self) -> dict[str, Any]:
        """The total as JSON values."""
        return {**asdict(self), "exit_code": self.exit_code}
