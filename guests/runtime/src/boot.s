# Everything a guest does in ring 0, and the block clock.
#
#   _start (ring 0) -> CR0, CR4, CR3, IDT, GDT, TSS, PICs -> iretq -> enter_program (ring 3, IF=1)
#
#   vector 3        idle: halts until an interrupt has been noted
#   vector 13       RDTSC under CR4.TSD: answered from the control page
#   vectors 32..47  an interrupt: noted, nothing else (the PICs end it by themselves)
#   all others      a bug: reported from ring 3, then power off
#
# A KVM without hardware support interprets ring 0, some 2 million plain instructions a second: what stands here is
# short and plain. Upper-case names in braces are constants of boot.rs.

# --- ring 0 -----------------------------------------------------------------------------------------------------------
    .section .boot, "ax"
    .global _start
_start:
    mov     esp, offset ring0_stack_top
    mov     rax, cr0
    and     eax, 0xfffffff3             # EM, TS off: SSE works
    or      eax, 0x22                   # MP, NE
    mov     cr0, rax
    mov     rax, cr4
    or      eax, 0x604                  # TSD: ring 3 may not read the TSC; OSFXSR, OSXMMEXCPT: SSE
    mov     cr4, rax
    mov     eax, offset pml4
    mov     cr3, rax

    xor     ecx, ecx                    # fill the IDT: interrupt gates into ring 0
1:  mov     rax, qword ptr [handlers + rcx*8]
    mov     edx, ecx
    shl     edx, 4
    mov     word ptr [idt + rdx], ax
    mov     word ptr [idt + rdx + 2], {KERNEL_CODE}
    mov     word ptr [idt + rdx + 4], 0x8e00
    shr     eax, 16
    mov     word ptr [idt + rdx + 6], ax
    inc     ecx
    cmp     ecx, 48
    jb      1b
    mov     byte ptr [idt + 3*16 + 5], 0xee # ring 3 may execute INT3
    mov     eax, offset idt_pointer
    lidt    [rax]

    mov     eax, offset tss             # the TSS descriptor's base
    mov     word ptr [gdt + {TSS} + 2], ax
    shr     eax, 16
    mov     byte ptr [gdt + {TSS} + 4], al
    mov     byte ptr [gdt + {TSS} + 7], ah
    mov     eax, offset gdt_pointer
    lgdt    [rax]
    mov     eax, {TSS}
    ltr     ax
    mov     eax, {USER_DATA}
    mov     ds, eax                     # all four: ring 3 may keep them, where IRETQ takes those
    mov     es, eax                     # of ring 0 away, on some processors and not on others
    mov     fs, eax
    mov     gs, eax

    .macro  outb port, value
    mov     al, \value
    out     \port, al
    .endm
    cmp     eax, eax                    # all flags: a shift leaves AF open, and whoever interprets ring 0 may
                                        # leave it as a processor would not. Here the machine looks at them
    outb    0x20, 0x11                  # both PICs: ICW1 (edges, cascade, ICW4 follows)
    outb    0x21, 0x20                  # ICW2: vectors 32..39
    outb    0x21, 0x04                  # ICW3: the other PIC hangs on input 2
    outb    0x21, 0x03                  # ICW4: 8086, automatic end of interrupt
    outb    0xa0, 0x11
    outb    0xa1, 0x28                  # vectors 40..47
    outb    0xa1, 0x02
    outb    0xa1, 0x03
    outb    0x21, 0xfb                  # OCW1: all masked but the cascade
    outb    0xa1, 0xff

    push    {USER_DATA}
    push    {STACK_TOP}
    push    0x202                       # IF
    push    {USER_CODE}
    push    offset enter_program
    iretq

# Interrupts: count, and tell `idle` that something came.
    .altmacro
    .macro  note irq
note_\irq:
    mov     byte ptr [pending_note], 1
    inc     qword ptr [interrupt_notes + 8 * \irq]
    iretq
    .endm
    .set    irq, 0
    .rept   16
    note    %irq
    .set    irq, irq + 1
    .endr

# Waits for a note. STI takes effect after the instruction that follows it, so no note is lost before HLT.
idle_in_ring0:
    cmp     byte ptr [pending_note], 0
    jne     1f
    sti
    hlt
    cli
    jmp     idle_in_ring0
1:  mov     byte ptr [pending_note], 0
    iretq

# RDTSC: EDX:EAX from the control page. Any other #GP is a bug.
general_protection:
    push    rax
    mov     rax, qword ptr [rsp + 16]
    cmp     word ptr [rax], 0x310f
    jne     1f
    mov     rax, qword ptr [{CONTROL_TSC}]
    mov     rdx, rax
    shr     rdx, 32
    mov     eax, eax
    add     qword ptr [rsp + 16], 2
    add     rsp, 16
    iretq
1:  pop     rax
    push    13
    jmp     exception

# Exceptions: frame on the stack is vector, error code, RIP, CS, RFLAGS, RSP, SS.
    .macro  trap vector
trap_\vector:
    push    0
    push    \vector
    jmp     exception
    .endm
    .macro  trap_with_code vector
trap_\vector:
    push    \vector
    jmp     exception
    .endm
    .irp    vector, 0,1,2,4,5,6,7,9,15,16,18,19,20,22,23,24,25,26,27,28,31
    trap    \vector
    .endr
    .irp    vector, 8,10,11,12,14,17,21,29,30
    trap_with_code \vector
    .endr
exception:
    cmp     byte ptr [exception_seen], 0
    jne     1f                          # while reporting another: there is no way to say more
    mov     byte ptr [exception_seen], 1
    pop     qword ptr [exception_report]
    pop     qword ptr [exception_report + 8]
    mov     rax, qword ptr [rsp]
    mov     qword ptr [exception_report + 16], rax
    mov     rax, cr2
    mov     qword ptr [exception_report + 24], rax
    mov     eax, offset report_exception
    mov     qword ptr [rsp], rax        # go on there in ring 3, on a fresh stack
    mov     eax, {USER_CODE}
    mov     qword ptr [rsp + 8], rax
    mov     eax, 0x202
    mov     qword ptr [rsp + 16], rax
    mov     eax, {STACK_TOP} - 8
    mov     qword ptr [rsp + 24], rax
    mov     eax, {USER_DATA}
    mov     qword ptr [rsp + 32], rax
    iretq
1:  mov     eax, {EXCEPTION_STATUS}
    mov     dword ptr [{CONTROL_POWER_OFF}], eax
2:  hlt
    jmp     2b

# --- ring 3 -----------------------------------------------------------------------------------------------------------
    .section .text.runtime, "ax"
enter_program:
    fninit
    ldmxcsr dword ptr [initial_mxcsr]
    xor     ebp, ebp
    call    start_program
    ud2

# The block clock: one count down per edge, a trap into the machine at zero. Keeps every register, and leaves the flags
# in one fixed state: the budget differs between replicas, and flags may be pushed to memory.
    .global __sanitizer_cov_trace_pc
    .balign 16
__sanitizer_cov_trace_pc:
    sub     qword ptr [{CLOCK}], 1
    jz      2f
1:  cmp     eax, eax
    ret
2:  mov     dword ptr [{CONTROL_TRAP}], eax
    jmp     1b

# --- tables: accessed, dirty and busy bits are set already, so that no hardware sets them at a moment of its own -------
    .section .boot_tables, "aw"
    .balign 4096
pml4:
    .quad   pdpt + 0x27
    .fill   511, 8, 0
pdpt:
    .quad   pd_low + 0x27
    .quad   pd_high + 0x27
    .fill   510, 8, 0
pd_low:                                 # 0 to 1 GiB
    .quad   pt_lowest + 0x27
    .set    address, 0x200000
    .rept   511
    .quad   address + 0xe7
    .set    address, address + 0x200000
    .endr
pd_high:                                # 1 to 2 GiB; the last 2 MiB show the devices
    .rept   511
    .quad   address + 0xe7
    .set    address, address + 0x200000
    .endr
    .quad   {DEVICES} + 0xe7
pt_lowest:                              # 0 to 2 MiB: null and the page below the stack are not mapped
    .quad   0
    .set    address, 0x1000
    .rept   511
    .if     address < {STACK_BOTTOM} - 0x1000 || (address >= {STACK_BOTTOM} && address < {STACK_TOP}) || address >= {IMAGE}
    .quad   address + 0x67
    .else
    .quad   0
    .endif
    .set    address, address + 0x1000
    .endr

    .balign 16
gdt:
    .quad   0
    .quad   0x00af9b000000ffff          # KERNEL_CODE
    .quad   0x00cf93000000ffff          # KERNEL_DATA
    .quad   0x00cff3000000ffff          # USER_DATA
    .quad   0x00affb000000ffff          # USER_CODE
    .quad   0x0000890000000000 + tss_end - tss - 1 # TSS, its base filled in at boot
    .quad   0
gdt_end:
tss:
    .long   0
    .quad   ring0_stack_top             # RSP0
    .fill   90, 1, 0
    .word   0x68                        # the I/O bitmap: ring 3 may use ports 0 to 0x3ff
    .fill   0x80, 1, 0
    .byte   0xff
tss_end:
gdt_pointer:
    .word   gdt_end - gdt - 1
    .quad   gdt
idt_pointer:
    .word   48 * 16 - 1
    .quad   idt
    .balign 8
handlers:
    .macro  handler_of vector
    .quad   trap_\vector
    .endm
    .irp    vector, 0,1,2
    .quad   trap_\vector
    .endr
    .quad   idle_in_ring0
    .irp    vector, 4,5,6,7,8,9,10,11,12
    .quad   trap_\vector
    .endr
    .quad   general_protection
    .irp    vector, 14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    .quad   trap_\vector
    .endr
    .irp    irq, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    .quad   note_\irq
    .endr
initial_mxcsr:
    .long   0x1f80

    .section .bss
    .balign 16
    .global interrupt_notes, pending_note, exception_report
idt:
    .fill   48 * 16, 1, 0
ring0_stack:
    .fill   4096, 1, 0
ring0_stack_top:
interrupt_notes:                        # one u64 per IRQ
    .fill   16, 8, 0
exception_report:                       # vector, error code, RIP, CR2
    .fill   4, 8, 0
pending_note:
    .byte   0
exception_seen:
    .byte   0
    .text
