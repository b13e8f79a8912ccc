"""The command line: click parses, a command does the work, and here its outcome is printed. The only place of click."""
