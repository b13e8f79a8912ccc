"""Evaluation: how good answers are. Scorers, the file of scores, statistics, and the quality of variants."""
