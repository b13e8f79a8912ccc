#!/bin/bash
# Eight shards of one input as a SLURM array, each with its part of the endpoint's limits. Afterwards:
#   batchrun merge prompts.shard-*.results.jsonl.state -o results.jsonl
#SBATCH --job-name=batchrun
#SBATCH --array=0-7
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
set -euo pipefail

# Not taken from the array: a single task that is run again (sbatch --array=3) must be the same shard.
shards=${SHARDS:-8}
shard=$((SLURM_ARRAY_TASK_ID + 1))

# SIGTERM, five minutes before the time limit, collects the jobs in flight; the same array again resumes.
exec batchrun run "${INPUT:-prompts.jsonl}" --shard "$shard/$shards" --progress plain \
    --run-limit $((999 / shards + 1)) --status-limit $((1999 / shards + 1))
