"""Load results and failed rows into one pandas table; also write a Parquet file, if `datasets` is installed.

python samples/load_results.py RESULTS.jsonl [RESULTS.errors.jsonl]
"""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd

COLUMNS = ["id", "status", "text", "finish_reason", "error.kind", "error.message"]
NESTED = ("metadata.", "variant.", "usage.", "job.")

# Not pandas.read_json, which would turn an id such as "007" into a number.
records = [json.loads(line) for file in sys.argv[1:] for line in Path(file).read_bytes().splitlines()]
for record in records:
    record.setdefault("metadata", record.get("request", {}).get("metadata"))  # in a failed row it is in `request`
wide = pd.json_normalize(records, max_level=1)
frame = wide[[column for column in wide if column in COLUMNS or column.startswith(NESTED)]].sort_values("id")

pd.set_option("display.width", 120, "display.max_columns", 8)
print(frame.head(12).to_string(columns=["id", "status", "text"], max_colwidth=60, index=False))
print(frame.select_dtypes("number").agg(["count", "mean", "max"]).T)

if importlib.util.find_spec("datasets"):
    import datasets

    dataset = datasets.Dataset.from_pandas(frame, preserve_index=False)
    dataset.to_parquet(Path(sys.argv[1]).with_suffix(".parquet"))
    print(dataset)
