"""The status that a running session writes for other processes: one JSON value in the state file. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from batchrun.display.cost import Cost
from batchrun.display.pace import PaceCounts
from batchrun.display.summary import Snapshot, Workers, merged


@dataclass(frozen=True, slots=True)
class LiveRecord:
    """A session at one moment. It is outdated as soon as no process holds the lock of the state file."""

    session: int
    at_ms: int
    """UTC epoch milliseconds."""
    parts: dict[str, Snapshot]
    """Endpoint ID -> its part of the run."""
    pace: PaceCounts

    @property
    def whole(self) -> Snapshot:
        """The run, over all its endpoints."""
        return merged(self.parts)

    @property
    def obstacles(self) -> list[str]:
        """The obstacles: why the run stops, and what it waits for."""
        found = []
        for endpoint, part in self.parts.items():
            said = "; ".join(text for text in (part.stopping and f"stopping: {part.stopping}", part.note) if text)
            if said:
                found.append(f"{endpoint}: {said}" if len(self.parts) > 1 else said)
        return found

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "session": self.session,
            "at_ms": self.at_ms,
            "parts": {endpoint: asdict(part) for endpoint, part in self.parts.items()},
            "pace": self.pace.to_json(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """The record that `to_json` returned; None for anything else, such as that of another version."""
        try:
            parts = {endpoint: _snapshot(**fields) for endpoint, fields in value["parts"].items()}
            record = cls(int(value["session"]), int(value["at_ms"]), parts, PaceCounts.from_json(value["pace"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return record if parts else None


def _snapshot(*, cost: dict[str, Any] | None, workers: dict[str, Any] | None, **fields: Any) -> Snapshot:
    return Snapshot(
        **fields, cost=None if cost is None else Cost(**cost), workers=None if workers is None else Workers(**workers)
    )
