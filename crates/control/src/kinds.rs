//! The kinds of Compute resources, one file each: what a caller must hold, what a spec may say, and what is decided
//! when it is committed.
