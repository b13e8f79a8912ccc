"""Requests that come over several sessions are the rows that a file of them would make."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.runs.opening import open_on_requests, open_run
from tests.support.rehearsal import Listener, options_for, write_lines

REQUESTS = st.lists(
    st.one_of(
        st.sampled_from(["a", "b", "c"]),
        st.builds(lambda text, top: {"prompt": text, "top_k": top}, st.sampled_from("ab"), st.integers(1, 2)),
    ),
    min_size=1,
    max_size=12,
)


def ids(folder: Path, lines: list[bytes] | None) -> list[tuple]:
    options = options_for(
        folder, inputs=(str(folder / ("in.jsonl" if lines is None else "out.jsonl.state.requests.jsonl")),)
    )
    opened = open_run if lines is None else partial(open_on_requests, requests=lines)
    with opened(options, Listener(), clock=time.monotonic, wall=time.time) as run:
        return run.store.query("SELECT id, line, digest FROM rows ORDER BY row")


@pytest.mark.slow
@settings(max_examples=25)
@given(REQUESTS, st.lists(st.integers(0, 12), max_size=3), st.randoms(use_true_random=False))
def test_rows_are_those_of_a_file_wherever_the_sessions_were_cut_and_however_the_rest_is_ordered(requests, cuts, rng):
    requests = requests + [{"id": f"own-{n}", "prompt": "a"} for n in range(3)]
    lines = [orjson.dumps(request) for request in requests]
    with TemporaryDirectory() as one, TemporaryDirectory() as two:
        write_lines(Path(one), requests)
        as_file = ids(Path(one), None)
        for cut in sorted(cuts):
            ids(Path(two), lines[:cut])
        assert ids(Path(two), lines) == as_file
        shuffled = lines.copy()
        rng.shuffle(shuffled)
        assert ids(Path(two), shuffled) == as_file
