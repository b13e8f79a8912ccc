"""JSONL in: which files are read, what a line may be, what it asks for, and how it is known again."""
