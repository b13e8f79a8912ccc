"""The command line: parse, wire, print, exit. stdout is for data, stderr for people.

A command is imported when it is called, so that `--help` answers at once.
"""

from __future__ import annotations

import click

from batchrun.cli.command import Group, Place
from batchrun.config import VERSION

_EXIT_CODES = """
\b
Exit codes:
  0    every row succeeded
  1    unexpected error
  2    invalid usage or invalid input; nothing was sent
  3    finished, but some rows failed
  4    stopped early (breaker, canary, budget, deadline, refused key, disk full); can be resumed
  130  interrupted; can be resumed
"""

_COMMANDS = {
    "cache": Place("caching:cache", "Show the contents of an answer cache, and prune it."),
    "cancel": Place("running:cancel", "Cancel the jobs in flight of the run of a STATE file."),
    "check": Place("checking:check", "Validate prompt files, and report every invalid line."),
    "estimate": Place("running:estimate", "Run a few rows, and estimate the time and cost of the rest."),
    "export": Place("reading:export", "Write the results of a STATE file in input order."),
    "head": Place("viewing:head", "Show the first rows of a STATE file, each in a few lines."),
    "help": Place("guides:show_guide", "List the guides, or show one."),
    "ls": Place("reading:ls", "List the runs of all state files in folders."),
    "merge": Place("reading:merge", "Merge the results of shards, in input order."),
    "redo": Place("running:redo", "Run rows of a STATE file again, after asking."),
    "report": Place("reading:report", "Show the results of a run by the variants of its sweep."),
    "resume": Place("running:resume", "Resume the run of a STATE file, with its options."),
    "run": Place("running:run", "Run prompt files. The same command again resumes the run."),
    "score": Place("scoring:score", "Score the answers of the run of a STATE file."),
    "serve": Place("serving:serve", "Serve a local endpoint with Runpod's queue API."),
    "show": Place("viewing:show", "Show a row of a STATE file: prompt, answer, scores, times."),
    "status": Place("reading:status", "Show the status of the run of a STATE file, running or not."),
    "stop": Place("steering:stop", "Stop the process that drives the run of a STATE file."),
    "tune": Place("steering:tune", "Change the run of a STATE file while it is running."),
    "verify": Place("reading:verify", "Prove that runs are complete and undamaged."),
    "view": Place("viewing:view", "Write every row of a STATE file to a searchable page."),
    "watch": Place("running:watch", "Run every file of prompts that arrives in FOLDER, one after another."),
}
"""Each with a summary that fits 80 columns."""


@click.group(
    cls=Group,
    places=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(VERSION, "-V", "--version", prog_name="batchrun")
def main() -> None:
    """Run prompt files and tables through a Runpod serverless queue endpoint.

    Every prompt is submitted and tracked in a state file. The results are JSON lines, and `export` makes a table of
    them. However a run is interrupted, the same command resumes it.

    \b
    Examples:
      batchrun run samples/haikus.jsonl --endpoint local -o haikus.results.jsonl
      batchrun run prompts.jsonl -e abc123xyz -o out/results.jsonl
      batchrun status out/results.jsonl.state
      batchrun export out/results.jsonl.state -o results.parquet
    """
