"""The local endpoint: a server on this machine that speaks Runpod's queue API, and what answers behind it."""
