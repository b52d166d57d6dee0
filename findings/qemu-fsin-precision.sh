#!/usr/bin/env bash
# QEMU 7.2 (TCG): FSIN has 53 bits, not 64.
#
# One would guess: QEMU's x87 unit is its softfloat, with 64-bit significands throughout; FSIN might differ
# from a processor's in the last place.
# What happens: FSIN and FCOS convert the operand to the host's double, call the C library, and convert
# back: the low 11 bits of every result are zero. (By the source FSINCOS and FPTAN do the same.) F2XM1, of
# the same unit, has all 64 bits: it and the logarithms were rewritten.
# Where: target/i386/tcg/fpu_helper.c, `helper_fsin`: `double fptemp = floatx80_to_double(env, ST0)`.
# So x87 registers differ between QEMU and a processor by up to 2047 units of the last place.
# Package: Debian's qemu-user-static; the program is run on the host's processor and in QEMU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
[ "$(uname -m)" = x86_64 ] || { echo "not an x86-64 processor: nothing shown"; exit 0; }
cat > finding.c <<'C'
#include <stdint.h>
#include <stdio.h>
#include <string.h>
/* Of 1000 results of an instruction: how many have low 11 bits of zero. By chance that is one or none. */
#define COUNT(instruction) ({ \
    int count = 0; \
    for (int i = 1; i <= 1000; i++) { \
        long double x = i / 1024.0L, y; \
        uint64_t significand; \
        __asm__(instruction : "=t"(y) : "0"(x)); \
        memcpy(&significand, &y, 8); \
        count += (significand & 0x7ff) == 0; \
    } \
    count; })
int main(void)
{
    printf("FSIN %d FCOS %d F2XM1 %d\n", COUNT("fsin"), COUNT("fcos"), COUNT("f2xm1"));
}
C
gcc -O1 -static -o finding finding.c
apt-get download -qq -o APT::Sandbox::User=root qemu-user-static
dpkg-deb -x ./*.deb qemu
host=$(./finding)
emulated=$(qemu/usr/bin/qemu-x86_64-static ./finding)
echo "$(qemu/usr/bin/qemu-x86_64-static --version | sed -n 1p)"
echo "of 1000 results of each instruction, those whose low 11 bits are zero:"
echo "expected: next to none on both"
echo "seen:     processor: $host; QEMU: $emulated"
few() { read -r _ sin _ cos _ exp <<< "$1"; }
few "$host"
[ "$sin" -lt 20 ] && [ "$cos" -lt 20 ] && [ "$exp" -lt 20 ]
few "$emulated"
[ "$sin" = 1000 ] && [ "$cos" = 1000 ] && [ "$exp" -lt 20 ]
