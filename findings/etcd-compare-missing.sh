#!/usr/bin/env bash
# etcd 3.4.23: a key that does not exist is neither equal nor unequal to a value.
#
# One would guess: in a transaction, of `value("k") = "x"` and `value("k") != "x"` one holds, and for a key
# that does not exist the second ("nobody else holds the flag: take it").
# What happens: every comparison of the value of a missing key fails, `=`, `!=`, `<` and `>` alike, also
# `= ""`. Comparisons of version, create and mod revision do work, a missing key having 0 for each.
# Where: server/etcdserver/apply.go (3.4: etcdserver/apply.go), `applyCompare`: "nil == empty string in
# grpc; no way to represent missing value", and then `return false`.
# So test for absence with `version("k") = "0"`, and never with a value.
# Packages: Debian's etcd-server and etcd-client. It listens on Unix sockets in the folder only.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; }; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq -o APT::Sandbox::User=root etcd-server etcd-client
for package in ./*.deb; do dpkg-deb -x "$package" programs; done
programs/usr/bin/etcd --data-dir data --logger zap \
    --listen-client-urls unix://client:1 --advertise-client-urls unix://client:1 \
    --listen-peer-urls unix://peer:1 --initial-advertise-peer-urls unix://peer:1 \
    --initial-cluster default=unix://peer:1 > log 2>&1 &
server=$!
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=unix://client:1
ctl() { programs/usr/bin/etcdctl "$@"; }
for _ in $(seq 100); do
    ctl endpoint health > health 2>&1 && break
    kill -0 "$server"
    sleep 0.1
done
holds() { printf '%s\n\n\n\n' "$1" | ctl txn | sed -n 1p; }
check() {
    local seen
    seen=$(holds "$1")
    printf 'expected: %-7s seen: %-7s %s\n' "$2" "$seen" "$1"
    [ "$seen" = "$3" ] || changed=1
}
changed=0
programs/usr/bin/etcd --version | sed -n 1p
ctl put there x > put
check 'value("there") = "x"' SUCCESS SUCCESS
check 'value("there") != "x"' FAILURE FAILURE
check 'value("missing") = "x"' FAILURE FAILURE
check 'value("missing") != "x"' SUCCESS FAILURE
check 'value("missing") = ""' SUCCESS FAILURE
check 'version("missing") = "0"' SUCCESS SUCCESS
check 'mod("missing") != "7"' SUCCESS SUCCESS
exit "$changed"
