"""The state file: what a run has done, in SQLite, so that it can be resumed from any point."""
