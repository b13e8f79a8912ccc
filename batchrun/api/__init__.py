"""The Python API: `run` for a file or a list of requests, `stream` for requests that come one by one."""
