"""A report as one CSV table: one line per variant and, if there are scores, per scorer and group."""

from __future__ import annotations

import csv
from io import StringIO
from typing import Any

from batchrun.display.summary import Percentiles
from batchrun.display.variants import VariantReport, VariantTable
from batchrun.evaluation.quality import VariantQuality
from batchrun.files.exactjson import dump
from batchrun.results.text import MARKS


def to_csv(report: VariantTable) -> str:
    """The table, with a header; scores and shares are from 0 to 1; unknown cells are empty."""
    by = next((quality.by for quality in report.quality if quality.by is not None), None)
    lines = []
    for variant in report.variants:
        figures = _figures(variant)
        lines += [figures] if not report.quality else []
        for quality in report.quality:
            scorer = {"scorer": quality.scorer}
            for group in (quality.whole, *quality.groups):
                for each in (each for each in group.variants if each.label == variant.label):
                    split = {} if by is None or group is quality.whole else {by: group.value or "(none)"}
                    lines.append({**figures, **scorer, **split, **_quality(each)})
    head = dict.fromkeys(key for line in lines for key in line)
    text = StringIO()
    writer = csv.DictWriter(text, list(head), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _figures(variant: VariantReport) -> dict[str, Any]:
    cells: dict[str, Any] = {"variant": variant.label}
    cells |= {key: _cell(value) for key, value in variant.values.items()}
    cells |= {name: getattr(variant, name) for name in ("rows", "succeeded", "failed", *MARKS)}
    for name in ("input_tokens", "output_tokens"):
        tokens = getattr(variant, name)
        cells |= {f"{name}_mean": "" if tokens is None else round(tokens.mean, 3), f"{name}_p95": tokens and tokens.p95}
    for name in ("delay_ms", "execution_ms"):
        times = getattr(variant, name)
        cells |= {f"{name}_{share}": times and getattr(times, share) for share in Percentiles._fields}
    return {**cells, "cost": variant.cost}


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else dump(value).decode()


def _quality(variant: VariantQuality) -> dict[str, Any]:
    score, majority = variant.score, variant.majority
    cells: dict[str, Any] = {
        "questions": score.questions if score else 0,
        "scored": variant.scored,
        "unscored": variant.unscored,
        "right": variant.right,
        "score": score and score.mean,
        "low": score and score.low,
        "high": score and score.high,
    }
    cells |= {f"pass@{at.k}": at.estimate.mean for at in variant.pass_at}
    cells |= {f"majority@{majority.k}": majority.estimate.mean} if majority else {}
    return {**cells, "cost_per_right": variant.cost_per_right}
