"""Questions that are generated one by one and answered by the built-in endpoint; the same command again resumes.

python samples/stream.py FOLDER [WORKER]
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchrun


def questions() -> Iterator[dict[str, Any]]:
    """Twelve questions; an endless generator would work as well."""
    for number in range(1, 13):
        text = f"What is {number} times {number}? Answer with the number only."
        yield {"id": f"square-{number}", "messages": [{"role": "user", "content": text}], "max_tokens": 8}


async def main(folder: Path, worker: str = "auto") -> None:
    """Print each answer when it arrives, and count the right ones."""
    right = 0
    stream = batchrun.stream(questions(), endpoint="local", worker=worker, state=folder / "squares.state")
    async for record in stream:
        number = int(record["id"].split("-")[1])
        answer = record["text"] if record["status"] == "COMPLETED" else record["error"]["message"]
        right += str(number * number) in answer
        print(f"{number:>2} squared: {answer.strip()}")
    print(f"{right} of {stream.summary.total} right; {stream.summary.results[0]}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
