"""`batchrun check`: validates prompt files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from batchrun.cli.command import command
from batchrun.cli.options import takes
from batchrun.cli.output import echo
from batchrun.commands.request_arguments import RequestArguments
from batchrun.files.streams import stdin_bytes


@command
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@takes(RequestArguments)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def check(given: RequestArguments, inputs: tuple[str, ...], *, as_json: bool) -> None:
    """Validate INPUT... and report every invalid line, or summarize the inputs if there is none.

    INPUT is what `run` takes. Also shows how each field is used. Give the options of `run` that change what is sent,
    and they are applied.

    \b
    Examples:
      batchrun check prompts.jsonl
      batchrun check prompts.jsonl --chat --default max_tokens=256 --strict
      batchrun check reviews.csv --prompt 'Summarise: {{ review }}'
      batchrun check shards/ --json
    """
    import orjson

    from batchrun.commands import check as checking
    from batchrun.commands.run_options import refuse_wrong_parameters, request_options
    from batchrun.files.paths import refuse_unspeakable
    from batchrun.prompts.sources import find_sources

    request, sweep = request_options(given)
    refuse_wrong_parameters(given)

    sources = find_sources(inputs, tell=lambda text: click.echo(text, err=True))
    for source in sources:
        refuse_unspeakable(Path(source.path))
    report = checking.inspect(sources, stdin=stdin_bytes(), request=request, sweep=sweep, strict=given.strict)
    if as_json:
        echo(orjson.dumps(checking.to_json(report), option=orjson.OPT_INDENT_2))
    else:
        echo(checking.render(report), nl=False)
    sys.exit(0 if report.is_good else 2)
