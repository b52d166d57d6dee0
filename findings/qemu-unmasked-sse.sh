#!/usr/bin/env bash
# QEMU 7.2 (TCG): floating-point errors that a program unmasks do not come.
#
# One would guess: an emulated x86-64 raises #XM for an SSE division by zero that MXCSR does not mask, as
# every processor does; Linux makes SIGFPE of it. (feenableexcept of glibc is made of this.)
# What happens: MXCSR's flag is set, as it should be, and the program goes on with infinity.
# Where: target/i386/tcg/fpu_helper.c, `update_mxcsr_from_sse_status` sets flags and raises nothing.
# So QEMU is no reference for what a program with unmasked errors does.
# Package: Debian's qemu-user-static; the program is run on the host's processor and in QEMU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
[ "$(uname -m)" = x86_64 ] || { echo "not an x86-64 processor: nothing shown"; exit 0; }
cat > finding.c <<'C'
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
#include <xmmintrin.h>

static void handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    puts(info->si_code == FPE_FLTDIV ? "SIGFPE, division by zero" : "SIGFPE, something else");
    fflush(stdout);
    _exit(0);
}
int main(void)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGFPE, &action, 0);
    volatile float one = 1, zero = 0, quotient;
    _mm_setcsr(0x1f80 & ~_MM_MASK_DIV_ZERO);
    quotient = one / zero;
    printf("no signal, quotient %g, flag %s\n", quotient, _mm_getcsr() & _MM_EXCEPT_DIV_ZERO ? "set" : "clear");
}
C
gcc -O1 -static -o finding finding.c
apt-get download -qq -o APT::Sandbox::User=root qemu-user-static
dpkg-deb -x ./*.deb qemu
host=$(./finding)
emulated=$(qemu/usr/bin/qemu-x86_64-static ./finding)
echo "$(qemu/usr/bin/qemu-x86_64-static --version | sed -n 1p); 1/0 with MXCSR's ZM clear"
echo "expected: SIGFPE, division by zero, on both"
echo "seen:     processor: $host; QEMU: $emulated"
[ "$host" = "SIGFPE, division by zero" ]
[ "$emulated" = "no signal, quotient inf, flag set" ]
