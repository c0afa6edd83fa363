#!/bin/bash
# A running stack, used from outside with the command line and disturbed; called by test-compose.sh.
# APP: the stack's directory. BITPRESS_API_URL, BITPRESS_API_KEY: its API.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/.venv/bin:$PATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say() { printf '%s\n' "  $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
container() { docker ps --all --quiet --filter "label=com.docker.compose.project=bitpress" --filter "label=com.docker.compose.service=$1"; }

python -c 'import pathlib, sys; from bitpress_workers.demo_model import write_demo_texts; write_demo_texts(pathlib.Path(sys.argv[1]))' "$APP/models"
spec() { # MODELS-DIRECTORY NUM-SEQUENCES
  cat <<SPEC
{"model": {"uri": "$1/opt-mini"}, "method": {"kind": "septq", "bits": 3}, "devices": 2,
 "calibration": {"dataset": "$1/calibration.txt", "num_sequences": $2, "sequence_length": 256},
 "evaluation": {"datasets": ["$1/evaluation.txt"], "sequence_length": 256, "max_sequences": 8}}
SPEC
}
blocks() { (cd "$1/blocks" && sha256sum ./*.safetensors); }

anonymous() { # what answers without a key
  local code
  code=$(curl --silent --output /dev/null --write-out '%{http_code}' "$BITPRESS_API_URL/v1/jobs")
  [ "$code" = 401 ] || fail "the API answered $code without a key"
  docker exec "$(container dispatcher)" python - <<'PROBE' || fail "something answers strangers"
import socket, subprocess, urllib.error, urllib.request

with socket.create_connection(("redis", 6379), 5) as redis:
    redis.sendall(b"PING\r\n")
    assert redis.recv(100).startswith(b"-NOAUTH"), "Redis"
try:
    urllib.request.urlopen("http://s3:8333/bitpress?list-type=2", timeout=5)
    raise AssertionError("S3")
except urllib.error.HTTPError as error:
    assert error.code in (401, 403), error.code
try:
    socket.create_connection(("ray-head", 8265), 2)
    raise AssertionError("Ray's dashboard")
except OSError:
    pass
stranger = {"PATH": "/opt/bitpress/bin:/usr/bin:/bin", "HOME": "/tmp", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
asked = subprocess.run(["ray", "status", "--address", "ray-head:6380"], env=stranger, capture_output=True, timeout=60)
assert asked.returncode != 0 and b"CPU" not in asked.stdout, "Ray"
PROBE
}

wait_block() { # JOB: until it has published a block and is not done
  until bitpress get "$1" --json | python -c 'import json, sys; job = json.load(sys.stdin); sys.exit(not (job["progress"]["blocks_done"] >= 1 or job["state"] in ("succeeded", "failed")))'; do sleep 0.3; done
}

anonymous
say "the API, Redis, S3 and Ray refuse strangers"

spec /models 64 >"$scratch/spec.json"
spec "$APP/models" 64 >"$scratch/local.json"
begun=$SECONDS
bitpress run "$scratch/local.json" --out "$scratch/local" >/dev/null 2>&1
alone=$((SECONDS - begun))
begun=$SECONDS
job=$(bitpress submit "$scratch/spec.json" --wait --json | python -c 'import json, sys; print([json.loads(line) for line in sys.stdin if line.strip()][-1]["id"])')
say "job $job: $((SECONDS - begun)) s, bitpress run in one process: $alone s"
bitpress pull "$job" --out "$scratch/artifact" >/dev/null
[ "$(blocks "$scratch/local")" = "$(blocks "$scratch/artifact")" ] || fail "the bytes differ from those of bitpress run"
python - "$scratch/artifact" <<'LOAD'
import sys

import torch

from bitpress.loading import load

model = load(sys.argv[1])
assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
LOAD
say "pulled, loaded; blocks equal those of bitpress run"

for victim in dispatcher ray-worker redis; do
  job=$(bitpress submit "$scratch/spec.json" --json --idempotency-key "kill-$victim-$RANDOM" | python -c 'import json, sys; print(json.load(sys.stdin)["id"])')
  wait_block "$job"
  docker kill "$(container $victim)" >/dev/null
  docker start "$(container $victim)" >/dev/null  # as the engine does by itself when a process dies; not after `docker kill`
  bitpress watch "$job" >"$scratch/watch" 2>&1 || { cat "$scratch/watch" >&2; fail "the job did not survive the end of $victim"; }
  rm -rf "$scratch/artifact"
  bitpress pull "$job" --out "$scratch/artifact" >/dev/null
  [ "$(blocks "$scratch/local")" = "$(blocks "$scratch/artifact")" ] || fail "the bytes differ after the end of $victim"
  say "$victim killed in mid-job: the same bytes"
done
