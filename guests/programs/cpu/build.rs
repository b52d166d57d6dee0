//! Generates the functions of the kernel `code`: many, small, no two alike.

use std::fmt::Write as _;
use std::path::PathBuf;

/// How many. With some 150 bytes each they are several times an L1 instruction cache, and more than most
/// translators keep of anything.
const FUNCTIONS: u64 = 4096;

/// A generator of constants (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One statement of a function's body, of five kinds.
fn statement(random: &mut u64) -> String {
    let (a, b) = (next(random), next(random) % 63 + 1);
    match next(random) % 5 {
        0 => format!("    x = x.wrapping_mul({}) ^ (x >> {b});\n", a | 1),
        1 => format!("    x = x.rotate_left({b}).wrapping_add({a});\n"),
        2 => format!(
            "    if x & {} == 0 {{ x ^= {a}; }} else {{ x = x.wrapping_sub(y); }}\n",
            1 << (b % 8)
        ),
        3 => format!("    y = (y ^ {a}).rotate_right({b});\n"),
        _ => format!("    y = y.wrapping_add(x >> {b}); x ^= y;\n"),
    }
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut random = 1;
    let mut text = String::new();
    for n in 0..FUNCTIONS {
        let _ = write!(
            text,
            "#[inline(never)]\nfn f{n}(mut x: u64, mut y: u64) -> u64 {{\n"
        );
        for _ in 0..8 {
            text += &statement(&mut random);
        }
        text += "    x ^ y\n}\n";
    }
    let names: String = (0..FUNCTIONS).map(|n| format!("f{n}, ")).collect();
    let _ = writeln!(
        text,
        "static FUNCTIONS: [fn(u64, u64) -> u64; {FUNCTIONS}] = [{names}];"
    );
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("functions.rs"), text).expect("OUT_DIR can be written");
}
