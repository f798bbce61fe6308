//! The proxy as its neighbours see it: real sockets on loopback, a control process and a host played by the test.

mod path;
mod rig;
