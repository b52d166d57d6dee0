#!/usr/bin/env bash
# etcd 3.4.23: how long a lease lives depends on the election timeout.
#
# One would guess: a lease of one second, the least that can be asked for, is granted as asked, or refused.
# What happens: it is granted for longer, and no error says so. The least is one and a half times the election
# timeout, in whole seconds: two seconds as etcd is shipped, and eight with `--election-timeout 5000`, as
# one sets it for members far apart. Only the TTL in the reply tells.
# Where: etcdserver/server.go, `minTTL := time.Duration((3*cfg.ElectionTicks)/2) * heartbeat`, and
# lease/lessor.go, `if l.ttl < le.minLeaseTTL`.
# So failover by leases cannot be faster than that; read the TTL granted, not the one asked for.
# Packages: Debian's etcd-server and etcd-client. It listens on Unix sockets in the folder only.
set -euo pipefail
folder=$(mktemp -d)
server=
stop() { [ -z "$server" ] || { kill "$server"; wait "$server" || true; }; server=; }
trap 'stop; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq -o APT::Sandbox::User=root etcd-server etcd-client
for package in ./*.deb; do dpkg-deb -x "$package" programs; done
export ETCDCTL_API=3
# The TTLs granted, in seconds, where 1 and 20 are asked for.
granted() { # NAME OPTION...
    local name=$1
    shift
    programs/usr/bin/etcd --data-dir "data-$name" --logger zap "$@" \
        --listen-client-urls "unix://$name:1" --advertise-client-urls "unix://$name:1" \
        --listen-peer-urls "unix://$name:2" --initial-advertise-peer-urls "unix://$name:2" \
        --initial-cluster "default=unix://$name:2" > "log-$name" 2>&1 &
    server=$!
    export ETCDCTL_ENDPOINTS=unix://$name:1
    for _ in $(seq 300); do
        programs/usr/bin/etcdctl endpoint health > health 2>&1 && break
        kill -0 "$server"
        sleep 0.1
    done
    for ttl in 1 20; do
        programs/usr/bin/etcdctl lease grant "$ttl" | sed 's/.*TTL(\(.*\)s)/\1/'
    done > "ttl-$name"
    stop
}
granted default
granted slow --heartbeat-interval 500 --election-timeout 5000
programs/usr/bin/etcd --version | sed -n 1p
echo "leases of 1 and of 20 seconds, at the default election timeout (1 s), and at 5 s"
echo "expected: 1 20, and 1 20"
echo "seen:    " $(cat ttl-default)", and" $(cat ttl-slow)
[ "$(echo $(cat ttl-default ttl-slow))" = "2 20 8 20" ]
