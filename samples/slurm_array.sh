#!/bin/bash
# Eight shards of one input as a SLURM array, each with its part of the endpoint's limits; then:
#   batchrun merge prompts.shard-*.results.jsonl.state -o results.jsonl
#SBATCH --job-name=batchrun
#SBATCH --array=0-7
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail

# Said here and not taken from the array: one task that is run again (sbatch --array=3) has to be the same shard.
shards=${SHARDS:-8}
shard=$((SLURM_ARRAY_TASK_ID + 1))

# SIGTERM, five minutes before the end of the time, collects what is in flight; the same array again goes on.
exec batchrun run "${INPUT:-prompts.jsonl}" --shard "$shard/$shards" --progress plain \
    --run-limit $((999 / shards + 1)) --status-limit $((1999 / shards + 1))
