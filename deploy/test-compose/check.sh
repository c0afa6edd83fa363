#!/bin/bash
# A running stack, used from outside with the command line and disturbed; called by test-compose.sh.
# WORK, APP: the engine's and the stack's directory. BITPRESS_API_URL, BITPRESS_API_KEY: its API.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/test-compose/engine.sh
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

field() { python -c 'import json, sys; print([json.loads(line) for line in sys.stdin if line.strip()][-1][sys.argv[1]])' "$1"; }
submit() { bitpress submit "$scratch/spec.json" --json --idempotency-key "$1-$RANDOM" | field id; }

in_mid_job() { # NAME: the id of a new job that has published a block and is not done
  local job
  job=$(submit "$1")
  until bitpress get "$job" --json | python -c 'import json, sys; job = json.load(sys.stdin); sys.exit(not (job["progress"]["blocks_done"] >= 1 or job["state"] in ("succeeded", "failed")))'; do sleep 0.3; done
  echo "$job"
}

same_bytes() { # JOB WHAT
  rm -rf "$scratch/artifact"
  bitpress pull "$1" --out "$scratch/artifact" >/dev/null 2>&1
  [ "$(blocks "$scratch/local")" = "$(blocks "$scratch/artifact")" ] || fail "after $2 the bytes differ from those of bitpress run"
}

ends_well() { # JOB WHAT
  bitpress watch "$1" >"$scratch/watch" 2>&1 || { cat "$scratch/watch" >&2; fail "the job did not survive $2"; }
  same_bytes "$1" "$2"
}

anonymous
say "the API, Redis, S3 and Ray refuse strangers"

spec /models 64 >"$scratch/spec.json"
spec "$APP/models" 64 >"$scratch/local.json"
begun=$(now)
bitpress run "$scratch/local.json" --out "$scratch/local" >/dev/null 2>&1
note run_seconds "$(since "$begun")"
for name in first_job_seconds job_seconds; do  # the first one compiles the kernels of this installation
  begun=$(now)
  job=$(bitpress submit "$scratch/spec.json" --wait --json 2>"$scratch/log" | field id) || { cat "$scratch/log" >&2; fail "the job did not succeed"; }
  note "$name" "$(since "$begun")"
  same_bytes "$job" "a job"
done
say "bitpress run in one process, jobs on two workers:" $(tail -3 "$WORK/numbers")
python - "$scratch/artifact" <<'LOAD'
import sys

import torch

from bitpress.loading import load

model = load(sys.argv[1])
assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
LOAD
say "pulled, loaded; blocks equal those of bitpress run"

for victim in dispatcher ray-worker redis; do
  job=$(in_mid_job "kill-$victim")
  begun=$(now)
  docker kill "$(container $victim)" >/dev/null
  docker start "$(container $victim)" >/dev/null  # as the engine does by itself when a process dies; not after `docker kill`
  ends_well "$job" "the end of $victim"
  note "killed_${victim//-/_}_seconds" "$(since "$begun")"
  say "$victim killed in mid-job: the same bytes"
done

# An upgrade, as deploy/README.md has it.
job=$(in_mid_job upgrade)
compose stop dispatcher 2>/dev/null
state=$(bitpress get "$job" --json | field state)
[ "$state" = queued ] || fail "a dispatcher that was stopped left its job $state"
compose up --detach --no-build --pull never --wait --wait-timeout 900 2>/dev/null
ends_well "$job" "an upgrade"
say "stopped and started again in mid-job: drained, queued, resumed; the same bytes"

# Backup, loss, restore, as deploy/README.md has it.
compose stop redis s3 2>/dev/null
compose run --rm -T --no-deps --entrypoint tar redis -c -C /data appendonlydir >"$scratch/redis.tar" 2>/dev/null
compose run --rm -T --no-deps --entrypoint tar s3 -c -C /state data >"$scratch/s3.tar" 2>/dev/null
compose down --volumes 2>/dev/null
compose create --no-build --pull never 2>/dev/null
compose run --rm -T --no-deps --entrypoint sh redis -c 'rm -rf /data/appendonlydir && tar -x -C /data' <"$scratch/redis.tar" 2>/dev/null
compose run --rm -T --no-deps --entrypoint tar s3 -x -C /state <"$scratch/s3.tar" 2>/dev/null
compose up --detach --no-build --pull never --wait --wait-timeout 900 2>/dev/null
same_bytes "$job" "a restored backup"
ends_well "$(submit after-restore)" "a restored backup"
say "all volumes lost, backup restored: old jobs are there, new ones run"
