#!/bin/bash
# Make the passwords, keys and tokens of one installation in deploy/secrets. What is there is kept.
# To change one, remove its files and run this again, then `docker compose up -d`.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
# The directory is the lock: containers run as another user and have to read the files that are mounted into them.
chmod 700 secrets
random() { python3 -c 'import secrets; print(secrets.token_hex(32))'; }
make() { # NAME VALUE
  [ -s "secrets/$1" ] || { printf '%s' "$2" >"secrets/$1.part" && mv "secrets/$1.part" "secrets/$1" && echo "made secrets/$1"; }
  chmod 444 "secrets/$1"
}
make ray_token "$(random)"
make s3_access_key "bitpress-$(random | cut -c1-12)"
make s3_secret_key "$(random)"
make api_key "$(random)"
make grafana_password "$(random)"
if ! [ -s secrets/redis_url ] || ! [ -s secrets/redis_acl ]; then
  rm -f secrets/redis_url secrets/redis_acl
  password=$(random)
  hash=$(printf '%s' "$password" | sha256sum | cut -d' ' -f1)
  make redis_url "redis://bitpress:$password@redis:6379/0"
  # Nobody can be the user "default", but older Redis reads its append-only file in that user's name and skips each
  # transaction that the user may not run (redis/redis#14541): it needs the rights, or a restart loses nearly everything.
  make redis_acl "user default off ~* &* +@all
user bitpress on #$hash resetchannels ~{bp}:* +@all -@dangerous -@admin +info
"
fi
