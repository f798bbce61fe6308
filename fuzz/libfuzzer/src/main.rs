//! One of the targets under libFuzzer; the environment variable `FUZZ_TARGET` says which. Start it with
//! `cargo xtask fuzz`.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fn chosen() -> fuzz::Target {
    static CHOSEN: OnceLock<fuzz::Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is no target"))
    })
}

fuzz_target!(|input: &[u8]| chosen()(input));
