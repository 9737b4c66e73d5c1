#!/usr/bin/env bash
# A campaign on this machine, detached from the terminal. Usage: jobs/local.sh [options of app.py]
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p runs
nohup .venv/bin/python app.py --resource local.localhost "$@" >> runs/local.log 2>&1 &
echo "started as process $!; its output: runs/local.log"
