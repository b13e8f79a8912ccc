"""How our commands differ from click's: options under headings, one style of errors, one place for exit codes."""

from __future__ import annotations

import gc
import resource
import sys
from collections import UserDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

import click

from batchrun.cli.options import GroupedOption
from batchrun.cli.output import echo, say
from batchrun.cli.usage import as_usage_error, no_such_command, path_of
from batchrun.cli.values import FIRST, HOW_MANY, OR_ALL, called
from batchrun.commands.definitions import DISPLAY, GROUPS
from batchrun.display.printer import printing_stderr
from batchrun.errors import BatchrunError, OutputError, UsageError
from batchrun.files.streams import take_over

_COLLECT_EVERY = 20_000
"""Allocations between two garbage collections: we make few reference cycles, and the default of 700 costs much time."""

ARGUMENTS = "batchrun.arguments"
"""The key in `click.Context.meta` under which the arguments are kept, as they were given."""
_READER_GONE = 141
"""How a shell reports a program that SIGPIPE ended, as in `batchrun ... | head`."""


class Command(click.Command):
    """A command that shows its options under headings, and refuses a single-value option that is given twice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. click would use the last of two values.

        Raises:
            UsageError: an option is given twice.
        """
        args = self._with_optional_values(args)
        try:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        except click.UsageError as error:
            error.ctx = ctx
            raise
        for index, param in enumerate(given):
            takes_one = isinstance(param, click.Option) and not (param.multiple or param.is_flag or param.count)
            if takes_one and param in given[:index]:
                raise UsageError(f"{called(param)} is given twice, but takes one value", f"see {path_of(ctx)} --help")
        return super().parse_args(ctx, args)

    def _with_optional_values(self, args: list[str]) -> list[str]:
        """The arguments with a value for each option that may have none: click would take the next argument for it."""
        options = [param for param in self.params if isinstance(param, click.Option)]
        flags = {flag for param in options if param.type is OR_ALL for flag in param.opts}
        takes_value = {flag for param in options if not (param.is_flag or param.count) for flag in param.opts} - flags
        if flags.isdisjoint(args):
            return args
        done: list[str] = []
        for index, arg in enumerate(args):
            if arg == "--":
                return [*done, *args[index:]]
            is_flag = arg in flags and not (index and args[index - 1] in takes_value)
            if is_flag and not any(map(HOW_MANY.fullmatch, args[index + 1 : index + 2])):
                arg = f"{arg}={FIRST}"  # noqa: PLW2901 - the argument with its value
            done.append(arg)
        return done

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings; options without a heading come under a common one."""
        sections: dict[str, list[tuple[str, str]]] = {}
        rest = DISPLAY if any(isinstance(param, GroupedOption) for param in self.params) else "Options"
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(param.group if isinstance(param, GroupedOption) else rest, []).append(record)
        for heading in sorted(sections, key=[*GROUPS, "Options"].index):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


def command(function: Callable[..., None]) -> Command:
    """Make a command of a function; every option can also be given as BATCHRUN_<OPTION>."""
    return click.command(cls=Command, context_settings={"auto_envvar_prefix": "BATCHRUN"})(function)


class Place(NamedTuple):
    """Where a command is."""

    path: str
    """The module in this folder, and the command's name there: `running:resume`."""
    summary: str
    """One line for the list of commands."""


class _Commands(UserDict[str, Any]):
    """Commands by name; each is imported when it is first looked up."""

    def __getitem__(self, name: str) -> click.Command:
        found: Place | click.Command = super().__getitem__(name)
        if isinstance(found, click.Command):
            return found
        module, attribute = found.path.split(":")
        command: click.Command = getattr(import_module(f"batchrun.cli.{module}"), attribute)
        command.short_help = found.summary
        self[name] = command
        return command


class Group(click.Group):
    """The one place that turns errors into a message, a hint and an exit code. Nothing waits for stderr."""

    def __init__(self, *args: Any, places: Mapping[str, Place], **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.commands = _Commands(places)
        self._places = places

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in self._places.items()])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command. Usage errors are reported like all other errors."""
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
            _exit_with(as_usage_error(error))
        except BatchrunError as error:
            _exit_with(error)
        except click.Abort:
            sys.exit(130)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. Without a command, click would show the help without an error message.

        Raises:
            UsageError: no command is given.
        """
        ctx.meta[ARGUMENTS] = tuple(args)
        if not args:
            raise UsageError("no command is given", "see batchrun --help; begin with `batchrun run`")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        Raises:
            UsageError: there is no command of that name.
        """
        if not args[0].startswith("-") and args[0] not in self.commands:
            raise no_such_command(args[0], self.commands)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command of a context."""
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
                "fix that, then give the same command again: everything that was committed is complete",
            ) from error
        except KeyboardInterrupt:
            echo("interrupted; to resume, give the same command again", err=True)
            ctx.exit(130)


def _raise_file_limit() -> None:
    """Raise this process's limit of open files to the maximum: it is usually 1,024, and connections count, too."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # macOS reports an infinite limit, and refuses to set it.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _exit_with(error: BatchrunError) -> NoReturn:
    say(error.message, error.hint)
    # Without a message, the reader of stdout has gone, see `streams`.
    sys.exit(error.exit_code if error.message else _READER_GONE)
