//! One comparison of one value. The right side was converted to the field's type when the filter was parsed.

use regex::Regex;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use super::schema::Kind;
use crate::entry::{LogTime, Severity};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rel {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
    /// `:`, for texts "contains", for all else "equals".
    Has,
}

impl Rel {
    fn holds<T: PartialOrd>(self, left: T, right: T) -> bool {
        match self {
            Rel::Eq | Rel::Has => left == right,
            Rel::Ne => left != right,
            Rel::Gt => left > right,
            Rel::Ge => left >= right,
            Rel::Lt => left < right,
            Rel::Le => left <= right,
        }
    }

    fn text(self, left: &str, folded: &str) -> bool {
        match self {
            Rel::Has => fold(left).contains(folded),
            Rel::Eq => fold(left) == folded,
            Rel::Ne => fold(left) != folded,
            Rel::Gt | Rel::Ge | Rel::Lt | Rel::Le => self.holds(fold(left).as_str(), folded),
        }
    }
}

/// The form in which texts are compared: neither case counts nor how a character was put together. Source: Cloud
/// Logging, comparisons under NFKC_CF.
pub(super) fn fold(text: &str) -> String {
    match text.is_ascii() {
        true => text.to_ascii_lowercase(),
        // `ß` and `SS` are equal without case: the capital form is the one that shows it.
        false => text.nfkc().collect::<String>().to_uppercase().to_lowercase().nfkc().collect(),
    }
}

/// The right side of a comparison, in every type it could be.
#[derive(Clone, Debug)]
pub(super) struct Literal {
    written: String,
    folded: String,
    number: Option<f64>,
    boolean: Option<bool>,
}

impl Literal {
    /// The folded text, if it is nothing but a text: numbers and flags may be written otherwise.
    pub(super) fn word(&self) -> Option<&str> {
        (self.number.is_none() && self.boolean.is_none()).then_some(&self.folded)
    }

    pub(super) fn new(text: &str) -> Literal {
        let folded = fold(text);
        let boolean = match folded.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        };
        Literal { written: text.to_owned(), number: text.parse().ok(), boolean, folded }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Test {
    Present,
    Null {
        wanted: bool,
    },
    Matches {
        regex: Regex,
        wanted: bool,
    },
    Text(Rel, String),
    Number(Rel, f64),
    Bool(Rel, bool),
    Severity(Rel, Severity),
    /// Nanoseconds of a duration.
    Duration(Rel, i64),
    Timestamp(Rel, LogTime),
    Dynamic(Rel, Literal),
}

impl Test {
    /// # Errors
    /// Why the value cannot be compared with a field of this kind.
    pub(super) fn new(kind: Kind, rel: Rel, value: Literal) -> Result<Test, String> {
        let wrong = |what: &str| format!("'{}' is not a valid {what}", value.written);
        match kind {
            Kind::Text => Ok(Test::Text(rel, value.folded)),
            Kind::Number => value.number.map(|n| Test::Number(rel, n)).ok_or_else(|| wrong("number")),
            Kind::Bool => value.boolean.map(|b| Test::Bool(rel, b)).ok_or_else(|| wrong("boolean")),
            Kind::Severity => value.written.parse().map(|s| Test::Severity(rel, s)).map_err(|_| wrong("severity")),
            Kind::Duration => duration(&value.written).map(|d| Test::Duration(rel, d)).ok_or_else(|| wrong("duration")),
            Kind::Timestamp => {
                LogTime::parse(&value.written).map(|t| Test::Timestamp(rel, t)).ok_or_else(|| wrong("timestamp"))
            }
            Kind::Dynamic => Ok(Test::Dynamic(rel, value)),
            Kind::Object => {
                Err("a field that has fields of its own cannot be compared, only tested with ':*'".to_owned())
            }
        }
    }

    /// For a field that is not in the entry but has a default.
    pub(super) fn of_default(&self) -> bool {
        match self {
            Test::Present | Test::Null { .. } | Test::Dynamic(..) => false,
            Test::Matches { regex, wanted } => regex.is_match("") == *wanted,
            Test::Text(rel, want) => rel.text("", want),
            Test::Number(rel, want) => rel.holds(0.0, *want),
            Test::Bool(rel, want) => rel.holds(false, *want),
            Test::Severity(rel, want) => rel.holds(Severity::Default, *want),
            Test::Duration(rel, want) => rel.holds(0, *want),
            Test::Timestamp(rel, want) => rel.holds(LogTime(0), *want),
        }
    }

    pub(super) fn of(&self, value: &Value) -> bool {
        match self {
            Test::Present => true,
            Test::Null { wanted } => value.is_null() == *wanted,
            Test::Matches { regex, wanted } => value.as_str().is_some_and(|text| regex.is_match(text) == *wanted),
            Test::Text(rel, want) => value.as_str().is_some_and(|text| rel.text(text, want)),
            Test::Number(rel, want) => number(value).is_some_and(|n| rel.holds(n, *want)),
            Test::Bool(rel, want) => value.as_bool().is_some_and(|b| rel.holds(b, *want)),
            Test::Severity(rel, want) => {
                let severity = value.as_str().and_then(|text| text.parse().ok());
                severity.is_some_and(|s: Severity| rel.holds(s, *want))
            }
            Test::Duration(rel, want) => value.as_str().and_then(duration).is_some_and(|d| rel.holds(d, *want)),
            Test::Timestamp(rel, want) => value.as_str().and_then(LogTime::parse).is_some_and(|t| rel.holds(t, *want)),
            Test::Dynamic(rel, want) => dynamic(*rel, want, value),
        }
    }
}

/// A JSON value decides the type of the comparison. What cannot be converted to it is unequal to nothing and equal to
/// nothing: the comparison is false.
fn dynamic(rel: Rel, want: &Literal, value: &Value) -> bool {
    match value {
        Value::String(text) => rel.text(text, &want.folded),
        Value::Number(n) => n.as_f64().zip(want.number).is_some_and(|(left, right)| rel.holds(left, right)),
        Value::Bool(b) => want.boolean.is_some_and(|right| rel.holds(*b, right)),
        Value::Null | Value::Object(_) | Value::Array(_) => false,
    }
}

/// 64-bit integers are strings in JSON.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

/// `3.2s`, `15ms`, … in nanoseconds.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (count, unit) = text.split_at(unit_at);
    let unit_ns = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3_600e9,
        _ => return None,
    };
    let ns = count.parse::<f64>().ok()? * unit_ns;
    // Whole nanoseconds, and within what an i64 holds (292 years).
    let ns = ns.round();
    if ns.abs() < 9.2e18 { format!("{ns:.0}").parse().ok() } else { None }
}
