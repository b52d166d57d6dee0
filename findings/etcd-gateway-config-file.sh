#!/usr/bin/env bash
# etcd 3.4.23: a member that is started with a configuration file has no JSON API, unless the file asks for it.
#
# One would guess: what a configuration file does not name is as it is without the file. `etcd --help` says that
# --enable-grpc-gateway is on by default.
# What happens: it is on if the member is started by options, and off if it is started by --config-file with a file
# that does not name it. Everything by JSON (/v3/...) is then answered with 404, as by an etcd before 3.4; etcdctl and
# other gRPC clients notice nothing.
# Where: embed/config.go: the option's default is where options are parsed (etcdmain/config.go), and `NewConfig`, which
# the file is read over, leaves `EnableGRPCGateway` false.
# So write `enable-grpc-gateway: true` into the file.
# Packages: Debian's etcd-server, etcd-client and curl. It listens on 127.0.0.1, at a port of its own.
set -euo pipefail
folder=$(mktemp -d)
server=
stop() { [ -z "$server" ] || { kill "$server"; wait "$server" || true; }; server=; }
trap 'stop; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq -o APT::Sandbox::User=root etcd-server etcd-client
for package in ./*.deb; do dpkg-deb -x "$package" programs; done
url=http://127.0.0.1:$((20001 + $$ % 6000 * 2))
# What etcdctl, and a request by JSON, come to.
asked() { # NAME OPTION...
    local name=$1
    shift
    programs/usr/bin/etcd "$@" > "log-$name" 2>&1 &
    server=$!
    export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$url
    for _ in $(seq 100); do
        programs/usr/bin/etcdctl endpoint health > health 2>&1 && break
        kill -0 "$server"
        sleep 0.1
    done
    echo "$(programs/usr/bin/etcdctl put k v) $(curl -s -o reply -w '%{http_code}' "$url/v3/kv/range" -d '{"key":"aw=="}')"
    stop
}
words=(listen-client-urls "$url" advertise-client-urls "$url" logger zap
    listen-peer-urls unix://peer:1 initial-advertise-peer-urls unix://peer:1 initial-cluster default=unix://peer:1)
options=()
for ((n = 0; n < ${#words[@]}; n += 2)); do
    options+=("--${words[n]}" "${words[n + 1]}")
    echo "${words[n]}: ${words[n + 1]}" >> words.yml
done
{ cat words.yml; echo 'data-dir: data-file'; } > file.yml
{ cat words.yml; echo 'data-dir: data-asks'; echo 'enable-grpc-gateway: true'; } > asks.yml
changed=0
check() { # WORDS EXPECTED SEEN STATUS
    printf '%-40s expected: %s seen: %s\n' "$1" "$2" "$4"
    [ "$3" = "$4" ] || changed=1
}
programs/usr/bin/etcd --version | sed -n 1p
check 'by options' 'OK 200' 'OK 200' "$(asked options --data-dir data-options "${options[@]}")"
check 'by a file with the same words' 'OK 200' 'OK 404' "$(asked file --config-file file.yml)"
check 'by a file that asks for it' 'OK 200' 'OK 200' "$(asked asks --config-file asks.yml)"
exit "$changed"
