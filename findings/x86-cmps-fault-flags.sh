#!/usr/bin/env bash
# Intel's processors: flags of a REPE CMPS that faults after some iterations.
#
# One would guess: the registers in the handler's frame are those of the iterations done; RCX, RSI and RDI
# tell how far it got, and the flags are those of the last comparison.
# What happens: RCX, RSI and RDI tell how far it got, and the flags are those from before the instruction:
# a mixture that no iteration left. (After an interrupt between two iterations it is not so.)
# Where: SDM volume 2B, REP: "If a fault occurs during the execution of a repeated CMPS or SCAS, the EFLAGS
# value is restored to the state prior to the execution of the instruction". AMD's APM does not say it.
# An emulator that is compared with such a processor needs both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
grep -qm1 GenuineIntel /proc/cpuinfo || { echo "not a processor of Intel: nothing shown"; exit 0; }
cat > finding.c <<'C'
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
enum { CF = 1, PF = 4, AF = 16, ZF = 64, SF = 128, OF = 2048, ALL = CF | PF | AF | ZF | SF | OF };

static void handler(int signal, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    int left = regs[REG_RCX], flags = regs[REG_EFL] & ALL;
    (void)signal, (void)info;
    printf("REPE CMPSB of 3 bytes, the first 2 equal, the third not mapped; before it CF PF AF SF (95)\n");
    printf("expected: 1 left, flags of two equal bytes: PF ZF (44)\n");
    printf("seen:     %d left, flags %x\n", left, flags);
    fflush(stdout);
    _exit(!(left == 1 && flags == (CF | PF | AF | SF)));
}
int main(void)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    char zeros[3] = {0};
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || munmap(page + 4096, 4096) || sigaction(SIGSEGV, &action, 0))
        return 2;
    char *source = page + 4094, *destination = zeros;
    long count = 3;
    /* 0 - 1: CF, PF, AF and SF. */
    __asm__ volatile("xor %%eax, %%eax\n\tsub $1, %%al\n\trepe cmpsb"
        : "+S"(source), "+D"(destination), "+c"(count) : : "rax", "memory", "cc");
    return 2;
}
C
gcc -O1 -o finding finding.c
grep -m1 'model name' /proc/cpuinfo
./finding
