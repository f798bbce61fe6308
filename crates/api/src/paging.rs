//! Pages of lists. Compute has its own way, with orders and filters: [`crate::list`].

use model::fault::Fault;
use serde_json::{Value, json};

use crate::{
    call::{Answer, Query},
    reply::Reply,
};

/// How an API pages its lists. A page begins after the item whose key its token is.
pub struct Paging {
    /// The parameter that says how many items a page has.
    pub size: &'static str,
    /// Without the parameter, or with 0.
    pub default: usize,
    /// Whoever asks for more gets so many.
    pub max: usize,
    pub order: Order,
}

/// How items come.
pub enum Order {
    /// By their keys, so that a token is good when its item is gone.
    ByKey,
    /// As they are given; nobody knows the place of an item that is gone.
    AsGiven,
}

impl Paging {
    /// The page of `items`, each with its key, that `query` asks for, and the token of the next one.
    ///
    /// # Errors
    /// 400 for a size that is no number and for a token without a place.
    pub fn page(&self, query: &Query, mut items: Vec<(String, Value)>) -> Result<(Vec<Value>, Option<String>), Fault> {
        if let Order::ByKey = self.order {
            items.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        if let Some(token) = query.get("pageToken").filter(|token| !token.is_empty()) {
            match self.order {
                Order::ByKey => items.retain(|(key, _)| key.as_str() > token),
                Order::AsGiven => {
                    let at = items.iter().position(|(key, _)| key == token);
                    items.drain(..=at.ok_or_else(|| Fault::invalid("The page token is invalid."))?);
                }
            }
        }
        let size = match query.number(self.size)? {
            None | Some(0) => self.default,
            Some(size) => usize::try_from(size).unwrap_or(self.max).min(self.max),
        };
        let more = items.len() > size;
        items.truncate(size);
        let next = items.last().filter(|_| more).map(|(key, _)| key.clone());
        Ok((items.into_iter().map(|(_, item)| item).collect(), next))
    }

    /// The page as an answer: the items under `field`, which is left out when there are none.
    ///
    /// # Errors
    /// As [`Paging::page`].
    pub fn list(&self, query: &Query, field: &str, items: Vec<(String, Value)>) -> Answer {
        let (items, next) = self.page(query, items)?;
        let mut shown = json!({});
        if !items.is_empty() {
            shown[field] = items.into();
        }
        if let Some(token) = next {
            shown["nextPageToken"] = token.into();
        }
        Ok(Reply::json(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(order: Order, query: &str, keys: &[&str]) -> Result<(Vec<Value>, Option<String>), Fault> {
        let paging = Paging { size: "pageSize", default: 2, max: 3, order };
        paging.page(&Query::parse(query).unwrap(), keys.iter().map(|key| ((*key).to_owned(), json!(key))).collect())
    }

    #[test]
    fn a_page_has_as_many_items_as_are_asked_for_and_no_more_than_the_api_gives() {
        for (query, keys, next) in [
            ("", &["a", "b"][..], Some("b")),
            ("pageSize=0", &["a", "b"], Some("b")),
            ("pageSize=1", &["a"], Some("a")),
            ("pageSize=99", &["a", "b", "c"], Some("c")),
            ("pageToken=b", &["c", "d"], None),
            ("pageToken=d", &[], None),
        ] {
            let (items, token) = page(Order::ByKey, query, &["a", "b", "c", "d"]).unwrap();
            assert_eq!((items, token.as_deref()), (keys.iter().map(|key| json!(key)).collect(), next), "{query}");
        }
        assert!(page(Order::ByKey, "pageSize=x", &[]).is_err());
    }

    #[test]
    fn a_token_outlives_its_item_only_where_the_order_still_tells_its_place() {
        assert_eq!(page(Order::ByKey, "pageToken=b", &["c", "a"]).unwrap().0, ["c"]);
        assert_eq!(page(Order::AsGiven, "pageToken=z", &["y", "z", "a"]).unwrap().0, ["a"]);
        assert_eq!(page(Order::AsGiven, "pageToken=b", &["c", "a"]).unwrap_err().message, "The page token is invalid.");
    }
}
