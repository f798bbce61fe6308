//! The memory of Cloud Logging: entries, where they are kept, and the language they are asked for in.
//!
//! It knows no HTTP, no project that exists and no right to read: the door checks who may ask, then asks [`Journal`].
//! Records of the data plane become entries in [`records`], [`balanced`] and [`flows`], what containers print in
//! [`lines`], API calls in [`audit`], what users write in [`written`].
//!
//! Start with [`entry`] (what an entry is), then [`filter`] (which ones are wanted), then [`journal`].

pub mod audit;
pub mod balanced;
pub mod entry;
pub mod filter;
pub mod flows;
pub mod journal;
pub mod lines;
pub mod records;
pub mod written;

pub use entry::{Entry, LogName, LogTime, Payload, Resource, Severity};
pub use filter::{Filter, FilterError};
pub use journal::{Bounds, Journal, Order, Page, Query, QueryError, Stats};
