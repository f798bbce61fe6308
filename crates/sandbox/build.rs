//! Compiles the program of the built-in images: one static file, so that it runs on an empty root filesystem.

use std::{env, path::PathBuf, process::Command};

fn main() {
    let source = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../images/hello.rs");
    let target = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it")).join("hello");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");
    let status = Command::new(env::var("RUSTC").expect("cargo sets it"))
        .args(["--edition=2024", "--crate-name=hello", "--target", &env::var("TARGET").expect("cargo sets it")])
        .args(["-C", "target-feature=+crt-static", "-C", "relocation-model=static", "-C", "opt-level=s"])
        .args(["-C", "panic=abort", "-C", "strip=symbols", "-C", "codegen-units=1"])
        .arg("-o")
        .arg(&target)
        .arg(&source)
        .status()
        .expect("the compiler that compiles this can be started");
    assert!(status.success(), "images/hello.rs does not compile");
}
