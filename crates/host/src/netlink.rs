//! A thin typed layer over netlink: what programs the packets is what tombolo exists for, so it is ours and readable.
//!
//! It knows messages, acknowledgements and the three families we speak (routes, nf_tables, connection tracking); it
//! refuses to know VPCs, plans and namespaces. Start with [`wire`] (bytes), then [`socket`] (request, dump, batch), then
//! the family you need. Numbers come from the kernel's uapi headers and carry their names there.

pub mod conntrack;
pub mod expr;
pub mod nft;
pub mod route;
pub mod socket;
pub mod trace;
pub mod wire;
