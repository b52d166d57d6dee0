#!/usr/bin/env bash
# etcd 3.4.23: with --client-cert-auth the server's own certificate has to be a client's, too, but for JSON only.
#
# One would guess: a member that asks its clients for certificates needs one whose use is that of a server
# (extendedKeyUsage serverAuth). etcdctl and every other gRPC client work with that.
# What happens: the member serves, etcdctl writes and reads, and each request to its JSON form (/v3/...) by a client
# with the same certificate, key and CA is answered with 503 and "connection closed". The gateway that turns JSON
# into gRPC is a client of the member itself. It shows the member's certificate, and the member refuses it as its use
# is not clientAuth. Nothing in the reply says so; the log has "rejected connection" from 127.0.0.1.
# Where: embed/serve.go, `serve`: the gateway's credentials are a clone of the server's TLS configuration.
# So give members' certificates both uses, serverAuth and clientAuth.
# Packages: Debian's etcd-server, etcd-client, openssl and curl. It listens on 127.0.0.1, at ports of its own.
set -euo pipefail
folder=$(mktemp -d)
server=
stop() { [ -z "$server" ] || { kill "$server"; wait "$server" || true; }; server=; }
trap 'stop; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq -o APT::Sandbox::User=root etcd-server etcd-client
for package in ./*.deb; do dpkg-deb -x "$package" programs; done
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${key[@]}" -days 2 -subj /O=ca -keyout ca.key -out ca.pem 2> openssl.log
certificate() { # NAME USES
    printf 'extendedKeyUsage=%s\nsubjectAltName=IP:127.0.0.1\n' "$2" > extensions
    openssl req "${key[@]}" -subj "/O=$1" -keyout "$1.key" -out request 2>> openssl.log
    openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
        -out "$1.pem" 2>> openssl.log
}
certificate client clientAuth
certificate server serverAuth
certificate both serverAuth,clientAuth
as_client=(--cacert ca.pem --cert client.pem --key client.key)
# What etcdctl and a request by JSON come to, where the member has this certificate.
asked() { # CERTIFICATE
    local port=$((20000 + $$ % 6000 * 2)) url
    url=https://127.0.0.1:$port
    programs/usr/bin/etcd --data-dir "data-$1" --logger zap --cert-file "$1.pem" --key-file "$1.key" \
        --trusted-ca-file ca.pem --client-cert-auth \
        --listen-client-urls "$url" --advertise-client-urls "$url" \
        --listen-peer-urls "unix://peer-$1:1" --initial-advertise-peer-urls "unix://peer-$1:1" \
        --initial-cluster "default=unix://peer-$1:1" > "log-$1" 2>&1 &
    server=$!
    export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$url
    for _ in $(seq 100); do
        programs/usr/bin/etcdctl "${as_client[@]}" endpoint health > health 2>&1 && break
        kill -0 "$server"
        sleep 0.1
    done
    programs/usr/bin/etcdctl "${as_client[@]}" put k v
    curl -s -o reply -w '%{http_code}\n' "${as_client[@]}" "$url/v3/kv/range" -d '{"key":"aw=="}'
    stop
}
programs/usr/bin/etcd --version | sed -n 1p
changed=0
check() { # CERTIFICATE EXPECTED SEEN
    local seen
    seen=$(asked "$1" | tr '\n' ' ')
    printf 'certificate for %-6s expected: %-7s seen: %s%s\n' "$1" "$2" "$seen" "$(grep -o '"error":"[^"]*"' reply || true)"
    [ "$seen" = "$3 " ] || changed=1
}
check both 'OK 200' 'OK 200'
check server 'OK 200' 'OK 503'
exit "$changed"
