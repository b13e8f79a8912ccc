"""The command line: click parses, a command does the work, and its outcome is printed here. Only here click is used."""
