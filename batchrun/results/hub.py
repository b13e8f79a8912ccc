"""Pushes a file to a dataset of the Hugging Face Hub. huggingface_hub is imported only when it is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from batchrun.errors import OutputError, UsageError, shown
from batchrun.files.extras import needs_extra
from batchrun.files.urls import is_url, public_name

_SCHEME = "hf://"
_NAME = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<path>.+[^/]))?/?")
_PATH = "data/train-00000-of-00001.parquet"
"""Where `load_dataset` finds the split `train`."""


class HubFile(NamedTuple):
    """A file in a dataset of the Hub."""

    repo: str
    """OWNER/NAME."""
    path: str
    """Its path in the dataset."""

    def __str__(self) -> str:
        return f"{_SCHEME}datasets/{self.repo}/{self.path}"


def is_hub_name(name: str) -> bool:
    """Whether a name is that of a file of the Hub, and of none of this machine: only `hub_file` says whether it is."""
    return is_url(name)


def hub_file(name: str) -> HubFile:
    """The file that `hf://datasets/OWNER/NAME[/FILE]` names; without FILE, the Parquet file of the split `train`.

    Raises:
        UsageError: it has another form.
    """
    if not name.startswith(_SCHEME):
        raise UsageError(
            f"-o {shown(public_name(name))}: an export is a file of this machine or of the Hugging Face Hub",
            "give a path, or hf://datasets/OWNER/NAME[/FILE]",
        )
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError(f"{shown(name)} is not a file of a dataset", "give hf://datasets/OWNER/NAME[/FILE]")
    return HubFile(found["repo"], found["path"] or _PATH)


def refuse_missing_library(target: HubFile) -> None:
    """Refuse to write to the Hub without its library.

    Raises:
        UsageError: it is not installed.
    """
    with needs_extra(f"{target} is on the Hugging Face Hub"):
        import huggingface_hub  # noqa: F401


def push(file: Path, target: HubFile) -> None:
    """Upload a file. A dataset that does not exist is created, as a private one. The token is the Hub's own.

    Raises:
        OutputError: the Hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="batchrun")
        api.create_repo(target.repo, repo_type="dataset", private=True, exist_ok=True)
        api.upload_file(
            path_or_fileobj=file,
            path_in_repo=target.path,
            repo_id=target.repo,
            repo_type="dataset",
            commit_message="Results of batchrun",
        )
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OutputError(
            f"{target} cannot be written: {said}",
            "log in with `hf auth login` or set HF_TOKEN to a token that may write; check the owner and the network",
        ) from error
