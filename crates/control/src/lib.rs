//! Verbs and plans: the only writer of the store, the only holder of keys.
//!
//! Start with [`ops`] (the whole life of a write), then [`world`] (what is known), [`plan`] (what the machine should
//! be, a pure function of the world) and [`driver`] (the loop that makes it so and says when it is).
//!
//! Refuses to know: HTTP and wire formats (`api`), the kernel (`host`), bytes of workloads (`proxy`, `guest`).

pub mod accounts;
mod change;
pub mod credentials;
pub mod directory;
pub mod dirty;
pub mod driver;
pub mod entries;
pub mod instances;
mod joined;
pub mod kind;
pub mod kinds;
pub mod operation;
pub mod ops;
pub mod org_policies;
pub mod os_login;
pub mod plan;
pub mod policies;
pub mod projects;
pub mod psc;
pub mod random;
pub mod run;
mod sweep;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod why;
pub mod world;
