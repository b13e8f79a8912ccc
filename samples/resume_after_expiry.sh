#!/bin/bash
# The morning after a run was cut off: samples/resume_after_expiry.sh RESULTS.jsonl.state
#
# The endpoint keeps a result for 30 minutes. What ended since and was fetched by nobody is gone: such rows are submitted
# again, which costs again, and count as retries. To decide for yourself, start the run with --max-retries 0: they fail as
# `expired` then, and come back with `batchrun resume STATE --retry-failed --only expired`. A run with --unconfirmed hold
# keeps aside what may have been submitted already, until its command is given again with --unconfirmed resubmit.
set -euo pipefail
state=${1:?usage: resume_after_expiry.sh STATE}

batchrun status "$state" # which jobs were in flight, and how long their results can still be fetched
code=0
batchrun resume "$state" || code=$?
batchrun verify "$state"
exit "$code"
