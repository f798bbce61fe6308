//! Wall-clock instants as values. Nothing here reads a clock: whoever needs "now" is given it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// An instant in UTC, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn from_unix_s(seconds: i64) -> Timestamp {
        Timestamp(seconds.saturating_mul(1_000_000))
    }

    pub fn unix_s(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    pub fn unix_ms(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    pub fn plus(self, d: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to `self`; zero if the clock went back in between.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    fn jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// RFC 3339 with six fractional digits and `Z`: the form of Cloud Run and Cloud Logging.
    pub fn rfc3339_us(self) -> String {
        format!("{:.6}", self.jiff())
    }

    /// RFC 3339 with milliseconds and the US Pacific offset: the form of the Compute API.
    /// Source: every `creationTimestamp` and `insertTime` of Compute v1.
    pub fn rfc3339_pacific_ms(self) -> String {
        let zone = jiff::tz::TimeZone::get("America/Los_Angeles").unwrap_or(jiff::tz::TimeZone::UTC);
        self.jiff().to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S.%3f%:z").to_string()
    }

    /// Parses RFC 3339 with any offset; digits past the microsecond are dropped.
    pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
        text.parse::<jiff::Timestamp>().ok().map(|t| Timestamp(t.as_microsecond()))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339_us())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_family_sees_its_own_form_of_the_same_instant() {
        let t = Timestamp::parse_rfc3339("2026-05-07T01:20:11.123456789Z").unwrap();
        assert_eq!(t.rfc3339_us(), "2026-05-07T01:20:11.123456Z");
        assert_eq!(t.rfc3339_pacific_ms(), "2026-05-06T18:20:11.123-07:00");
        assert_eq!(Timestamp::parse_rfc3339("2026-05-06T18:20:11.123456-07:00"), Some(t));
        assert_eq!(Timestamp::parse_rfc3339("yesterday"), None);
    }

    #[test]
    fn a_clock_that_went_back_gives_no_negative_age() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    }
}
