"""The Python API: `run` for files and lists of requests, `stream` for requests that a program makes as it goes."""
