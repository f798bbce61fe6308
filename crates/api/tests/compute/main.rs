//! The Compute API from outside: JSON in, JSON out, without a network and without a machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod cloud;
mod domains;
mod journey;
mod networks;
mod operations;
mod psc;
mod serving;
mod terraform;
mod vms;
