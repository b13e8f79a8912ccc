"""Count exact matches with metadata.reference, by variant; failed rows count as wrong.

python samples/score.py RESULTS.jsonl [RESULTS.errors.jsonl]
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(files: list[str]) -> Iterator[dict[str, Any]]:
    """All records in the results and error files."""
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def plain(text: str) -> str:
    """The text that is compared: without case, and without surrounding white space or full stops."""
    return text.strip(" \t\n.").casefold()


right = defaultdict(list)
for record in records(sys.argv[1:]):
    variant = ", ".join(f"{key}={value}" for key, value in record.get("variant", {}).items() if key != "repeat")
    reference = record.get("request", record)["metadata"]["reference"]
    right[variant or "all"].append(plain(record.get("text") or "") == plain(reference))

width = max(map(len, right), default=0)
print(f"{'variant':<{width}}  {'rows':>6}  {'right':>6}  {'share':>6}  std.err.")
for variant, answers in sorted(right.items()):
    share = sum(answers) / len(answers)
    error = (share * (1 - share) / len(answers)) ** 0.5
    print(f"{variant:<{width}}  {len(answers):>6}  {sum(answers):>6}  {share:>6.1%}  ±{error:.1%}")
