//! The language in which entries are asked for: parsing and deciding, both pure.
//!
//! What is not supported is refused when the filter is parsed; a filter that parses is obeyed. Sources: Cloud Logging,
//! "Logging query language"; AIP-160 for the grammar. Start with [`Filter::parse`] and [`Filter::matches`].

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::entry::{LogName, LogTime};

mod derived;
mod net;
mod parse;
mod regexp;
mod schema;
mod test;

use derived::Derived;
use net::Net;
use schema::{Absent, Field};
pub(crate) use test::duration as duration_ns;
use test::{Rel, Test, fold};

/// A parsed filter. The default one matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    text: String,
    root: Option<Expr>,
}

/// Why a text is no filter: the public message, and where it went wrong (both from 1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FilterError {
    pub message: String,
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Debug)]
enum Expr {
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    Field {
        field: Field,
        test: Test,
    },
    /// Of what functions make of a field.
    Derived {
        left: Derived,
        test: Test,
    },
    /// Any text of the entry contains this (folded).
    Anywhere(String),
    LogId(String),
    Source(String),
    Sample {
        field: Field,
        share: f64,
    },
    InNet {
        field: Field,
        net: Net,
    },
    Search {
        field: Option<Field>,
        query: Query,
    },
}

/// What SEARCH looks for: every word as a whole, in any order, and every phrase word for word.
#[derive(Clone, Debug)]
struct Query {
    words: Vec<String>,
    phrases: Vec<Vec<String>>,
}

impl Expr {
    fn all(mut terms: Vec<Expr>) -> Expr {
        if terms.len() == 1 { terms.remove(0) } else { Expr::All(terms) }
    }

    fn any(mut terms: Vec<Expr>) -> Expr {
        if terms.len() == 1 { terms.remove(0) } else { Expr::Any(terms) }
    }

    fn anywhere(text: &str) -> Expr {
        Expr::Anywhere(fold(text))
    }

    fn matches(&self, entry: &Value) -> bool {
        match self {
            Expr::All(terms) => terms.iter().all(|term| term.matches(entry)),
            Expr::Any(terms) => terms.iter().any(|term| term.matches(entry)),
            Expr::Not(term) => !term.matches(entry),
            Expr::Field { field, test } => {
                let absent = || field.absent == Absent::Defaulted && test.of_default();
                field.any(entry, &mut |value| test.of(value)).unwrap_or_else(absent)
            }
            Expr::Derived { left, test } => left.any(entry, &|value| test.of(value)),
            Expr::Anywhere(needle) => texts(entry, &mut |text| fold(text).contains(needle)),
            Expr::LogId(id) => log_name(entry).is_some_and(|name| name.id == *id),
            Expr::Source(parent) => log_name(entry).is_some_and(|name| name.parent == *parent),
            Expr::Sample { field, share } => {
                let chosen = |text: &str| fraction(text) <= *share;
                let absent = || field.absent == Absent::Defaulted && chosen("");
                field.any(entry, &mut |value| texts(value, &mut |text| chosen(text))).unwrap_or_else(absent)
            }
            Expr::InNet { field, net } => {
                field.any(entry, &mut |v| v.as_str().is_some_and(|text| net.contains_text(text))).unwrap_or(false)
            }
            Expr::Search { field: None, query } => query.is_in(entry),
            Expr::Search { field: Some(field), query } => {
                field.any(entry, &mut |value| query.is_in(value)).unwrap_or(false)
            }
        }
    }

    /// Whether an entry of this ASCII text could match. True if in doubt.
    fn may_match(&self, json: &str) -> bool {
        match self {
            Expr::All(terms) => terms.iter().all(|term| term.may_match(json)),
            Expr::Any(terms) => terms.iter().any(|term| term.may_match(json)),
            Expr::Field { field, test } => needle(field, test).is_none_or(|needle| contains(json, &needle)),
            Expr::Anywhere(text) if is_plain(text) => contains(json, text),
            Expr::Not(_)
            | Expr::Derived { .. }
            | Expr::Anywhere(_)
            | Expr::LogId(_)
            | Expr::Source(_)
            | Expr::Sample { .. }
            | Expr::InNet { .. }
            | Expr::Search { .. } => true,
        }
    }

    /// Narrows `within` to the timestamps that can match.
    fn narrow(&self, within: &mut (i64, i64)) {
        match self {
            Expr::All(terms) => terms.iter().for_each(|term| term.narrow(within)),
            Expr::Field { field, test: Test::Timestamp(rel, LogTime(at)) } if field.is_timestamp() => match rel {
                Rel::Eq | Rel::Has => *within = (within.0.max(*at), within.1.min(*at)),
                Rel::Ge => within.0 = within.0.max(*at),
                Rel::Gt => within.0 = within.0.max(at.saturating_add(1)),
                Rel::Le => within.1 = within.1.min(*at),
                Rel::Lt => within.1 = within.1.min(at.saturating_sub(1)),
                Rel::Ne => {}
            },
            _ => {}
        }
    }
}

impl Filter {
    /// # Errors
    /// [`FilterError`] for everything that is not understood, also for what the real language has and this one not.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        Ok(Filter { root: parse::parse(text)?, text: text.to_owned() })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether an entry, in its JSON form, is wanted.
    pub fn matches(&self, entry: &Value) -> bool {
        self.root.as_ref().is_none_or(|root| root.matches(entry))
    }

    /// The entry with this JSON (as [`crate::Entry::to_text`] writes it), if it is wanted. Most that are not are told
    /// by their text, without parsing it.
    pub fn select(&self, json: &str) -> Option<Value> {
        let hopeless = self.root.as_ref().is_some_and(|root| json.is_ascii() && !root.may_match(json));
        if hopeless {
            return None;
        }
        serde_json::from_str(json).ok().filter(|entry| self.matches(entry))
    }

    /// No entry outside of these timestamps can match. Empty if start > end.
    pub fn time_range(&self) -> RangeInclusive<LogTime> {
        let mut within = (i64::MIN, i64::MAX);
        if let Some(root) = &self.root {
            root.narrow(&mut within);
        }
        LogTime(within.0)..=LogTime(within.1)
    }
}

/// What the text of every matching entry contains, in small letters.
fn needle(field: &Field, test: &Test) -> Option<String> {
    let key = field.last_key();
    match test {
        // The default is not written.
        Test::Text(Rel::Eq, text) if is_plain(text) && !text.is_empty() && is_plain(key) => {
            // Without the quote before the key: a search for a quote stops at every one.
            Some(format!("{}\":\"{text}\"", key.to_ascii_lowercase()))
        }
        Test::Text(Rel::Has, text) if is_plain(text) => Some(text.clone()),
        Test::Dynamic(Rel::Eq | Rel::Has, literal) => literal.word().filter(|text| is_plain(text)).map(str::to_owned),
        _ => None,
    }
}

/// Written in JSON as it stands.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b'"' && b != b'\\')
}

/// Whether `needle`, in small letters, occurs in any case.
fn contains(json: &str, needle: &str) -> bool {
    let (text, needle) = (json.as_bytes(), needle.as_bytes());
    let Some((first, rest)) = needle.split_first() else { return true };
    text.len() >= needle.len()
        && text[..=text.len() - needle.len()].iter().enumerate().any(|(at, byte)| {
            byte.to_ascii_lowercase() == *first && text[at + 1..at + needle.len()].eq_ignore_ascii_case(rest)
        })
}

fn log_name(entry: &Value) -> Option<LogName> {
    entry.get("logName").and_then(Value::as_str).and_then(LogName::parse)
}

/// Whether `test` holds for the text of any scalar within.
fn texts(value: &Value, test: &mut dyn FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Number(n) => test(&n.to_string()),
        Value::Bool(b) => test(if *b { "true" } else { "false" }),
        Value::Null => false,
        Value::Array(items) => items.iter().any(|item| texts(item, test)),
        Value::Object(fields) => fields.values().any(|field| texts(field, test)),
    }
}

/// The words of a text for SEARCH: runs of letters and digits, without case.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(fold)
}

impl Query {
    /// Text between backticks is a phrase. A last backtick without a partner is a character like any other.
    fn parse(text: &str) -> Query {
        let mut query = Query { words: Vec::new(), phrases: Vec::new() };
        let mut rest = text;
        while let Some((before, phrase, after)) = phrase(rest) {
            query.words.extend(words(before));
            query.phrases.push(words(phrase).collect());
            rest = after;
        }
        query.words.extend(words(rest));
        query.phrases.retain(|phrase| !phrase.is_empty());
        query
    }

    fn is_empty(&self) -> bool {
        self.words.is_empty() && self.phrases.is_empty()
    }

    fn is_in(&self, value: &Value) -> bool {
        let has_word = |word: &String| texts(value, &mut |text| words(text).any(|found| found == *word));
        let has_phrase = |phrase: &Vec<String>| {
            texts(value, &mut |text| words(text).collect::<Vec<_>>().windows(phrase.len()).any(|found| found == phrase))
        };
        self.words.iter().all(has_word) && self.phrases.iter().all(has_phrase)
    }
}

fn phrase(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('`')?;
    let (phrase, after) = rest.split_once('`')?;
    Some((before, phrase, after))
}

/// FNV-1a, mixed. The same in every process.
pub(crate) fn hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// A number in [0, 1) that depends on the text alone.
pub(crate) fn fraction(text: &str) -> f64 {
    f64::from(u32::try_from(hash(text) >> 32).unwrap_or_default()) / 4_294_967_296.0
}
