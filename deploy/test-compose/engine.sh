# A Docker engine without image registry and firewall rules, in $WORK, and the stack in $APP on it; sourced by
# test-compose.sh and check.sh.

compose() {
  "$WORK/tools/bin/docker-compose" --project-directory "$APP" -f "$APP/docker-compose.yml" \
    -f "$APP/deploy/compose.cpu.yml" -f "$APP/deploy/compose.nanio.yml" "$@"
}

now() { date +%s.%N; }
since() { python3 -c 'import sys, time; print(round(time.time() - float(sys.argv[1]), 1))' "$1"; }
note() { echo "$1 $2" >>"$WORK/numbers"; } # NAME VALUE: a number to keep

make_base() { # Debian's own Python and Redis, as the base of all images
  [ ! -s "$WORK/base.tar" ] || return 0
  local mirror
  mirror=$(awk '/^URIs/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
  mmdebstrap --quiet --variant=apt --include=ca-certificates,python3,python3-venv,python3-pip,redis-server \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt=force-unsafe-io \
    --customize-hook='for file in /usr/local/share/ca-certificates/*.crt; do [ ! -e "$file" ] || cp "$file" "$1/usr/local/share/ca-certificates/"; done
      chroot "$1" update-ca-certificates >/dev/null
      rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED
      ln -sf /usr/bin/python3 "$1/usr/local/bin/python"' \
    bookworm "$WORK/base.part.tar" "deb $mirror bookworm main" "deb $mirror bookworm-updates main"
  mv "$WORK/base.part.tar" "$WORK/base.tar"
  step "base image made"
}

start_engine() {
  setsid nohup /usr/sbin/dockerd --data-root "$WORK/data" --exec-root "$WORK/exec" --pidfile "$WORK/dockerd.pid" \
    -H "$DOCKER_HOST" --exec-opt native.cgroupdriver=cgroupfs --iptables=false --ip-forward=false --ip-masq=false \
    --mtu 1400 >"$WORK/dockerd.log" 2>&1 </dev/null &
  engine=$!
  for _ in $(seq 120); do docker version >/dev/null 2>&1 && break; sleep 0.5; done
  docker version >/dev/null 2>&1 || skip "no engine starts here: $(tail -1 "$WORK/dockerd.log")"
  docker info --format 'engine {{.ServerVersion}}, {{.Driver}}, cgroup v{{.CgroupVersion}}'
}

name_base() { # NAME...: the base under official names, so that Dockerfile and compose file stay as they are
  local bundle=/etc/ssl/certs/ca-certificates.crt
  docker import -c "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PIP_CERT=$bundle SSL_CERT_FILE=$bundle REQUESTS_CA_BUNDLE=$bundle" \
    -c 'CMD ["python3"]' "$WORK/base.tar" bitpress-base:bookworm >/dev/null
  local name
  for name in "$@"; do docker tag bitpress-base:bookworm "$name"; done
}
