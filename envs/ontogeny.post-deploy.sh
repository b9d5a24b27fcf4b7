#!/usr/bin/env bash
# Snakemake runs this from the top of the checkout, inside the conda environment just made.
set -euo pipefail
python -m pip install --no-deps --require-hashes -r envs/requirements.lock
python -m pip install --no-deps --no-build-isolation -e .
python -m pip check
