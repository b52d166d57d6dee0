# What compiled Rust takes for granted of a C library. Not counted by the block clock, and made of instructions whose
# running time the machine never needs to interrupt.
    .section .text.runtime, "ax"

# void *memcpy(rdi, rsi, rdx): small ones by overlapping moves, large ones by the string instruction.
    .global memcpy
    .balign 16
memcpy:
    mov     rax, rdi
    cmp     rdx, 16
    jb      2f
    cmp     rdx, 256
    ja      3f
    movups  xmm0, [rsi + rdx - 16]      # the last 16 bytes, stored last
    lea     r8, [rdi + rdx - 16]
1:  movups  xmm1, [rsi]
    movups  [rdi], xmm1
    add     rsi, 16
    add     rdi, 16
    cmp     rdi, r8
    jb      1b
    movups  [r8], xmm0
    ret
2:  cmp     edx, 8
    jae     4f
    cmp     edx, 4
    jae     5f
    test    edx, edx
    jz      6f
    movzx   ecx, byte ptr [rsi]         # 1 to 3: first, middle, last
    movzx   r8d, byte ptr [rsi + rdx - 1]
    mov     r9d, edx
    shr     r9d, 1
    movzx   r10d, byte ptr [rsi + r9]
    mov     [rdi], cl
    mov     [rdi + r9], r10b
    mov     [rdi + rdx - 1], r8b
6:  ret
4:  mov     rcx, [rsi]
    mov     r8, [rsi + rdx - 8]
    mov     [rdi], rcx
    mov     [rdi + rdx - 8], r8
    ret
5:  mov     ecx, [rsi]
    mov     r8d, [rsi + rdx - 4]
    mov     [rdi], ecx
    mov     [rdi + rdx - 4], r8d
    ret
3:  mov     rcx, rdx
    rep movsb
    ret

# void *memmove(rdi, rsi, rdx)
    .global memmove
    .balign 16
memmove:
    mov     rax, rdi
    sub     rax, rsi
    cmp     rax, rdx                    # the target starts inside the source: from the end
    jae     memcpy
    mov     rax, rdi
    mov     rcx, rdx
1:  cmp     rcx, 8
    jb      2f
    mov     r8, [rsi + rcx - 8]
    mov     [rdi + rcx - 8], r8
    sub     rcx, 8
    jmp     1b
2:  test    rcx, rcx
    jz      3f
    mov     r8b, [rsi + rcx - 1]
    mov     [rdi + rcx - 1], r8b
    dec     rcx
    jmp     2b
3:  ret

# void *memset(rdi, esi, rdx)
    .global memset
    .balign 16
memset:
    mov     r8, rdi
    mov     eax, esi
    mov     rcx, rdx
    rep stosb
    mov     rax, r8
    ret

# int memcmp(rdi, rsi, rdx)
    .global memcmp, bcmp
    .balign 16
bcmp:
memcmp:
    xor     ecx, ecx
1:  lea     r8, [rcx + 8]
    cmp     r8, rdx
    ja      2f
    mov     rax, [rdi + rcx]
    mov     r9, [rsi + rcx]
    cmp     rax, r9
    jne     4f
    mov     rcx, r8
    jmp     1b
2:  cmp     rcx, rdx
    jae     3f
    movzx   eax, byte ptr [rdi + rcx]
    movzx   r9d, byte ptr [rsi + rcx]
    inc     rcx
    sub     eax, r9d
    jz      2b
    ret
3:  xor     eax, eax
    ret
4:  bswap   rax                         # the first differing byte decides
    bswap   r9
    cmp     rax, r9
    sbb     eax, eax
    or      eax, 1
    ret

# size_t strlen(rdi)
    .global strlen
    .balign 16
strlen:
    xor     eax, eax
1:  cmp     byte ptr [rdi + rax], 0
    je      2f
    inc     rax
    jmp     1b
2:  ret
    .text
