"""The paths of a run's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from batchrun.config import RunOptions
from batchrun.errors import UsageError
from batchrun.prompts.forms import stem_of
from batchrun.prompts.sources import Source


def requests_path(state: Path) -> Path:
    """The file with the requests that a program gives to a run: an input that grows."""
    return state.with_name(f"{state.name}.requests.jsonl")


def log_path(options: RunOptions) -> Path:
    """The log of a run in the background: `results.log` for `results.jsonl`, `batchrun.log` in a folder."""
    output = options.output
    name = f"{output.name.removesuffix('.jsonl')}.log"
    return output / "batchrun.log" if options.output_is_folder else output.with_name(name)


def output_paths(options: RunOptions, sources: Sequence[Source]) -> list[Path]:
    """The results file for each input.

    Raises:
        UsageError: two inputs would have the same results file in the output folder.
    """
    if not options.output_is_folder:
        return [options.output] * len(sources)
    paths = [results_path(options.output, source.name) for source in sources]
    taken: dict[Path, Source] = {}
    for path, source in zip(paths, sources, strict=True):
        if path in taken:
            raise UsageError(
                f"{taken[path].path} and {source.path} would have the same results file {path}",
                "rename one of them, or write all results to one file: -o results.jsonl",
            )
        taken[path] = source
    return paths


_OTHER_FORMS = (".csv", ".tsv", ".parquet", ".gz", ".bz2", ".xz", ".zst")


def refuse_other_forms(output: Path, hint: str) -> None:
    """Refuse to write results, which are plain JSON lines, to a file that is named as another form.

    Args:
        output: The results file.
        hint: What to do instead.

    Raises:
        UsageError: its suffix is that of a table or of a compressed file.
    """
    suffix = PurePath(output.name).suffix.lower()
    if suffix in _OTHER_FORMS:
        raise UsageError(f"-o {output}: the results are plain JSON lines, not a {suffix} file", hint)


def results_path(folder: Path, input_name: str, part: str = "") -> Path:
    """The results file of an input in a folder.

    Earlier versions read JSON lines in a file of any name, and kept its suffix: such a run is resumed.
    """
    path = folder / results_name(input_name, part)
    earlier = folder / f"{input_name.removesuffix('.gz').removesuffix('.jsonl')}{part}.results.jsonl"
    return earlier if earlier.exists() and not path.exists() else path


def results_name(input_name: str, part: str = "") -> str:
    """The results file of `haikus.jsonl.gz` or `haikus.csv`: `haikus.results.jsonl`, with `part` after the stem."""
    return f"{stem_of(input_name)}{part}.results.jsonl"
