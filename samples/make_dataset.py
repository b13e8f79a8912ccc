"""Write prompts from a DataFrame, one line for each of its rows: every topic for every reader.

python samples/make_dataset.py PROMPTS.jsonl
"""

import sys

import pandas as pd

topics = pd.DataFrame({"topic": ["rain", "tides", "yeast", "magnets"]})
readers = pd.DataFrame({"reader": ["a child", "an engineer", "a poet"]})
frame = topics.merge(readers, how="cross")

frame["id"] = frame["topic"] + "-for-" + frame["reader"].str.split().str[-1]
frame["prompt"] = "Explain " + frame["topic"] + " to " + frame["reader"] + " in one sentence."
frame["metadata"] = frame[["topic", "reader"]].to_dict("records")

lines = frame[["id", "prompt", "metadata"]]
lines.to_json(sys.argv[1], orient="records", lines=True, force_ascii=False)
print(f"{len(lines)} prompts in {sys.argv[1]}")
