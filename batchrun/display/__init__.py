"""What users see: summaries, tables, pages, and the progress on stderr. Nothing here reads or writes a run."""
