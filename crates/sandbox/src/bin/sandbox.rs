//! The roles of this crate as a program of their own, so that its tests and benches can start them by exec.

fn main() {
    let code = match std::env::args().nth(1).as_deref() {
        Some("shim") => sandbox::shim_main(),
        Some(_) | None => 64,
    };
    std::process::exit(code);
}
