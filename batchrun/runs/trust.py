"""Decides what a run may do only because its state file says so.

A state file may come from somebody else, and it names the URL that the API key is sent to, files that are read and
sent, files that are written, a function that is called, and a file that answers are taken from. The user chose what the
command itself gives. The state file keeps an HMAC of these choices under the API key, so `resume` needs no
confirmation: nobody can make one without the key. The API's own URL, and files in the state file's folder, need no
proof.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from batchrun.config import DEFAULT_BASE_URL, RunOptions
from batchrun.errors import OutputError, StateError
from batchrun.files.server_urls import is_plain_http, without_user
from batchrun.files.urls import absolute_name, is_url
from batchrun.prompts.sources import Source
from batchrun.runs.manifest import digest_file
from batchrun.state.reader import StateReader
from batchrun.state.store import Store

_SETTING = "confirmed"
"""The setting with the HMACs."""
_MAC_CHARS = 32
_WHY = "nothing proves that you chose it: the run is from an earlier version, another API key, or somebody else"


class GivenByCommand(NamedTuple):
    """What the command itself gives; the rest is known only from the state file."""

    base_url: bool = True
    paths: bool = True
    """Inputs and output."""
    check: bool = True
    """The function that checks answers."""
    cache: bool = True
    """The file that answers are taken from."""


EVERYTHING = GivenByCommand()
"""For a command that gives everything itself."""


class Trust:
    """Decides what a state file is trusted with.

    Args:
        options: The run's options, from the command or the state file.
        api_key: None: no key is sent, and nothing leaves this machine; then nothing can be proven, either.
        given: Which options the command itself gives.
    """

    def __init__(self, options: RunOptions, api_key: str | None, given: GivenByCommand) -> None:
        self._options = options
        self._key = api_key
        self._given = given
        self._folder = os.path.realpath(options.state.absolute().parent)
        self._kept: set[str] = set()

    def refuse_unproven(self, store: StateReader, sources: Sequence[Source]) -> None:
        """Refuse a URL or files that only the state file names, without a proof that the user chose them.

        Args:
            store: The state file.
            sources: The run's inputs, as found.

        Raises:
            StateError: it names another URL than the API's own, a file outside its folder, or a function to call, and
                nothing proves that a holder of the key chose it.
        """
        kept = store.get_setting(_SETTING)
        self._kept = set(map(str, kept)) if isinstance(kept, list) else set()
        state, url = self._options.state, without_user(self._options.base_url)
        if not (self._given.base_url or self._key is None or self._is_confirmed("base-url", self._options.base_url)):
            flag = " --insecure-http" if is_plain_http(url) else ""
            raise StateError(
                f"{state} sends the API key to {url}, and {_WHY}",
                f"if you trust that URL, confirm it: --base-url {url}{flag}",
            )
        check = self._options.answers.check
        if not (self._given.check or check is None or self._is_confirmed("check", _found_here(check))):
            raise StateError(f"{state} calls {check}, and {_WHY}", f"if you trust it, confirm it: --check {check}")
        cache = self._options.answers.cache
        if not (self._given.cache or cache is None or self._may_use("cache", cache)):
            raise StateError(
                f"{state} takes answers from {cache}, and {_WHY}", f"if you trust it, confirm it: --cache {cache}"
            )
        for source in sources if self._key is not None and not self._given.paths else ():
            if not self._may_use("input", source.path) and not self._is_moved(source.path):
                self._refuse(f"sends {source.path}")
        own = [] if self._given.paths else [self._options.output]
        for path in [*own, *(store.results_path(output) for output in store.outputs())]:
            if not self._may_use("output", path):
                self._refuse(f"writes {_absolute(path)}")

    def keep(self, store: Store, sources: Sequence[Source], *, are_read: bool) -> None:
        """Store proofs of the user's choices, after nothing was refused: everything in use was chosen by the user.

        Args:
            store: The state file.
            sources: The run's inputs, as found.
            are_read: Whether they have just been read, so that their digests in the state file are known to be true.

        Raises:
            OutputError: the state cannot be written.
        """
        macs = self._kept
        if self._key is not None:
            macs = {self._mac(*chosen) for chosen in self._chosen(sources)}
            macs |= {self._mac("content", sha256) for sha256 in self._contents(store)} if are_read else self._kept
        if macs != self._kept:
            store.set_setting(_SETTING, sorted(macs))

    def _contents(self, store: StateReader) -> Iterator[str]:
        """The digests of the inputs that need a proof; by these they are recognized after they were moved."""
        inputs = store.get_setting("inputs")
        for path, _, sha256 in inputs if isinstance(inputs, list) else []:
            if not self._is_inside(path):
                yield sha256

    def _chosen(self, sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
        """The kinds and names of everything that needs a proof."""
        options = self._options
        if options.base_url != DEFAULT_BASE_URL:
            yield "base-url", options.base_url
        if options.answers.check is not None:
            yield "check", _found_here(options.answers.check)
        if options.answers.cache is not None and not self._is_inside(options.answers.cache):
            yield "cache", options.answers.cache
        # A link in an input folder may lead outside.
        inputs = dict.fromkeys([*map(absolute_name, options.inputs), *(source.path for source in sources)])
        for kind, names in (("input", inputs), ("output", (str(options.output),))):
            for name in names:
                if name != "-" and not self._is_inside(name):
                    yield kind, _absolute(name)

    def _may_use(self, kind: str, name: str | Path) -> bool:
        if name == "-" or self._is_inside(name):
            return True
        path = _absolute(name)
        # The proof of a folder covers its files.
        named = (path, str(Path(path).parent))
        if self._given.paths and kind == "output":
            return _absolute(self._options.output) in named
        return any(self._is_confirmed(kind, each) for each in named)

    def _is_moved(self, path: str) -> bool:
        """Whether a file has the content of an input that the user once chose, at whatever path."""
        try:
            return self._is_confirmed("content", digest_file(Path(path)).sha256)
        except OutputError:
            return False

    def _is_inside(self, name: str | Path) -> bool:
        return not is_url(str(name)) and Path(os.path.realpath(name)).is_relative_to(self._folder)

    def _is_confirmed(self, kind: str, name: str) -> bool:
        if kind == "base-url" and name == DEFAULT_BASE_URL:
            return True
        return self._key is not None and self._mac(kind, name) in self._kept

    def _mac(self, kind: str, name: str) -> str:
        assert self._key is not None  # noqa: S101 - only called with a key
        text = f"batchrun: a holder of this key has chosen the {kind} {name}"
        data = text.encode("utf-8", "surrogateescape")
        return hmac.new(self._key.encode(), data, hashlib.sha256).hexdigest()[:_MAC_CHARS]

    def _refuse(self, what: str) -> None:
        hint = "start a new run with another --output"
        if not self._given.paths:
            hint = "if you trust it, give the run's original command: batchrun run INPUT... -o OUTPUT"
        raise StateError(f"{self._options.state} {what}, which is outside its folder, and {_WHY}", hint)


def _found_here(check: str) -> str:
    """A function of a module with the current folder: in another one, that may be somebody else's."""
    return check if os.path.isabs(check) else f"{check} in {Path.cwd()}"  # noqa: PTH117 - it is no path


def _absolute(name: str | Path) -> str:
    if is_url(str(name)):
        return str(name)
    return os.path.abspath(name)  # noqa: PTH100 - pathlib would keep a `..`
