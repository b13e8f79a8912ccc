"""JSONL out: what a result says, how it reaches the disk once, and what a run comes to."""
