"""Run JSONL prompt files through a Runpod serverless queue endpoint, resumably."""

__version__ = "0.1.0"
