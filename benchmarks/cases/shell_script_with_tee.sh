#!/bin/bash
# Trains as a research repository's train.sh does, and notes when the training is done.
set -euo pipefail
export PYTHONUNBUFFERED=1
python "$(dirname "$0")/shell_script_with_tee.py" "$@" 2>&1 | tee -a log.txt
echo "finished, uploading results" >> done.txt
