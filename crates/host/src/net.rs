//! From a plan to what the kernel holds: [`vpc`] and [`fabric`] say what should be (pure), [`pieces`] what a change
//! of it changes (pure), [`state`] compares (pure),
//! [`kernel`] reads and applies, [`text`] shows people what a plan means, [`flow`] counts what passed.

pub mod cable;
pub mod fabric;
pub mod flow;
pub mod kernel;
pub mod pieces;
pub mod rules;
pub mod state;
pub mod text;
pub mod vpc;
