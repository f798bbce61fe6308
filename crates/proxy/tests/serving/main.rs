//! The proxy as its neighbours see it: real sockets on loopback, a control process and a host played by the test.

#![allow(clippy::unwrap_used)]

mod backend;
mod load;
mod path;
mod refusals;
mod rig;
mod strangers;
mod sys;
