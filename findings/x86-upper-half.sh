#!/usr/bin/env bash
# x86-64 processors: 32-bit instructions that change nothing, and the upper half of their destination.
#
# One would guess one rule: either whoever writes nothing leaves all 64 bits as they are, or bits 32 to 63 are
# cleared whenever the destination is a 32-bit register ("32-bit operands generate a 32-bit result,
# zero-extended to a 64-bit result", SDM volume 1, 3.4.1.1).
# What happens: both. CMOV whose condition is false and SHL by CL = 0 clear the upper half. BSF of zero
# keeps it. So does CMPXCHG of a destination that differs from EAX, although the manual says that such a
# destination is written back.
# Where: SDM volume 2, CMOVcc, SHL, BSF, CMPXCHG; only for CMOVcc it says so. Judged on Intel's processors; on
# others what was seen is printed only.
# An emulator, or a compiler that counts on zero-extension, needs a list and not a rule.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
[ "$(uname -m)" = x86_64 ] || { echo "not an x86-64 processor: nothing shown"; exit 0; }
cat > finding.c <<'C'
#include <stdint.h>
#include <stdio.h>
#define OLD 0xaaaaaaaa00000007u
static int differs;
static void show(const char *what, uint64_t seen, uint64_t stated)
{
    printf("seen:     %016lx after %s\n", seen, what);
    differs |= seen != stated;
}
int main(void)
{
    uint64_t zero = 0, one = 1, r = OLD, rax = OLD + 1;
    printf("expected: %016lx or %016lx, the same for all\n", OLD, OLD & 0xffffffff);
    __asm__("cmp %0, %0\n\tcmovne %k1, %k0" : "+r"(r) : "r"(one) : "cc");
    show("cmovne, not taken", r, 7);
    r = OLD;
    __asm__("shl %%cl, %k0" : "+r"(r) : "c"(zero) : "cc");
    show("shl by cl = 0", r, 7);
    r = OLD;
    __asm__("bsf %k1, %k0" : "+r"(r) : "r"(zero) : "cc");
    show("bsf of zero", r, OLD);
    r = OLD;
    __asm__("cmpxchg %k2, %k1" : "+a"(rax), "+r"(r) : "r"(one) : "cc");
    show("cmpxchg, eax differs", r, OLD);
    return __builtin_cpu_is("intel") && differs;
}
C
gcc -O1 -o finding finding.c
grep -m1 'model name' /proc/cpuinfo
./finding
