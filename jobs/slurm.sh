#!/usr/bin/env bash
# A campaign on slurm.cluster under Slurm, job after job until it is finished.
# Usage: sbatch jobs/slurm.sh [options of app.py]
#SBATCH --job-name=entk-app
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --gres=gpu:4
#SBATCH --time=60
#SBATCH --no-requeue
set -feuo pipefail
cd "$SLURM_SUBMIT_DIR"
export ENTK_APP_PYTHON="${ENTK_APP_PYTHON:-.venv/bin/python}"
[ -x "$ENTK_APP_PYTHON" ] || { echo "no $ENTK_APP_PYTHON: not the checkout, or not installed" >&2; exit 2; }
: "${ENTK_APP_RUN:=runs/slurm-$SLURM_JOB_ID}" "${ENTK_APP_JOBS:=20}"
export ENTK_APP_RUN ENTK_APP_JOBS

# The next job is queued first, so that it follows also when this one is killed; ENTK_APP_JOBS at most.
next=""
if ((--ENTK_APP_JOBS > 0)); then
    next=$(sbatch --parsable --export=ALL --dependency="afterany:$SLURM_JOB_ID" "$0" "$@") || echo "no job follows" >&2
fi

# At the limit shell and launcher are sent a SIGTERM: if the shell went at once, the launcher was killed.
# No signal before that: the launcher ends in time by itself, and what is killed all the same is resumed.
trap : TERM
how=(--resource slurm.cluster --run-dir "$ENTK_APP_RUN" "$@")
if [ -e "$ENTK_APP_RUN/settings.yaml" ]; then how=(--resume "$ENTK_APP_RUN"); fi
code=0
"$ENTK_APP_PYTHON" -m entk_app run "${how[@]}" || code=$?
over=0
said=$("$ENTK_APP_PYTHON" -m entk_app finished "$ENTK_APP_RUN") || over=$?
echo "$said"
if [ "$code" -eq 1 ] && [ "${said%%:*}" = pilot_lost ]; then
    # Killed while it worked, by whatever: the next job goes on.
    echo "the pilot was lost" >&2
# Failed (1), refused (2), over for good (0), or not meant to be a campaign: nothing is to follow.
elif [ "$code" -eq 1 ] || [ "$code" -eq 2 ] || [ "$over" -eq 0 ] || [ "$code$over" = 02 ]; then
    [ -z "$next" ] || scancel "${next%;*}"
fi
exit "$code"
