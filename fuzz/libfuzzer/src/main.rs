//! One of the targets under libFuzzer; `FUZZ_TARGET` says which when this is built. What the others need is not linked:
//! libFuzzer looks at every counter after each input. Start it with `cargo xtask fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

const TARGET: fuzz::Target = fuzz::target(env!("FUZZ_TARGET")).expect("no target is called so");

fuzz_target!(|input: &[u8]| TARGET(input));
