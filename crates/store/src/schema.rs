//! The versions written into every store, and the way from an older one to ours.
//!
//! Two numbers, for two reasons to change: [`LAYOUT`] is how this crate lays entries out in a file; [`FORM`] is what
//! callers put into keys and values. A store with a newer number is refused: an older program would drop what it does
//! not know. To change a stored form, raise [`FORM`] by one and append one [`Migration`]; it runs once, in the
//! transaction that raises the number.

/// How entries lie in the file. 1: `entries` maps a key to three little-endian u64 (modified, created, version)
/// followed by the value; `meta` maps `layout`, `form` and `revision` to numbers.
pub const LAYOUT: u64 = 1;

/// What keys and values mean.
pub const FORM: u64 = 1;

/// One step from the form before it, for each entry on its own. Revisions are kept.
pub type Migration = fn(key: &str, value: &[u8]) -> Rewrite;

/// What becomes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    Keep,
    Value(Vec<u8>),
    Move { key: String, value: Vec<u8> },
    Drop,
}

/// `MIGRATIONS[n]` leads from form n + 1 to form n + 2.
pub(crate) const MIGRATIONS: &[Migration] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_the_step_that_leads_to_it() {
        assert_eq!(u64::try_from(MIGRATIONS.len()), Ok(FORM - 1));
    }
}
