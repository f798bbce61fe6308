//! Sandboxes: what runs a VM or a container instance on this machine.
//!
//! Each sandbox belongs to one small single-threaded process, its *shim*, that outlives whoever started it. The
//! launcher (in the privileged host process) only spawns shims and talks to them over Unix sockets; it never forks.
//! A shim makes the namespaces, then the mounts, then starts the workload, keeps its output, reaps it, and cleans up.
//!
//! ```text
//!   host process                shim (root, one thread)                 in the sandbox
//!   Launcher::park ──spawn──▶   cgroups, clone3 of all namespaces ──▶   parked pid 1: private /proc, /sys, /dev
//!   (wires Parked::netns)
//!   Parked::launch ──plan───▶   idmapped layer trees, limits      ──▶   root filesystem, fewer rights, exec
//!   Running::exec  ──fds────▶   joins cgroups and namespaces      ──▶   one more process
//!        ◀──────── events ───   reaps, reports, removes cgroups and socket, exits
//! ```
//!
//! This crate knows no network: it is handed no address, and hands out the network namespace for others to wire. It
//! knows no cloud either: limits, images and commands come with the plan.
//!
//! Start with [`Launcher`], then `shim`, then `inside` (what happens on the other side of `clone3`).

pub mod builtin;
mod cgroup;
mod error;
mod events;
pub mod image;
mod inside;
mod launcher;
mod output;
pub mod printed;
mod privilege;
mod rootfs;
mod seed;
mod shim;
mod sys;
mod wire;

pub use error::Error;
pub use launcher::{Config, Event, Exec, ExecStatus, Launcher, Parked, Running, Stdio};
pub use shim::shim_main;
pub use sys::close_inherited;
pub use wire::{ExecRequest, Service, Status};
