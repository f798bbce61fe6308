//! The walkthrough as calls of the public doors, shared by the demo and the acceptance tests.
//!
//! The program itself is `main.rs`.

pub mod client;
pub mod journey;

/// Errors are for people: a sentence and its causes.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
