//! Finding a page of entries: newest or oldest first, each once, the same whether or not more come in meanwhile.
//!
//! The page's candidates are kept sorted and bounded; segments are visited in the order of time and the search ends as
//! soon as no unvisited segment can hold a better one. Start with [`Search::visit`].

use std::{collections::BTreeMap, fmt::Write, ops::RangeInclusive};

use model::limits;
use serde_json::Value;

use super::segment::{Extent, Record, Scan};
use crate::filter::{Filter, hash};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    #[default]
    Asc,
    Desc,
}

/// What `entries.list` asks for.
#[derive(Clone, Debug)]
pub struct Query {
    /// `projects/P`, by id. None gives nothing.
    pub parents: Vec<String>,
    pub filter: Filter,
    pub order: Order,
    /// Entries of one page, 1 to 1000.
    pub page_size: usize,
    /// From the page before; all else must be as it was there, but for the page's size.
    pub page_token: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In their JSON form.
    pub entries: Vec<Value>,
    /// There are more.
    pub next_page_token: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It is no token, or one of another query.
    #[error("page_token doesn't match arguments from the request")]
    Token,
    #[error("cannot read the log {path}")]
    Read { path: String, source: std::io::Error },
}

/// Where an entry stands in a listing, and what makes it one with another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    timestamp: i64,
    insert_id: String,
    parent: String,
}

/// What a page token holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    /// Entries numbered from here on came after the first page was made.
    horizon: u64,
    fingerprint: u64,
    last: Place,
}

impl Token {
    fn to_text(&self) -> String {
        let Place { timestamp, insert_id, parent } = &self.last;
        let plain = format!("{}\n{}\n{timestamp}\n{parent}\n{insert_id}", self.horizon, self.fingerprint);
        plain.bytes().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
    }

    fn parse(text: &str) -> Option<Token> {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        let bytes = digits?.chunks(2).map(|pair| pair.iter().fold(0, |n, d| n << 4 | d)).collect();
        let plain = String::from_utf8(bytes).ok()?;
        let mut parts = plain.splitn(5, '\n');
        let horizon = parts.next()?.parse().ok()?;
        let fingerprint = parts.next()?.parse().ok()?;
        let timestamp = parts.next()?.parse().ok()?;
        let parent = parts.next()?.to_owned();
        let insert_id = parts.next()?.to_owned();
        Some(Token { horizon, fingerprint, last: Place { timestamp, insert_id, parent } })
    }
}

/// A query under way.
pub(super) struct Search<'a> {
    query: &'a Query,
    page_size: usize,
    fingerprint: u64,
    horizon: u64,
    after: Option<Place>,
    /// Nothing outside of these timestamps can be on the page.
    pub(super) times: RangeInclusive<i64>,
    /// The best so far, one more than fits the page.
    best: BTreeMap<Place, Value>,
}

impl<'a> Search<'a> {
    /// `next` is the number that the next entry to come will get.
    pub(super) fn new(query: &'a Query, next: u64) -> Result<Search<'a>, QueryError> {
        let fingerprint = hash(&format!("{:?} {:?} {}", query.parents, query.order, query.filter.text()));
        let token = match &query.page_token {
            None => None,
            Some(text) => {
                let token = Token::parse(text).filter(|t| t.fingerprint == fingerprint && t.horizon <= next);
                Some(token.ok_or(QueryError::Token)?)
            }
        };
        let wanted = query.filter.time_range();
        let (mut first, mut last) = (wanted.start().0, wanted.end().0);
        let horizon = token.as_ref().map_or(next, |t| t.horizon);
        let after = token.map(|t| t.last);
        match (&after, query.order) {
            (Some(place), Order::Asc) => first = first.max(place.timestamp),
            (Some(place), Order::Desc) => last = last.min(place.timestamp),
            (None, Order::Asc | Order::Desc) => {}
        }
        Ok(Search {
            query,
            page_size: query.page_size.clamp(1, limits::LOGGING_PAGE_MAX),
            fingerprint,
            horizon,
            after,
            times: first..=last,
            best: BTreeMap::new(),
        })
    }

    /// The order in which segments are to be visited.
    pub(super) fn rank(&self, extent: &Extent) -> i64 {
        match self.query.order {
            Order::Asc => *extent.times.start(),
            // Bitwise "not" turns the order around without overflow.
            Order::Desc => !*extent.times.end(),
        }
    }

    /// Whether no entry of this segment, nor of any that follows it, can be on the page.
    pub(super) fn is_over(&self, extent: &Extent) -> bool {
        self.is_worse(match self.query.order {
            Order::Asc => *extent.times.start(),
            Order::Desc => *extent.times.end(),
        })
    }

    /// Whether the page is full of entries that all come before this time.
    fn is_worse(&self, timestamp: i64) -> bool {
        if self.best.len() <= self.page_size {
            return false;
        }
        match self.query.order {
            Order::Asc => self.best.last_key_value().is_some_and(|(worst, _)| timestamp > worst.timestamp),
            Order::Desc => self.best.first_key_value().is_some_and(|(worst, _)| timestamp < worst.timestamp),
        }
    }

    /// Looks through one segment. False if it is damaged: what follows the damage was not seen.
    pub(super) fn visit<'b>(&mut self, base: u64, blocks: impl Iterator<Item = &'b [u8]>) -> bool {
        let mut number = base;
        let mut whole = true;
        let mut records = Vec::new();
        for block in blocks {
            let mut scan = Scan::new(block);
            for record in scan.by_ref() {
                let is_wanted = number < self.horizon
                    && self.times.contains(&record.timestamp)
                    && self.query.parents.iter().any(|p| p == record.parent);
                if is_wanted {
                    records.push(record);
                }
                number += 1;
            }
            whole &= scan.is_at_end();
        }
        // The best first: most of the others then need not even be parsed. Equal ones stay in order of arrival.
        match self.query.order {
            Order::Asc => records.sort_by_key(|r| r.timestamp),
            Order::Desc => records.sort_by_key(|r| !r.timestamp),
        }
        for record in records {
            if self.is_worse(record.timestamp) {
                break;
            }
            self.consider(record);
        }
        whole
    }

    fn consider(&mut self, record: Record<'_>) {
        let Some(entry) = self.query.filter.select(record.json) else { return };
        let insert_id = entry.get("insertId").and_then(Value::as_str).unwrap_or_default().to_owned();
        let place = Place { timestamp: record.timestamp, insert_id, parent: record.parent.to_owned() };
        let was_shown = self.after.as_ref().is_some_and(|last| match self.query.order {
            Order::Asc => place <= *last,
            Order::Desc => place >= *last,
        });
        if was_shown {
            return;
        }
        self.best.entry(place).or_insert(entry);
        if self.best.len() > self.page_size + 1 {
            match self.query.order {
                Order::Asc => self.best.pop_last(),
                Order::Desc => self.best.pop_first(),
            };
        }
    }

    pub(super) fn page(self) -> Page {
        let has_more = self.best.len() > self.page_size;
        let mut best: Vec<(Place, Value)> = match self.query.order {
            Order::Asc => self.best.into_iter().collect(),
            Order::Desc => self.best.into_iter().rev().collect(),
        };
        best.truncate(self.page_size);
        let last = best.last().filter(|_| has_more).map(|(place, _)| place.clone());
        let (horizon, fingerprint) = (self.horizon, self.fingerprint);
        let next_page_token = last.map(|last| Token { horizon, fingerprint, last }.to_text());
        Page { entries: best.into_iter().map(|(_, entry)| entry).collect(), next_page_token }
    }
}
