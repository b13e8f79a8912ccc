"""`batchrun serve`: a local endpoint."""

from __future__ import annotations

from batchrun.cli.command import command
from batchrun.cli.options import takes
from batchrun.cli.output import echo, make_observer
from batchrun.commands.serve_arguments import ServeArguments
from batchrun.commands.session_arguments import ShowArguments


@command
@takes(ServeArguments)
def serve(given: ServeArguments) -> None:
    """Serve a local endpoint with Runpod's queue API, for rehearsals and tests.

    \b
    Examples:
      batchrun serve --port 8000
      batchrun serve --worker echo --workers 100 --latency 0.2 --fail-rate 0.01 --limits
      batchrun serve --upstream http://localhost:11434/v1
      batchrun run prompts.jsonl -e any --base-url http://127.0.0.1:8000/v2 -o results.jsonl
    """
    from batchrun.commands import serve as serving

    serving.serve(given, make_observer(ShowArguments(progress="plain")), lambda text: echo(text, err=True))
