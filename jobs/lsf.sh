#!/usr/bin/env bash
# A campaign on local.localhost under LSF, job after job until it is finished.
# Usage: ENTK_APP_OPTIONS='options of app.py' bsub < jobs/lsf.sh
#BSUB -J entk-app
#BSUB -n 32
#BSUB -R "span[ptile=32]"
#BSUB -x
#BSUB -gpu "num=4"
#BSUB -W 1:00
#BSUB -rn
set -feuo pipefail
cd "$LS_SUBCWD"
export ENTK_APP_PYTHON="${ENTK_APP_PYTHON:-.venv/bin/python}"
[ -x "$ENTK_APP_PYTHON" ] || { echo "no $ENTK_APP_PYTHON: not the checkout, or not installed" >&2; exit 2; }
# shellcheck disable=SC2086 # Words on purpose: a job's script gets no arguments here.
set -- ${ENTK_APP_OPTIONS:=}
export ENTK_APP_OPTIONS
: "${ENTK_APP_RUN:=runs/lsf-$LSB_JOBID}" "${ENTK_APP_JOBS:=20}"
export ENTK_APP_RUN ENTK_APP_JOBS

# The next job is queued first, so that it follows also when this one is killed; ENTK_APP_JOBS at most.
next=""
if ((--ENTK_APP_JOBS > 0)); then
    next=$(bsub -w "ended($LSB_JOBID)" < jobs/lsf.sh | sed "s/^Job <\([0-9]*\)>.*/\1/") || echo "no job follows" >&2
fi

# At the limit shell and launcher are sent a SIGTERM: if the shell went at once, the launcher was killed.
# No signal before that: the launcher ends in time by itself, and what is killed all the same is resumed.
trap : TERM
how=(--resource local.localhost --run-dir "$ENTK_APP_RUN" "$@")
if [ -e "$ENTK_APP_RUN/settings.yaml" ]; then how=(--resume "$ENTK_APP_RUN"); fi
code=0
"$ENTK_APP_PYTHON" -m entk_app run "${how[@]}" --set resource.walltime_min=59 || code=$?
over=0
said=$("$ENTK_APP_PYTHON" -m entk_app finished "$ENTK_APP_RUN") || over=$?
echo "$said"
if [ "$code" -eq 1 ] && [ "${said%%:*}" = pilot_lost ]; then
    # Killed while it worked, by whatever: the next job goes on.
    echo "the pilot was lost" >&2
# Failed (1), refused (2), over for good (0), or not meant to be a campaign: nothing is to follow.
elif [ "$code" -eq 1 ] || [ "$code" -eq 2 ] || [ "$over" -eq 0 ] || [ "$code$over" = 02 ]; then
    [ -z "$next" ] || bkill "$next"
fi
exit "$code"
