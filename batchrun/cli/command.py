"""How our commands differ from click's: options under headings, one voice for errors, exit codes in one place."""

from __future__ import annotations

import gc
import resource
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from batchrun.cli.options import GroupedOption
from batchrun.cli.output import echo, say
from batchrun.cli.usage import as_usage_error, no_such_command, path_of
from batchrun.cli.values import called
from batchrun.commands.definitions import DISPLAY, GROUPS
from batchrun.display.printer import printing_stderr
from batchrun.errors import BatchrunError, OutputError, UsageError
from batchrun.files.streams import take_over

_COLLECT_EVERY = 20_000
"""Objects between two looks for cycles: what is read and sent leaves few behind, and the default of 700 costs a lot."""


class Command(click.Command):
    """A command with its options under headings; it refuses an option of one value that is given twice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; see click's, which would take the last of two values.

        Raises:
            UsageError: an option is given twice.
        """
        try:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        except click.UsageError as error:
            error.ctx = ctx
            raise
        for index, param in enumerate(given):
            takes_one = isinstance(param, click.Option) and not (param.multiple or param.is_flag or param.count)
            if takes_one and param in given[:index]:
                raise UsageError(f"{called(param)} is given twice: which one is meant?", f"see {path_of(ctx)} --help")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each under its heading; all under one where they have none."""
        sections: dict[str, list[tuple[str, str]]] = {}
        rest = DISPLAY if any(isinstance(param, GroupedOption) for param in self.params) else "Options"
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(param.group if isinstance(param, GroupedOption) else rest, []).append(record)
        for heading in sorted(sections, key=[*GROUPS, "Options"].index):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


class Group(click.Group):
    """Turns errors into a message, a hint and an exit code, in one place; nothing waits for stderr."""

    command_class = Command

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command; see click's. Wrong usage is told as any other error of a user."""
        take_over()
        with printing_stderr():
            code = self._code_of(*args, **{**extra, "standalone_mode": False})
        if standalone_mode:
            sys.exit(code)
        return code

    def _code_of(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except click.UsageError as error:
            _give_up(as_usage_error(error))
        except BatchrunError as error:
            _give_up(error)
        except click.Abort:
            sys.exit(130)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; see click's, which would show the help without a word when there is no command.

        Raises:
            UsageError: there is none.
        """
        if not args:
            raise UsageError("no command is given", "see batchrun --help; `batchrun run` is where to begin")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; see click's.

        Raises:
            UsageError: there is none of that name.
        """
        if not args[0].startswith("-") and args[0] not in self.commands:
            raise no_such_command(args[0], self.commands)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command of a context; see click's."""
        gc.freeze()
        gc.set_threshold(_COLLECT_EVERY)
        _raise_file_limit()
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.filename is None:
                raise
            raise OutputError(
                f"{error.filename}: {error.strerror}",
                "fix that, then run the same command: what was committed is whole",
            ) from error
        except KeyboardInterrupt:
            echo("interrupted; the same command resumes", err=True)
            ctx.exit(130)


def _raise_file_limit() -> None:
    """Let this process open as many files as it may: the usual limit is 1,024, and connections count too."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # macOS names no limit here and refuses to be told so.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _give_up(error: BatchrunError) -> NoReturn:
    say(error.message, error.hint)
    sys.exit(error.exit_code)
