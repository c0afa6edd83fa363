#!/bin/bash
# What can be told of the deployment's files without running them: the Dockerfile, every combination of compose files
# and profiles, the Kubernetes manifests. PATH has hadolint, docker-compose and kubernetes-validate (extra "check").
set -euo pipefail
cd "$(dirname "$0")/.."
hadolint Dockerfile
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Secrets and .env are made by whoever deploys; the files that name them are looked at in a copy.
cp -r docker-compose.yml deploy "$scratch"
"$scratch/deploy/make-secrets.sh" >/dev/null
echo token >"$scratch/deploy/secrets/hf_token"
cp deploy/env.example "$scratch/.env"
export NODE_ADDRESS=10.0.0.2 HEAD=10.0.0.1
for files in "" "cpu" "hub" "hosts" "hosts cpu" "hosts hub" "cpu nanio"; do
  names=(-f "$scratch/docker-compose.yml")
  for name in $files; do names+=(-f "$scratch/deploy/compose.$name.yml"); done
  for profiles in "" "s3" "monitoring" "s3 monitoring"; do
    COMPOSE_PROFILES=${profiles// /,} docker-compose --project-directory "$scratch" "${names[@]}" config --quiet
  done
done
docker-compose -f "$scratch/deploy/compose.node.yml" config --quiet
kubernetes-validate --quiet deploy/kubernetes/bitpress.yaml deploy/kubernetes/ray.yaml
# Of a RayCluster the pods are checked; KubeRay's own schema is not at hand.
python - <<'PODS'
import kubernetes_validate
import yaml

with open("deploy/kubernetes/raycluster.yaml") as file:
    spec = yaml.safe_load(file)["spec"]
for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
    template = group["template"]
    pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": "ray"}}
    kubernetes_validate.validate(pod, "1.37", strict=True)
PODS
echo "deployment files: fine"
