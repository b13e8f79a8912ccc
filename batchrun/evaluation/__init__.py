"""Evaluation: how good answers are. Scorers, the scores file, statistics, and the quality of variants."""
