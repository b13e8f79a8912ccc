"""What a run tells people: summaries, tables, pages, and the progress on stderr. Nothing here reads or writes a run."""
