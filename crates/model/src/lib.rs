//! The nouns: every type that more than one process or crate of tombolo speaks about.
//!
//! Pure on purpose. Nothing here does I/O, reads a clock, awaits, or knows HTTP and kernel. Wire formats of the clouds
//! live in `api`; netlink lives in `host`. The serde derives here are the *stored* form and the form in which our own
//! processes talk to each other.
//!
//! Start with [`name`] (how things are called), then the area files (`vpc`, `lb`, `psc`, `run`), then [`planned`]: what
//! the control plane may ask of the machine.

pub mod cidr;
pub mod directory;
pub mod fault;
pub mod iam;
pub mod id;
pub mod lb;
pub mod limits;
pub mod login;
pub mod name;
pub mod orgpolicy;
pub mod planned;
pub mod project;
pub mod psc;
pub mod record;
pub mod run;
pub mod time;
pub mod vm;
pub mod vpc;
