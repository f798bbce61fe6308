//! The Compute API from outside: JSON in, JSON out, without a network and without a machine.

mod cloud;
mod journey;
mod networks;
mod operations;
mod psc;
mod serving;
mod vms;
