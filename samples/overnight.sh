#!/bin/bash
# A run that outlives the terminal: samples/overnight.sh nohup|tmux [OPTIONS OF batchrun run]
# In the morning: batchrun status samples/overnight.results.jsonl.state; the same command again goes on.
set -euo pipefail
cd "$(dirname "$0")"
how=${1:-nohup}
shift || true

case $how in
nohup)
    nohup batchrun run --config overnight.toml "$@" >>overnight.log 2>&1 </dev/null &
    echo "process $!, which says how it goes in $PWD/overnight.log; kill $! lets it finish what is in flight"
    ;;
tmux)
    # A tmux server of its own has the environment of now, and the key with it. The last screen stays to be read.
    tmux -L batchrun new-session -d -s night -- batchrun run --config overnight.toml "$@" \; \
        set-option -w remain-on-exit on
    echo "look in: tmux -L batchrun attach (Ctrl-b d leaves); away with it: tmux -L batchrun kill-server"
    ;;
*)
    echo "usage: overnight.sh nohup|tmux [OPTIONS OF batchrun run]" >&2
    exit 2
    ;;
esac
