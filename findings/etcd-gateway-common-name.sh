#!/usr/bin/env bash
# etcd 3.4.23: once users are enabled, a client's certificate with a common name is refused by the JSON form.
#
# One would guess: with --client-cert-auth a request by JSON (/v3/...) is let in by its certificate, and who asks is
# told by its token, as without TLS. A certificate's common name, which etcd takes for a user where gRPC is spoken and
# no token is shown, does not matter then.
# What happens: that is so until `auth enable`. From then on the same request is answered with 400, "CommonName of
# client sending a request against gateway will be ignored and not used as expected", also with a token of the very
# user, and also if it asks for a token (/v3/auth/authenticate). With a certificate whose subject has no common name
# all of it works.
# Where: embed/serve.go, `accessController.ServeHTTP`: the gateway could not pass the name on, so that whoever relies
# on it would be taken for somebody else.
# So make certificates for clients of the JSON form without a common name (openssl -subj /O=...).
# Packages: Debian's etcd-server, etcd-client, openssl and curl. It listens on 127.0.0.1, at a port of its own.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; }; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq -o APT::Sandbox::User=root etcd-server etcd-client
for package in ./*.deb; do dpkg-deb -x "$package" programs; done
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
openssl req -x509 "${key[@]}" -days 2 -subj /O=ca -keyout ca.key -out ca.pem 2> openssl.log
certificate() { # NAME SUBJECT
    printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=IP:127.0.0.1\n' > extensions
    openssl req "${key[@]}" -subj "$2" -keyout "$1.key" -out request 2>> openssl.log
    openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
        -out "$1.pem" 2>> openssl.log
}
certificate server /O=server
certificate named /CN=root
certificate nameless /O=client
url=https://127.0.0.1:$((20001 + $$ % 6000 * 2))
programs/usr/bin/etcd --data-dir data --logger zap --cert-file server.pem --key-file server.key \
    --trusted-ca-file ca.pem --client-cert-auth --listen-client-urls "$url" --advertise-client-urls "$url" \
    --listen-peer-urls unix://peer:1 --initial-advertise-peer-urls unix://peer:1 \
    --initial-cluster default=unix://peer:1 > log 2>&1 &
server=$!
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS=$url
ctl() { programs/usr/bin/etcdctl --cacert ca.pem --cert nameless.pem --key nameless.key "$@"; }
for _ in $(seq 100); do
    ctl endpoint health > health 2>&1 && break
    kill -0 "$server"
    sleep 0.1
done
# The status of a request by JSON with this certificate, PATH and BODY, and more for curl.
ask() { # CERTIFICATE PATH BODY...
    local certificate=$1 path=$2 body=$3
    shift 3
    curl -s -o reply -w '%{http_code}' --cacert ca.pem --cert "$certificate.pem" --key "$certificate.key" "$@" \
        "$url/v3/$path" -d "$body"
}
changed=0
check() { # WORDS EXPECTED SEEN STATUS
    printf '%-54s expected: %s seen: %s\n' "$1" "$2" "$4"
    [ "$3" = "$4" ] || changed=1
}
get='{"key":"aw=="}' login='{"name":"root","password":"secret"}'
programs/usr/bin/etcd --version | sed -n 1p
check 'before users are enabled, with a common name' 200 200 "$(ask named kv/range "$get")"
{ ctl user add root:secret; ctl user grant-role root root; ctl auth enable; } > enabled 2>&1
check 'then, a token asked for, without a common name' 200 200 "$(ask nameless auth/authenticate "$login")"
token=$(sed 's/.*"token":"\([^"]*\)".*/\1/' reply)
as_root=(-H "Authorization: $token")
check 'a key read with the token, without a common name' 200 200 "$(ask nameless kv/range "$get" "${as_root[@]}")"
check 'a key read with the token, with a common name' 200 400 "$(ask named kv/range "$get" "${as_root[@]}")"
cat reply; echo
check 'a token asked for, with a common name' 200 400 "$(ask named auth/authenticate "$login")"
exit "$changed"
