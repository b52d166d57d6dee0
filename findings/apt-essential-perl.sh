#!/usr/bin/env bash
# Debian 12, apt: the smallest system there is has all of perl, to merge a /usr that is merged already.
#
# One would guess: an installation of the essential packages alone has perl-base, which is essential, and none of the
# packages perl, perl-modules-5.36 and libperl5.36, which are not.
# What happens: init-system-helpers, essential, pre-depends on `usrmerge | usr-is-merged`, and apt takes the first that
# can be installed. usrmerge merges a /usr by a perl script that needs libfile-find-rule-perl, and that perl: 47 MB.
# Whoever makes a root by the lists (mmdebstrap with variants essential and apt) gets them.
# So make the links of the merged /usr before anything is unpacked, and name usr-is-merged, of 13 kB, among what apt is
# to install.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
release=$(sed -n 's/^VERSION_ID="\(.*\)"/\1/p' /etc/os-release)
[ "$release" = 12 ] || { echo "this is of Debian 12, and this is $release" && exit 2; }
mkdir -p archives/partial
# What an installation on nothing would have.
would_have() {
  apt-get -qq --yes --print-uris --no-install-recommends -o Dir::State::status=/dev/null \
    -o Dir::Cache::archives="$folder/archives" install '?essential' "$@" |
    sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p" | sort -u
}
size() {
  xargs apt-cache --no-all-versions show | awk '/^Installed-Size:/ { all += $2 } END { print int(all / 1000) }'
}
would_have >alone
would_have usr-is-merged >named
version=$(apt-cache --no-all-versions show init-system-helpers | sed -n 's/^Version: //p')
echo "apt $(dpkg-query -W -f '${Version}' apt), init-system-helpers $version"
echo "expected: the essential packages need no package 'perl'"
echo "seen:     $(wc -l <alone) packages of $(size <alone) MB, among them: $(grep -xE 'usrmerge|perl|perl-modules-.*|libperl.*' alone | tr '\n' ' ')"
echo "          with usr-is-merged named: $(wc -l <named) packages of $(size <named) MB"
grep -qx perl alone && ! grep -qx perl named
