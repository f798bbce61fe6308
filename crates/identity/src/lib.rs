//! Who may do what, and the tokens that say who is asking.
//!
//! Pure decisions and signatures: nothing here reads a clock, a store or a network. Whoever asks brings the time, the
//! policies and the keys. A process that holds only a [`token::Verifier`] can check tokens and cannot make one.
//!
//! Start with [`token`] (ID tokens), then [`access`] (API tokens) and [`assertion`] (what a service account's own key
//! signs). [`keys`] makes and rotates the keys. What a caller may do is decided in [`policy`], by the tables in
//! [`permission`](mod@permission) and [`role`].

pub mod access;
pub mod assertion;
pub mod base64;
pub mod keys;
pub mod permission;
pub mod policy;
pub mod role;
pub mod token;

mod json;
mod jwt;
