use super::*;
use crate::testing::model;

/// What the speed of a guest hangs on has code of its own: a handler would do the same, slower, and nobody would
/// see.
#[test]
fn common_instructions_have_code_of_their_own() {
    let features = Features::of(&model());
    let common: [(&[u8], &str); 30] = [
        (&[0x48, 0x01, 0xd8], "add %rbx,%rax"),
        (&[0x83, 0x00, 0x01], "addl $1,(%rax)"),
        (&[0x45, 0x85, 0xe4], "test %r12d,%r12d"),
        (
            &[0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0],
            "mov %gs:0x28,%rax",
        ),
        (&[0x44, 0x8d, 0x7c, 0xb3, 0x08], "lea 8(%rbx,%rsi,4),%r15d"),
        (&[0x0f, 0xb6, 0x07], "movzbl (%rdi),%eax"),
        (&[0x48, 0xff, 0xc9], "dec %rcx"),
        (&[0xc1, 0xe0, 0x05], "shl $5,%eax"),
        (&[0x48, 0xd3, 0xe8], "shr %cl,%rax"),
        (&[0xc1, 0xc0, 0x07], "rol $7,%eax"),
        (&[0x48, 0x0f, 0xaf, 0xc3], "imul %rbx,%rax"),
        (&[0x48, 0xf7, 0xf1], "div %rcx"),
        (&[0x0f, 0xba, 0xe0, 0x03], "bt $3,%eax"),
        (&[0x4c, 0x0f, 0xa3, 0x20], "bt %r12,(%rax)"),
        (&[0xf6, 0xc7, 0x08], "test $8,%bh"),
        (&[0x0f, 0xb6, 0xc4], "movzbl %ah,%eax"),
        (&[0x88, 0xcc], "mov %cl,%ah"),
        (&[0x48, 0x0f, 0xc7, 0x0f], "cmpxchg16b (%rdi)"),
        (&[0x0f, 0x94, 0xc0], "sete %al"),
        (&[0x48, 0x0f, 0x44, 0xc3], "cmove %rbx,%rax"),
        (&[0xf0, 0x0f, 0xb1, 0x0f], "lock cmpxchg %ecx,(%rdi)"),
        (&[0x0f, 0x0d, 0x0b], "prefetchw (%rbx), which no model has"),
        (&[0x41, 0x57], "push %r15"),
        (&[0x5d], "pop %rbp"),
        (&[0x74, 0x10], "je"),
        (&[0xe8, 0, 1, 0, 0], "call"),
        (&[0xc3], "ret"),
        (&[0x0f, 0x28, 0x04, 0x24], "movaps (%rsp),%xmm0"),
        (&[0x66, 0x0f, 0xef, 0xc0], "pxor %xmm0,%xmm0"),
        (&[0xf2, 0x0f, 0x58, 0xc1], "addsd %xmm1,%xmm0"),
    ];
    for (bytes, text) in common {
        let instruction = crate::decode::again(bytes, 0, &features).expect(text);
        let work = plan(&instruction, bytes, 0, &features).work;
        assert!(!matches!(work, Work::Handler | Work::Rest), "{text}");
    }
}

/// The interpreter cuts such an address behind the bit's distance, translated code would before it.
#[test]
fn a_bit_string_at_a_narrow_address_is_left_to_its_handler() {
    let features = Features::of(&model());
    let work = |bytes: &[u8]| {
        let instruction = crate::decode::again(bytes, 0, &features).unwrap();
        plan(&instruction, bytes, 0, &features).work
    };
    let narrow = work(&[0x67, 0x0f, 0xa3, 0x08]);
    assert!(
        matches!(narrow, Work::Handler),
        "bt %ecx,(%eax): {narrow:?}"
    );
    let one = work(&[0x67, 0x0f, 0xba, 0x20, 0x03]);
    assert!(matches!(one, Work::Bit { .. }), "bt $3,(%eax): {one:?}");
}
