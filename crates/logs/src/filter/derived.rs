//! The left side of a comparison: a field, or what functions make of it.
//!
//! Source: Cloud Logging, "Logging query language", `cast` and `regexp_extract`. What cannot be converted has no value,
//! and every comparison with it is false.

use jiff::tz::TimeZone;
use regex::Regex;
use serde_json::Value;

use super::schema::{Absent, Field, Kind};
use crate::entry::LogTime;

#[derive(Clone, Debug)]
pub(super) struct Derived {
    pub(super) field: Field,
    /// Applied in order.
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Cast(Type),
    /// What the one group of the pattern captures first.
    Extract(Regex),
}

#[derive(Clone, Debug)]
pub(super) enum Type {
    String,
    Int64,
    Float64,
    Bool,
    /// Of a text without an offset, in this zone.
    Timestamp(TimeZone),
    Duration,
}

impl Type {
    /// By its name in any case, with the zone that was written behind it.
    pub(super) fn parse(name: &str, zone: Option<TimeZone>) -> Option<Type> {
        let timestamp = name.eq_ignore_ascii_case("TIMESTAMP");
        if timestamp || zone.is_some() {
            return timestamp.then(|| Type::Timestamp(zone.unwrap_or(TimeZone::UTC)));
        }
        let plain = [Type::String, Type::Int64, Type::Float64, Type::Bool, Type::Duration];
        let names = ["STRING", "INT64", "FLOAT64", "BOOL", "DURATION"];
        names.iter().zip(plain).find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, found)| found)
    }

    fn kind(&self) -> Kind {
        match self {
            Type::String => Kind::Text,
            Type::Int64 | Type::Float64 => Kind::Number,
            Type::Bool => Kind::Bool,
            Type::Timestamp(_) => Kind::Timestamp,
            Type::Duration => Kind::Duration,
        }
    }

    /// In the JSON form that a field of this type has.
    fn convert(&self, value: &Value) -> Option<Value> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        match self {
            Type::String => Some(Value::String(text)),
            Type::Int64 => text.trim().parse::<i64>().ok().map(Value::from),
            Type::Float64 => text.trim().parse::<f64>().ok().map(Value::from),
            Type::Bool => text.to_ascii_lowercase().parse::<bool>().ok().map(Value::Bool),
            Type::Timestamp(zone) => instant(&text, zone).map(|at| Value::String(at.to_string())),
            Type::Duration => super::test::duration(&text).map(|_| Value::String(text)),
        }
    }
}

fn instant(text: &str, zone: &TimeZone) -> Option<LogTime> {
    let local = || {
        let local: jiff::civil::DateTime = text.parse().ok()?;
        let at = local.to_zoned(zone.clone()).ok()?.timestamp();
        i64::try_from(at.as_nanosecond()).ok().map(LogTime)
    };
    // A date alone is local too, which `LogTime` does not know.
    if text.len() == "2025-10-15".len() { local() } else { LogTime::parse(text).or_else(local) }
}

impl Derived {
    pub(super) fn plain(field: Field) -> Derived {
        Derived { field, steps: Vec::new() }
    }

    /// Which values it can be compared with.
    pub(super) fn kind(&self) -> Kind {
        match self.steps.last() {
            Some(Step::Cast(to)) => to.kind(),
            Some(Step::Extract(_)) => Kind::Text,
            None => self.field.kind,
        }
    }

    /// Whether `test` holds for any value at this place. A schema's field that is not in the entry has its default.
    pub(super) fn any(&self, entry: &Value, test: &dyn Fn(&Value) -> bool) -> bool {
        let holds = |value: &Value| self.apply(value).is_some_and(|value| test(&value));
        let absent = || self.field.absent == Absent::Defaulted && holds(&default(self.field.kind));
        self.field.any(entry, &mut |value| holds(value)).unwrap_or_else(absent)
    }

    fn apply(&self, value: &Value) -> Option<Value> {
        self.steps.iter().try_fold(value.clone(), |value, step| match step {
            Step::Cast(to) => to.convert(&value),
            Step::Extract(regex) => {
                let group = regex.captures(value.as_str()?)?.get(1)?;
                Some(Value::String(group.as_str().to_owned()))
            }
        })
    }
}

fn default(kind: Kind) -> Value {
    match kind {
        Kind::Number => Value::from(0),
        Kind::Bool => Value::Bool(false),
        Kind::Severity => Value::from("DEFAULT"),
        Kind::Duration => Value::from("0s"),
        Kind::Timestamp => Value::from(LogTime(0).to_string()),
        Kind::Text | Kind::Object | Kind::Dynamic => Value::from(""),
    }
}
