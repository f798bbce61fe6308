//! Service Directory: what is registered under which name.

pub(crate) mod psc;
