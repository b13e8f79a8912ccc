"""The local endpoint: a server on this machine with Runpod's queue API, and its workers."""
