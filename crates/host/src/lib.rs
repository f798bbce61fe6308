//! The privileged hands: makes the Linux kernel obey the plans that control sends.
//!
//! Everything goes over netlink from here; no `ip` and no `nft` program is started. This crate refuses to know what a
//! project, a service attachment or a load balancer is: it is handed cells (`model::planned::host`) in which nothing is
//! left to decide, and answers which generation of each the kernel now equals.
//!
//! Start with [`net`] (plan to kernel state, pure), then [`hands`] (one cell applied), then [`agent`] (the process).
//! [`netlink`] is the layer below, [`names`] says how everything is called, [`capture`] shows what is on the
//! wire, [`trace`] which rules a packet met.

pub mod agent;
pub mod capture;
pub mod doors;
pub mod facts;
pub mod hands;
pub mod names;
pub mod net;
pub mod netlink;
pub mod netns;
pub mod sandboxes;
mod sys;
pub mod trace;
