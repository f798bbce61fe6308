//! The APIs of identity, projects, Cloud Run and Logging, asked as gcloud asks them, without a network.

#![allow(clippy::unwrap_used)]

mod audit;
mod clock;
mod directory;
mod identity;
mod logging;
mod orgpolicy;
mod oslogin;
mod projects;
mod run;
mod scene;
