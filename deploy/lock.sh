#!/bin/bash
# Resolve what the images install, with hashes, into deploy/locks. Needs uv; run it when dependencies change.
# torch and the CUDA libraries it needs stand in a file of their own: a CPU build leaves them out.
set -euo pipefail
cd "$(dirname "$0")/.."
locks=deploy/locks
compile() {
  uv pip compile --quiet --generate-hashes --no-annotate --no-header --constraints constraints.txt \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}
printf 'hatchling\nsetuptools\nwheel\n' | compile - >$locks/build.txt
compile pyproject.toml --extra service --extra traces >$locks/service.txt
compile pyproject.toml --extra service --extra workers --extra eval --extra traces >$locks/all.txt
awk -v torch=$locks/torch.txt -v rest=$locks/worker.txt '
  /^[a-z0-9]/ { out = /^(torch|triton|cuda-|nvidia-)/ ? torch : rest }
  { print > out }' $locks/all.txt
rm $locks/all.txt
