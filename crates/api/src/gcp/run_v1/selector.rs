//! Label selectors: `a=b, c!=d, e, !f, g in (h,i), j notin (k)`. Source: Kubernetes, "Labels and Selectors".

use model::fault::Fault;
use serde_json::Value;

/// Terms that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Present(String),
    Absent(String),
    In(String, Vec<String>),
    /// Also true of what has no such label.
    NotIn(String, Vec<String>),
}

impl Selector {
    /// # Errors
    /// 400 for a term that is none.
    pub fn parse(text: &str) -> Result<Selector, Fault> {
        let terms = split(text).into_iter().filter(|term| !term.is_empty());
        terms
            .map(|term| {
                Term::parse(term).ok_or_else(|| Fault::invalid(format!("labelSelector: '{term}' is not a selector.")))
            })
            .collect::<Result<_, _>>()
            .map(Selector)
    }

    pub fn matches(&self, labels: &Value) -> bool {
        self.0.iter().all(|term| {
            let value = |key: &String| labels[key.as_str()].as_str();
            match term {
                Term::Present(key) => value(key).is_some(),
                Term::Absent(key) => value(key).is_none(),
                Term::In(key, values) => value(key).is_some_and(|v| values.iter().any(|w| w == v)),
                Term::NotIn(key, values) => value(key).is_none_or(|v| !values.iter().any(|w| w == v)),
            }
        })
    }
}

/// At commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(text[start..].trim());
    out
}

impl Term {
    fn parse(term: &str) -> Option<Term> {
        let key = |text: &str| {
            let text = text.trim();
            (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| text.to_owned())
        };
        if let Some((head, list)) = term.split_once('(') {
            let values = list.strip_suffix(')')?.split(',').map(|v| v.trim().to_owned()).collect();
            let (name, word) = head.trim().rsplit_once(char::is_whitespace)?;
            return match word {
                "in" => Some(Term::In(key(name)?, values)),
                "notin" => Some(Term::NotIn(key(name)?, values)),
                _ => None,
            };
        }
        if let Some((name, value)) = term.split_once("!=") {
            return Some(Term::NotIn(key(name)?, vec![value.trim().to_owned()]));
        }
        if let Some((name, value)) = term.split_once('=') {
            return Some(Term::In(key(name)?, vec![value.trim_start_matches('=').trim().to_owned()]));
        }
        match term.strip_prefix('!') {
            Some(name) => Some(Term::Absent(key(name)?)),
            None => Some(Term::Present(key(term)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_chooses_by_what_labels_say() {
        let labels = json!({"serving.knative.dev/service": "hello", "env": "prod"});
        for (selector, want) in [
            ("", true),
            ("serving.knative.dev/service = hello", true),
            ("serving.knative.dev/service=other", false),
            ("env==prod", true),
            ("env != prod", false),
            ("tier != gold", true),
            ("env in (dev, prod), serving.knative.dev/service", true),
            ("env notin (dev,prod)", false),
            ("tier notin (gold)", true),
            ("!tier,env", true),
            ("!env", false),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches(&labels), want, "{selector}");
        }
        for bad in ["a in b", "a in (b", "= x", "a b"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }
}
