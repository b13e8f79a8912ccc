"""Runs of tables through the command: copied once, resumed, verified, sharded and watched like JSON lines."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchrun import Summary, verify
from batchrun import run as batchrun_run
from batchrun.state.store import StateReader, Store
from tests.support.claims import assert_adds_up
from tests.support.command import assert_one_clear_line, batchrun
from tests.support.rehearsal import read_lines

ROWS = [{"id": f"r{n}", "prompt": f"so it goes {n}", "max_tokens": 4, "topic": f"t{n % 3}"} for n in range(1, 9)]
CSV = "id,prompt,max_tokens,topic\n" + "".join(f"{','.join(map(str, row.values()))}\n" for row in ROWS)


def run(folder: Path, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    local = ("-e", "local", "--worker", "echo")
    return batchrun("run", *arguments, *local, cwd=folder, **environ)


def results(path: Path) -> dict[str, dict]:
    return {line["id"]: line for line in read_lines(path)}


def write(folder: Path, name: str, rows: list[dict] = ROWS) -> None:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1))
    elif name.endswith(".csv.gz"):
        path.write_bytes(gzip.compress(CSV.encode()))
    elif name.endswith(".csv"):
        path.write_text(CSV)
    else:
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


@pytest.mark.parametrize("name", ["reviews.csv", "reviews.csv.gz", "reviews.parquet", "reviews.json"])
def test_a_table_is_run_resumed_and_verified_as_the_same_rows_of_json_lines_are(tmp_path: Path, name: str):
    write(tmp_path, name)
    write(tmp_path, "lines.jsonl")
    assert run(tmp_path, "lines.jsonl").returncode == 0
    stem = "reviews.json" if name == "reviews.json" else "reviews"
    output, state = tmp_path / f"{stem}.results.jsonl", f"{stem}.results.jsonl.state"
    assert run(tmp_path, name, "--limit", "3").returncode == 0
    (tmp_path / name).rename(tmp_path / "away")
    resumed = batchrun("resume", state, "--worker", "echo", "--progress", "none", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    (tmp_path / "away").rename(tmp_path / name)
    assert run(tmp_path, name).returncode == 0
    found, expected = results(output), results(tmp_path / "lines.results.jsonl")
    assert found.keys() == expected.keys()
    for row_id, line in found.items():
        assert line["source"] == {"file": name, "line": int(row_id[1:])}
        assert (line["text"], line["topic"]) == (expected[row_id]["text"], expected[row_id]["topic"])
    assert_adds_up(tmp_path / state)
    manifest = orjson.loads((tmp_path / f"{stem}.results.manifest.json").read_bytes())
    assert manifest["inputs"][0]["size_bytes"] == (tmp_path / name).stat().st_size
    assert batchrun("verify", state, cwd=tmp_path).returncode == 0
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    assert "reviews" in batchrun("verify", state, cwd=tmp_path).stdout
    assert batchrun("verify", state, cwd=tmp_path).returncode != 0


def test_rows_added_to_a_table_are_picked_up_and_a_changed_one_is_refused_by_name(tmp_path: Path):
    write(tmp_path, "r.csv")
    assert run(tmp_path, "r.csv").returncode == 0
    (tmp_path / "r.csv").write_text(CSV + "late,x,1,\n")
    assert run(tmp_path, "r.csv").returncode == 0
    assert results(tmp_path / "r.results.jsonl")["late"]["source"]["line"] == 9
    (tmp_path / "r.csv").write_text(CSV.replace("so it goes 3", "changed") + "late,x,1,\n")
    assert_one_clear_line(run(tmp_path, "r.csv"), 2, "r3")


def test_what_is_wrong_with_a_row_is_told_with_its_row_and_its_line_and_nothing_is_left(tmp_path: Path):
    (tmp_path / "r.csv").write_text('id,text\n"a\nb",x\nc,y\n')
    for command in (("run", "r.csv"), ("run", "r.csv", "--dry-run")):
        done = batchrun(*command, "-e", "local", "--worker", "echo", cwd=tmp_path)
        assert_one_clear_line(done, 2, "r.csv: row 1 (line 2): no prompt in the line (it has `id`, `text`)")
        assert "--prompt 'Summarise: {{ column }}'" in done.stderr
        assert "--skip-invalid" not in done.stderr  # no row is valid
    checked = batchrun("check", "r.csv", cwd=tmp_path).stdout
    assert "r.csv: row 2 (line 4): no prompt" in checked
    (tmp_path / "r.csv").write_text("prompt,b\nx,y\nz\n")
    assert_one_clear_line(run(tmp_path, "r.csv"), 2, "r.csv: row 2 (line 3): 1 cell, but")
    (tmp_path / "r.parquet").write_bytes(b"PAR1 and no more")
    assert_one_clear_line(run(tmp_path, "r.parquet"), 2, "r.parquet is not a complete Parquet file")
    assert_one_clear_line(run(tmp_path, "no*.csv", "-o", "o.jsonl"), 2, "no*.csv: no file of prompts matches")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.csv", "r.parquet"]


def test_an_input_without_rows_is_refused_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "reviews.csv").write_text("id,prompt\n")
    assert_one_clear_line(run(tmp_path, "reviews.csv"), 2, "the input has no lines")
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]


def test_a_start_that_is_interrupted_leaves_no_copy(tmp_path: Path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    write(tmp_path, "reviews.csv")
    monkeypatch.setattr("batchrun.runs.opening.store_options", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batchrun_run(tmp_path / "reviews.csv", output=tmp_path / "r.jsonl", endpoint="local", worker="echo")
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"]


def test_rows_that_were_added_before_an_interrupt_keep_the_copy_of_their_table(tmp_path: Path, monkeypatch):
    def run_again() -> Summary:
        return batchrun_run("reviews.csv", output="r.jsonl", endpoint="local", worker="echo")

    def interrupted(store: Store, name: str, value: object) -> None:
        if name == "intake":
            raise KeyboardInterrupt
        set_setting(store, name, value)

    write(tmp_path, "reviews.csv")
    monkeypatch.chdir(tmp_path)
    set_setting = Store.set_setting
    run_again()
    with (tmp_path / "reviews.csv").open("a") as file:
        file.write("new,added,4,t0\n")
    with monkeypatch.context() as patched:
        patched.setattr(Store, "set_setting", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_again()
    with StateReader(tmp_path / "r.jsonl.state") as store:
        assert [Path(source.file).exists() for source in store.sources()] == [True]
    assert run_again().succeeded == len(ROWS) + 1
    assert verify(tmp_path / "r.jsonl.state").is_whole


def test_a_table_that_has_lost_its_rows_is_refused_and_the_run_stays_as_it_was(tmp_path: Path):
    away = ("-e", "abc", "--base-url", "https://no-such-host.invalid/v2", "-o", "r.jsonl")

    def start() -> subprocess.CompletedProcess[str]:
        return batchrun("run", "reviews.csv", *away, cwd=tmp_path, RUNPOD_API_KEY="rpa_SECRET")

    write(tmp_path, "reviews.csv")
    assert start().returncode == 4
    before = sorted(tmp_path.iterdir())
    (tmp_path / "reviews.csv").write_text("id,prompt,max_tokens,topic\n")
    assert_one_clear_line(start(), 2, "the input has no lines")
    assert sorted(tmp_path.iterdir()) == before
    status = batchrun("status", "r.jsonl.state", "--json", cwd=tmp_path)
    assert orjson.loads(status.stdout)["total"] == len(ROWS)


def test_messages_about_two_rows_name_rows_of_a_table_not_lines_of_its_file(tmp_path: Path):
    (tmp_path / "r.csv").write_text('id,prompt\na,"x\ny"\na,z\n')
    assert_one_clear_line(run(tmp_path, "r.csv"), 2, "duplicate id: 'a': r.csv: row 1 and r.csv: row 2")
    checked = batchrun("check", "r.csv", cwd=tmp_path).stdout
    assert "r.csv: row 2 (line 4): duplicate id 'a', first at r.csv: row 1\n" in checked
    (tmp_path / "r.csv").write_text('id,prompt\na,"x\ny"\nb,z\n')
    assert run(tmp_path, "r.csv").returncode == 0
    assert "bytes at r.csv: row 1\n" in batchrun("check", "r.csv", cwd=tmp_path).stdout
    (tmp_path / "r.csv").write_text('id,prompt\na,"x\ny"\nb,other\n')
    assert_one_clear_line(run(tmp_path, "r.csv"), 2, "a line has changed since it was submitted: r.csv: row 2 (id 'b')")
    (tmp_path / "r.csv").write_text('id,prompt\na,"x\ny"\n')
    assert_one_clear_line(run(tmp_path, "r.csv"), 2, "is missing from the input: r.csv: row 2 (id 'b')")


def test_a_pattern_is_expanded_in_name_order_without_what_runs_wrote_and_resumes_from_its_copies(tmp_path: Path):
    for name, rows in (("b.csv", "id,prompt\nb,y\n"), ("a.csv", "id,prompt\na,x\n"), ("c.csv", "id,prompt\nc,z\n")):
        (tmp_path / name).write_text(rows)
    (tmp_path / "d.csv").write_text("id,prompt,text,finish_reason,status\nx,y,z,stop,COMPLETED\n")
    done = run(tmp_path, "*.csv", "-o", "out.jsonl", "--ordered", "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert "d.csv is skipped: a run wrote it" in done.stderr
    (tmp_path / "b.csv").unlink()
    resumed = batchrun("resume", "out.jsonl.state", "--worker", "echo", "--progress", "none", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert [line["id"] for line in read_lines(tmp_path / "out.jsonl")] == ["a", "b"]
    assert "no --output is given" in run(tmp_path, "*.csv").stderr
    again = run(tmp_path, "*", "-o", "all.jsonl")
    assert again.returncode == 0, again.stderr
    assert results(tmp_path / "all.jsonl").keys() == {"a", "c"}


def test_a_folder_with_json_lines_means_those_alone_and_one_without_means_its_tables(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    write(data, "a.jsonl", ROWS[:2])
    write(data, "b.csv")
    done = run(tmp_path, "data", "-o", "out/")
    assert done.returncode == 0, done.stderr
    assert "its tables are skipped: b.csv" in done.stderr
    assert [path.name for path in sorted((tmp_path / "out").glob("*.results.jsonl"))] == ["a.results.jsonl"]
    (data / "a.jsonl").unlink()
    write(data, "c.parquet", ROWS[2:4])
    assert run(tmp_path, "data", "-o", "data/").returncode == 0
    assert run(tmp_path, "data", "-o", "data/").returncode == 0
    assert len(read_lines(data / "b.results.jsonl")) == 8
    assert len(read_lines(data / "c.results.jsonl")) == 2
    assert_adds_up(data / "batchrun.state")


def test_the_shards_of_a_table_are_merged_to_the_whole(tmp_path: Path):
    write(tmp_path, "r.csv")
    for shard in ("1/2", "2/2"):
        assert run(tmp_path, "r.csv", "--shard", shard).returncode == 0
    states = sorted(path.name for path in tmp_path.glob("*.state"))
    merged = batchrun("merge", *states, "-o", "all.jsonl", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    assert results(tmp_path / "all.jsonl").keys() == {row["id"] for row in ROWS}


def test_a_watch_runs_each_table_that_arrives(tmp_path: Path):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    write(inbox, "r.csv")
    write(inbox, "p.parquet", ROWS[:3])
    watch = ("watch", "inbox", "-o", "out", "--until-empty", "--settle", "0.01s")
    done = batchrun(*watch, "-e", "local", "--worker", "echo", "--progress", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [len(read_lines(tmp_path / "out" / f"{stem}.results.jsonl")) for stem in ("r", "p")] == [8, 3]
    assert (tmp_path / "out" / "r.done").exists()


@pytest.mark.parametrize(("name", "library"), [("r.parquet", "pyarrow"), ("r.jsonl.zst", "zstandard")])
def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path, name: str, library: str):
    (tmp_path / name).write_bytes(b"PAR1" if name == "r.parquet" else b"\x28\xb5\x2f\xfd")
    (tmp_path / "hidden" / library).mkdir(parents=True)
    (tmp_path / "hidden" / library / "__init__.py").write_text(f"raise ModuleNotFoundError(name={library!r})")
    done = run(tmp_path, name, PYTHONPATH=str(tmp_path / "hidden"))
    assert_one_clear_line(done, 2, f"which needs {library}\n  -> pip install 'runpod-batchrun[data]'")


def test_a_run_of_plain_json_lines_loads_nothing_of_all_this(tmp_path: Path):
    write(tmp_path, "in.jsonl")
    program = (
        "import sys; from batchrun.cli.app import main; main(standalone_mode=False);"
        " print(*sorted({'pyarrow', 'fsspec', 'zstandard', 'batchrun.prompts.remote',"
        " 'batchrun.prompts.csvrows'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, "run", "in.jsonl", "-e", "local", "--dry-run", "all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[len(ROWS) :] == [""]


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet", "labels.jsonl.gz", "labels.TSV"])
def test_results_are_not_written_to_a_file_that_is_named_as_a_table(tmp_path: Path, name: str):
    write(tmp_path, "in.csv")
    done = run(tmp_path, "in.csv", "-o", name)
    assert_one_clear_line(done, 2, f"-o {name}: the results are plain JSON lines")
    assert "give -o labels.jsonl; `batchrun export labels.jsonl.state -o FILE`" in done.stderr
    assert run(tmp_path, "in.csv", "-o", "labels.jsonl", "--shard", "1/1").returncode == 0
    merged = batchrun("merge", "labels.jsonl.state", "-o", name, cwd=tmp_path)
    assert_one_clear_line(merged, 2, f"-o {name}: the results are plain JSON lines")
    assert not (tmp_path / name).exists()


def test_a_run_that_has_such_a_file_already_continues(tmp_path: Path):
    write(tmp_path, "in.csv")
    (tmp_path / "labels.csv").touch()
    assert run(tmp_path, "in.csv", "-o", "labels.csv", "--limit", "3").returncode == 0
    assert run(tmp_path, "in.csv", "-o", "labels.csv").returncode == 0
    assert len(read_lines(tmp_path / "labels.csv")) == len(ROWS)
    assert batchrun("verify", "labels.csv.state", cwd=tmp_path).returncode == 0
