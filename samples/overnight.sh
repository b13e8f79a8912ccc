#!/bin/bash
# A run that outlives the terminal: samples/overnight.sh nohup|tmux [OPTIONS OF batchrun run]
# In the morning: batchrun status samples/overnight.results.jsonl.state; the same command again resumes it.
set -euo pipefail
cd "$(dirname "$0")"
how=${1:-nohup}
shift || true

case $how in
nohup)
    nohup batchrun run --config overnight.toml "$@" >>overnight.log 2>&1 </dev/null &
    echo "process $!, progress in $PWD/overnight.log; kill $! stops it after the jobs in flight are collected"
    ;;
tmux)
    # A tmux server of its own gets the current environment, including the key. The last screen remains readable.
    tmux -L batchrun new-session -d -s night -- batchrun run --config overnight.toml "$@" \; \
        set-option -w remain-on-exit on
    echo "to look: tmux -L batchrun attach (Ctrl-b d leaves); to remove it: tmux -L batchrun kill-server"
    ;;
*)
    echo "usage: overnight.sh nohup|tmux [OPTIONS OF batchrun run]" >&2
    exit 2
    ;;
esac
