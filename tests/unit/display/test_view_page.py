"""The page of all rows: what is in it, and that its policy allows exactly its own script and style."""

from __future__ import annotations

import gzip
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

import batchrun
from batchrun.display.page import is_page
from batchrun.display.view_page import ViewRow, view_page

PARTS = sorted((Path(batchrun.__file__).parent / "display" / "view").iterdir())
WORDS = {"title": "<b>t</b>", "subtitle": "s", "note": ""}


def row(number: int, **given: Any) -> ViewRow:
    texts = {"turns": [], "answers": [given.get("answer", "a")]}
    fields: dict[str, Any] = {
        "id": f"r{number}", "question": (1, number), "question_id": f"r{number}", "variant": "all", "sample": 0,
        "outcome": None, "marks": (), "input_tokens": 1, "output_tokens": 2, "execution_ms": 3.0, "scores": {},
        "fields": [], "prompt": "p", "answer": "a", "texts": texts, **given,
    }  # fmt: skip
    return ViewRow(**fields)


def page(*rows: ViewRow) -> bytes:
    return b"".join(view_page(rows, ["cut off", "empty"], WORDS))


def part(made: bytes, name: str) -> Any:
    found = re.search(rb'<script type="text/plain" id="%s">([A-Za-z0-9+/=]*)</script>' % name.encode(), made)
    return orjson.loads(gzip.decompress(b64decode(found[1])))


def test_the_policy_allows_only_the_script_and_the_style_of_the_page():
    made = page(row(1)).decode()
    policy = re.search('Content-Security-Policy" content="([^"]*)"', made)[1]
    scripts, styles = (
        re.findall("<script>(.*?)</script>", made, re.DOTALL),
        re.findall("<style>(.*?)</style>", made, re.DOTALL),
    )
    digests = [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in (*scripts, *styles)]
    assert len(digests) == 2
    assert policy.startswith(f"default-src 'none'; script-src {digests[0]}; style-src {digests[1]}; base-uri 'none'")
    assert "unsafe" not in policy


def test_no_part_of_the_page_makes_markup_of_text_or_loads_anything():
    for path in PARTS:
        text = path.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|https?:|@import|url\(", text
        ), path
        assert not re.search(r"\son[a-z]+=|\sstyle=|<(?:script|link|img|iframe)", text), path


def test_what_rows_contain_is_nowhere_in_the_markup():
    hostile = "</script><script>alert(1)</script>"
    made = page(row(1, id=hostile, answer=hostile, prompt=hostile, fields=[(hostile, hostile)], variant=hostile))
    assert b"alert(1)" not in made
    assert made.count(b"<script") == 3
    assert b"<title>&lt;b&gt;t&lt;/b&gt;</title>" in made


def test_a_page_is_known_as_one_of_batchrun_and_is_the_same_each_time():
    made = page(row(1), row(2))
    assert is_page(made.split(b"\n")[0] + b"\n")
    assert made == page(row(1), row(2))


def test_every_row_is_in_the_index_and_its_texts_in_a_block():
    made = page(*(row(number, answer=f"answer {number}") for number in range(600)))
    index = part(made, "index")
    assert index["blocks"] == [0, 250, 500]
    assert [each[0] for each in index["rows"]] == [f"r{number}" for number in range(600)]
    assert part(made, "block-2")[99]["answers"] == ["answer 599"]


def test_long_texts_make_blocks_of_fewer_rows():
    assert part(page(*(row(number, answer="x" * 300_000) for number in range(4))), "index")["blocks"] == [0, 2]


def test_lone_surrogates_and_line_separators_survive():
    assert orjson.dumps("\u2028") in orjson.dumps(part(page(row(1, answer="\u2028")), "block-0"))
    found = re.search(rb'id="block-0">([^<]*)<', page(row(1, answer="\ud800")))
    assert rb"\ud800" in gzip.decompress(b64decode(found[1]))


def test_fields_of_a_few_values_are_filters():
    rows = [row(n, fields=[("metadata.topic", "ab"[n % 2]), ("metadata.n", str(n)), ("same", "x")]) for n in range(100)]
    index = part(page(*rows, row(100)), "index")
    assert index["fields"] == [{"name": "metadata.topic", "values": ["a", "b"]}]
    assert [each[10] for each in index["rows"][-3:]] == [[0], [1], [-1]]


def test_only_marks_that_occur_are_named():
    index = part(page(row(1, marks=("empty",)), row(2)), "index")
    assert index["marks"] == ["empty"]
    assert [each[5] for each in index["rows"]] == [1, 0]


def test_rows_of_a_question_share_it_and_scores_keep_their_scorer():
    rows = [row(1, id=f"q/{v}", question=(1, 1), question_id="q", variant=v, scores={"exact": 1.0}) for v in "ab"]
    index = part(page(*rows, row(2, scores={"judge": None})), "index")
    assert index["questions"] == ["q", "r2"]
    assert index["variants"] == ["a", "b", "all"]
    assert index["scorers"] == ["exact", "judge"]
    assert [each[9] for each in index["rows"]] == [{"0": 1.0}, {"0": 1.0}, {"1": None}]
