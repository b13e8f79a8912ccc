"""Prompts in: which files are read, what a line may be, which request it makes, and how it is recognized again."""
