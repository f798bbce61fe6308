//! Lists of Compute resources: filter, order, pages, and the shapes of plain and aggregated answers.
//!
//! Pure functions over rendered resources; refuses to know where they come from. Start with [`ListQuery::parse`], then
//! [`list`] or [`aggregated`].

pub mod filter;

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use model::{
    fault::Fault,
    limits::COMPUTE_PAGE_MAX,
    name::{SELF_LINK_ROOT, Scope},
    time::Timestamp,
};

use crate::{
    call::{Query, invalid_parameter},
    schema::Body,
};
use filter::Filter;

/// The query parameters of a list.
#[derive(Clone, Debug)]
pub struct ListQuery {
    filter: Option<Filter>,
    order: Order,
    /// Results on one page, 1 to 500.
    page: usize,
    after: Option<Key>,
    /// Of filter and order: a token is good for the list that it came from only.
    digest: u64,
    pub include_all_scopes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Name,
    NewestFirst,
}

/// Where an item stands in its list, and what a page token holds of the last one. Items that come or go between two
/// pages move no other item into a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    /// Microseconds; 0 when ordered by name.
    created: i64,
    scope: String,
    name: String,
}

impl ListQuery {
    /// Reads `filter`, `orderBy`, `maxResults`, `pageToken` and `includeAllScopes`. `body` is what filters may name
    /// fields of.
    ///
    /// # Errors
    /// 400 `invalidParameter`, or `invalid` for a filter.
    pub fn parse(query: &Query, body: Body) -> Result<ListQuery, Fault> {
        let text = |name| query.get(name).filter(|text| !text.is_empty());
        let order = match text("orderBy") {
            None | Some("name" | "name asc") => Order::Name,
            Some("creationTimestamp desc") => Order::NewestFirst,
            Some(other) => {
                return Err(invalid_parameter(format!(
                    "Invalid value for field 'orderBy': '{other}'. Only name and creationTimestamp desc are supported."
                )));
            }
        };
        let page = match query.number("maxResults")? {
            None | Some(0) => COMPUTE_PAGE_MAX,
            Some(n) => usize::try_from(n).ok().filter(|n| *n <= COMPUTE_PAGE_MAX).ok_or_else(|| {
                let range = format!("Acceptable values are 0 to {COMPUTE_PAGE_MAX}, inclusive.");
                invalid_parameter(format!("Invalid value for field 'maxResults': '{n}'. {range}"))
            })?,
        };
        let filter = text("filter").map(|text| Filter::parse(text, body)).transpose()?;
        let digest = fnv(&format!("{order:?} {}", text("filter").unwrap_or("")));
        let after = text("pageToken").map(|token| read_token(token, digest)).transpose()?;
        let include_all_scopes = query.flag("includeAllScopes")? == Some(true);
        Ok(ListQuery { filter, order, page, after, digest, include_all_scopes })
    }

    fn key(&self, scope: &str, item: &Value) -> Key {
        let text = |field: &str| item[field].as_str().unwrap_or("");
        let created = match self.order {
            Order::Name => 0,
            Order::NewestFirst => Timestamp::parse_rfc3339(text("creationTimestamp")).map_or(0, |t| t.0),
        };
        Key { created, scope: scope.to_owned(), name: text("name").to_owned() }
    }

    /// The page of `items` that this query asks for, in order, and the token of the next one.
    fn take(&self, items: Vec<(Scope, Value)>) -> (Vec<(Scope, Value)>, Option<String>) {
        let mut found: Vec<(Key, Scope, Value)> = items
            .into_iter()
            .filter(|(_, item)| self.filter.as_ref().is_none_or(|filter| filter.matches(item)))
            .map(|(scope, item)| (self.key(&scope.to_string(), &item), scope, item))
            .filter(|(key, ..)| self.after.as_ref().is_none_or(|after| compare(key, after) == Ordering::Greater))
            .collect();
        found.sort_by(|(a, ..), (b, ..)| compare(a, b));
        let more = found.len() > self.page;
        found.truncate(self.page);
        let next = found.last().filter(|_| more).map(|(key, ..)| write_token(key, self.digest));
        (found.into_iter().map(|(_, scope, item)| (scope, item)).collect(), next)
    }
}

/// Newest first, then by scope and name.
fn compare(a: &Key, b: &Key) -> Ordering {
    b.created.cmp(&a.created).then_with(|| a.scope.cmp(&b.scope)).then_with(|| a.name.cmp(&b.name))
}

/// What a list is about.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The resource's word: `network` gives `compute#networkList`.
    pub word: &'a str,
    /// The path below `/compute/v1/`: `projects/p/regions/r/addresses`.
    pub path: &'a str,
}

/// The answer to a plain list. `items` is left out when there are none.
pub fn list(query: &ListQuery, about: Listed<'_>, items: Vec<Value>) -> Value {
    let (items, next) = query.take(items.into_iter().map(|item| (Scope::Global, item)).collect());
    let mut out = head(about, "List");
    if !items.is_empty() {
        out.insert("items".into(), items.into_iter().map(|(_, item)| item).collect());
    }
    finish(out, about, next)
}

/// The answer to an aggregated list: `items` is an object from scope to its results, and always there. `scopes` are
/// those of the catalogue that the kind can live in; they are named without results when the caller wants all.
pub fn aggregated(query: &ListQuery, about: Listed<'_>, scopes: &[Scope], items: Vec<(Scope, Value)>) -> Value {
    let collection = about.path.rsplit('/').next().unwrap_or(about.path);
    let (items, next) = query.take(items);
    let mut found: Map<String, Value> = Map::new();
    for (scope, item) in items {
        let place = found.entry(scope.to_string()).or_insert_with(|| json!({collection: []}));
        if let Some(list) = place[collection].as_array_mut() {
            list.push(item);
        }
    }
    if query.include_all_scopes {
        for scope in scopes {
            let scope = scope.to_string();
            found.entry(scope.clone()).or_insert_with(|| no_results(&scope));
        }
    }
    found.sort_keys();
    let mut out = head(about, "AggregatedList");
    out.insert("items".into(), found.into());
    finish(out, about, next)
}

fn no_results(scope: &str) -> Value {
    json!({"warning": {
        "code": "NO_RESULTS_ON_PAGE",
        "message": format!("There are no results for scope '{scope}' on this page."),
        "data": [{"key": "scope", "value": scope}],
    }})
}

fn head(about: Listed<'_>, suffix: &str) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("kind".into(), format!("compute#{}{suffix}", about.word).into());
    out.insert("id".into(), about.path.into());
    out
}

fn finish(mut out: Map<String, Value>, about: Listed<'_>, next: Option<String>) -> Value {
    if let Some(token) = next {
        out.insert("nextPageToken".into(), token.into());
    }
    out.insert("selfLink".into(), format!("{SELF_LINK_ROOT}{}", about.path).into());
    out.into()
}

// ---- page tokens: hexadecimal text of digest, time, scope and name ----

fn write_token(key: &Key, digest: u64) -> String {
    let plain = format!("{digest:x} {} {} {}", key.created, key.scope, key.name);
    plain.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_token(token: &str, digest: u64) -> Result<Key, Fault> {
    let bad =
        || invalid_parameter(format!("Invalid value for field 'pageToken': '{token}'. The page token is invalid."));
    let plain = unhex(token).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(bad)?;
    match plain.split(' ').collect::<Vec<_>>().as_slice() {
        [of, created, scope, name] if *of == format!("{digest:x}") => Ok(Key {
            created: created.parse().map_err(|_| bad())?,
            scope: (*scope).to_owned(),
            name: (*name).to_owned(),
        }),
        _ => Err(bad()),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// FNV-1a, 64 bits. It keeps honest clients from mixing lists; it need not resist anybody.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Kind;

    fn parse(query: &str) -> Result<ListQuery, Fault> {
        ListQuery::parse(&Query::parse(query).unwrap(), Kind::Address.body())
    }

    fn item(name: &str, created: &str) -> Value {
        json!({"name": name, "creationTimestamp": created})
    }

    fn names(list: &Value) -> Vec<&str> {
        list["items"]
            .as_array()
            .map(|items| items.iter().map(|i| i["name"].as_str().unwrap()).collect())
            .unwrap_or_default()
    }

    const ABOUT: Listed<'static> = Listed { word: "address", path: "projects/p/regions/r/addresses" };

    #[test]
    fn an_empty_list_has_no_items_and_names_itself() {
        assert_eq!(
            list(&parse("").unwrap(), ABOUT, vec![]),
            json!({
                "kind": "compute#addressList",
                "id": "projects/p/regions/r/addresses",
                "selfLink": "https://www.googleapis.com/compute/v1/projects/p/regions/r/addresses",
            })
        );
    }

    #[test]
    fn pages_cover_a_list_once_even_while_it_changes() {
        let all = |names: &[&str]| names.iter().map(|name| item(name, "")).collect::<Vec<_>>();
        let first = list(&parse("maxResults=2").unwrap(), ABOUT, all(&["d", "a", "c", "b"]));
        assert_eq!(names(&first), ["a", "b"]);
        let token = first["nextPageToken"].as_str().unwrap();
        let second = list(&parse(&format!("maxResults=2&pageToken={token}")).unwrap(), ABOUT, all(&["0", "c", "d"]));
        assert_eq!(names(&second), ["c", "d"]);
        assert_eq!(second.get("nextPageToken"), None);
    }

    #[test]
    fn a_page_token_is_good_for_its_own_list_only() {
        let page = list(&parse("maxResults=1").unwrap(), ABOUT, vec![item("a", ""), item("b", "")]);
        let token = page["nextPageToken"].as_str().unwrap();
        for query in [
            format!("pageToken={token}&filter=name=a"),
            format!("pageToken={token}&orderBy=creationTimestamp desc"),
            "pageToken=zz".into(),
            "pageToken=abc".into(),
            "pageToken=%C3%A9%C3%A9".into(),
        ] {
            assert_eq!(parse(&query).unwrap_err().reason, "invalidParameter", "{query}");
        }
    }

    #[test]
    fn the_newest_come_first_when_asked_for() {
        let items = vec![
            item("b", "2026-05-07T01:00:00.000-07:00"),
            item("a", "2026-05-07T09:00:00.000Z"),
            item("c", "2026-05-07T08:00:00Z"),
        ];
        let list = list(&parse("orderBy=creationTimestamp desc").unwrap(), ABOUT, items);
        assert_eq!(names(&list), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_no_parameter_is_refused() {
        for query in
            ["maxResults=501", "maxResults=-1", "maxResults=x", "orderBy=id", "includeAllScopes=x", "filter=nosuch=a"]
        {
            assert!(parse(query).is_err(), "{query}");
        }
        assert!(parse("maxResults=0&orderBy=name&returnPartialSuccess=true").is_ok());
    }

    #[test]
    fn an_aggregated_list_is_an_object_of_scopes() {
        let scopes = [Scope::Global, Scope::Region("r1".parse().unwrap()), Scope::Region("r2".parse().unwrap())];
        let about = Listed { word: "address", path: "projects/p/aggregated/addresses" };
        let found = vec![(scopes[1].clone(), item("b", "")), (scopes[1].clone(), item("a", ""))];
        let all = aggregated(&parse("includeAllScopes=true").unwrap(), about, &scopes, found.clone());
        assert_eq!(all["kind"], "compute#addressAggregatedList");
        assert_eq!(all["items"]["regions/r1"]["addresses"][0]["name"], "a");
        assert_eq!(
            all["items"]["regions/r2"],
            json!({"warning": {
                "code": "NO_RESULTS_ON_PAGE",
                "message": "There are no results for scope 'regions/r2' on this page.",
                "data": [{"key": "scope", "value": "regions/r2"}],
            }})
        );
        assert!(all["items"].get("global").is_some());
        let some = aggregated(&parse("").unwrap(), about, &scopes, found);
        assert_eq!(some["items"].as_object().unwrap().len(), 1);
        assert_eq!(aggregated(&parse("").unwrap(), about, &scopes, vec![])["items"], json!({}));
    }
}
