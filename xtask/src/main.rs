//! The project's one tool: `cargo xtask test` is what CI runs, `cargo xtask tidy` holds the house rules, `cargo xtask
//! bench` prints each promise of SPECIFICATION.md beside its measure.

mod bench;
mod demo;
mod fuzz;
mod leaks;
mod test;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

const USAGE: &str = "\
usage: cargo xtask <command>

  demo [OPTION...]  builds the program and lets it walk journey 1 on a throwaway cloud
  test [FLOOR...]   all tests, or those of the floors named: unit, lab, acceptance; ends with counts per floor
  tidy              the house rules: arrows between crates, sizes, docstrings, unsafe, decision records
  bench [NAME...]   measures, each beside its peer in the same run; installs the peers (haproxy, crun, wrk) with apt
  fuzz [TARGET...] [--minutes N] [--keep]
                    looks for bytes that break a parser, N minutes (1) for each target; --keep adds what reaches
                    new code to fuzz/corpus, which the tests read
  leaks             what of ours is left on this machine (namespaces, mounts, cgroups, processes, files)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = args.split_first().map_or(("", [].as_slice()), |(c, r)| (c.as_str(), r));
    match command {
        "demo" => demo::run(rest),
        "test" => test::run(rest),
        "tidy" => tidy::run(),
        "bench" => bench::run(rest),
        "fuzz" => fuzz::run(rest),
        "leaks" => leaks::run(),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_owned()
}
