#!/usr/bin/env bash
# x86-64 processors: XRSTOR of initial SSE state does not make MXCSR initial.
#
# One would guess: a component whose bit in XSTATE_BV is clear comes out in its initial state, whatever the
# rest of the area says; for SSE that is XMM registers of zero and MXCSR of 0x1f80.
# What happens: the XMM registers become zero, but MXCSR is loaded from bytes 24 to 27 of the area all the
# same. In the compacted format (XCOMP_BV bit 63) it does become 0x1f80. So an area that was cleared to
# make "nothing in use" sets MXCSR to 0, with every floating-point error unmasked.
# Where: SDM volume 1, 13.8.1 (standard form) and 13.8.2 (compacted form). Asserted on Intel's processors;
# on others what was seen is printed, and not judged.
# It matters to who saves and restores a vCPU: KVM's XSAVE area is in the standard format.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
[ "$(uname -m)" = x86_64 ] || { echo "not an x86-64 processor: nothing shown"; exit 0; }
grep -qw xsavec /proc/cpuinfo || { echo "a processor without XSAVEC: nothing shown"; exit 0; }
cat > finding.c <<'C'
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
static uint8_t area[4096] __attribute__((aligned(64)));

/* MXCSR and XMM0 after XRSTOR of an area that says "SSE is initial" and holds `mxcsr`. */
static uint32_t restored(uint32_t mxcsr, uint64_t xcomp_bv, uint64_t *xmm0)
{
    const uint32_t before = 0x5f80; /* rounds up: neither initial nor what the area has */
    uint32_t after;
    memset(area, 0, sizeof area);
    memset(area + 160, 0xee, 16); /* where XMM0 would be */
    memcpy(area + 24, &mxcsr, 4);
    memcpy(area + 520, &xcomp_bv, 8);
    __asm__ volatile("ldmxcsr %2\n\tpcmpeqd %%xmm0, %%xmm0\n\txrstor64 (%3)\n\tstmxcsr %0\n\tmovq %%xmm0, %1"
        : "=m"(after), "=r"(*xmm0) : "m"(before), "r"(area), "a"(2), "d"(0)
        : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
          "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    _mm_setcsr(0x1f80);
    return after;
}
int main(void)
{
    uint64_t xmm0, xmm0_compacted;
    uint32_t standard = restored(0x3f80, 0, &xmm0);
    uint32_t compacted = restored(0x3f80, 1ull << 63 | 2, &xmm0_compacted);
    printf("expected: standard format: MXCSR 1f80, XMM0 0; compacted: MXCSR 1f80, XMM0 0\n");
    printf("seen:     standard format: MXCSR %x, XMM0 %lx; compacted: MXCSR %x, XMM0 %lx\n",
        standard, xmm0, compacted, xmm0_compacted);
    int as_stated = standard == 0x3f80 && compacted == 0x1f80 && !xmm0 && !xmm0_compacted;
    return __builtin_cpu_is("intel") && !as_stated;
}
C
gcc -O1 -mxsave -o finding finding.c
grep -m1 'model name' /proc/cpuinfo
./finding
