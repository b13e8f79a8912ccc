#!/bin/bash
# The morning after a run was interrupted: samples/resume_after_expiry.sh RESULTS.jsonl.state
#
# The endpoint keeps a result for 30 minutes. Results that nobody fetched in time are gone: their rows are submitted again,
# which costs again, and count as retries. To decide this yourself, start the run with --max-retries 0: the rows then fail
# as `expired`, and `batchrun resume STATE --retry-failed --only expired` runs them again. A run with --unconfirmed hold
# holds rows that may have been submitted already, until its command is given again with --unconfirmed resubmit.
set -euo pipefail
state=${1:?usage: resume_after_expiry.sh STATE}

batchrun status "$state" # which jobs were in flight, and how long their results can still be fetched
code=0
batchrun resume "$state" || code=$?
batchrun verify "$state"
exit "$code"
