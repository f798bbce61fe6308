//! The `fields` parameter: which parts of an answer the caller wants.
//!
//! Grammar: `selection = item {"," item}`, `item = path ["(" selection ")"]`, `path = name {("/" | ".") name}`, where a
//! name may be `*`. It looks through arrays. Source: Google API design, "partial responses".

use std::collections::BTreeMap;

use serde_json::Value;

use model::fault::Fault;

use crate::call::invalid_parameter;

/// Deepest nesting of a selection; no resource is deeper.
const DEPTH_MAX: usize = 32;

/// A parsed selection: field name to what is wanted of it. Empty means everything below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(BTreeMap<String, Mask>);

impl Mask {
    /// # Errors
    /// 400 `invalidParameter`, naming the selection.
    pub fn parse(text: &str) -> Result<Mask, Fault> {
        let mut parser = Parser { text, rest: text };
        let mask = parser.selection(0)?;
        if parser.rest.is_empty() { Ok(mask) } else { Err(parser.invalid()) }
    }

    /// Removes everything that was not asked for.
    pub fn apply(&self, value: &mut Value) {
        if self.0.is_empty() {
            return;
        }
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Value::Object(fields) => fields.retain(|name, value| match self.wanted(name) {
                Some(below) => {
                    below.apply(value);
                    true
                }
                None => false,
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// Every selected path, `/` between names; what the API uses to refuse a field that its answer cannot have.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for (name, below) in &self.0 {
            if below.0.is_empty() {
                paths.push(name.clone());
            }
            paths.extend(below.paths().into_iter().map(|path| format!("{name}/{path}")));
        }
        paths
    }

    fn wanted(&self, name: &str) -> Option<&Mask> {
        self.0.get(name).or_else(|| self.0.get("*"))
    }

    fn add(&mut self, path: &[&str], below: Mask) {
        match path {
            [] => self.0.extend(below.0),
            [name, rest @ ..] => match self.0.get_mut(*name) {
                // `a,a/b`: all of `a` was asked for already.
                Some(known) if known.0.is_empty() => {}
                Some(known) if rest.is_empty() && below.0.is_empty() => known.0.clear(),
                Some(known) => known.add(rest, below),
                None => {
                    let mut new = Mask::default();
                    new.add(rest, below);
                    self.0.insert((*name).to_owned(), new);
                }
            },
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    fn selection(&mut self, depth: usize) -> Result<Mask, Fault> {
        let mut mask = Mask::default();
        loop {
            self.item(&mut mask, depth)?;
            if !self.eat(',') {
                return Ok(mask);
            }
        }
    }

    fn item(&mut self, mask: &mut Mask, depth: usize) -> Result<(), Fault> {
        let end = self.rest.find([',', '(', ')']).unwrap_or(self.rest.len());
        let (path, rest) = self.rest.split_at(end);
        let names: Vec<&str> = path.trim().split(['/', '.']).collect();
        if depth + names.len() > DEPTH_MAX || !names.iter().all(|name| is_name(name)) {
            return Err(self.invalid());
        }
        self.rest = rest;
        let below = if self.eat('(') {
            let below = self.selection(depth + names.len())?;
            if !self.eat(')') {
                return Err(self.invalid());
            }
            below
        } else {
            Mask::default()
        };
        mask.add(&names, below);
        Ok(())
    }

    fn eat(&mut self, c: char) -> bool {
        match self.rest.trim_start().strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn invalid(&self) -> Fault {
        invalid_field_selection(self.text)
    }
}

fn is_name(name: &str) -> bool {
    name == "*"
        || (!name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-' || c == b'@'))
}

/// Source: Google APIs, a `fields` parameter that selects nothing that exists.
pub fn invalid_field_selection(what: &str) -> Fault {
    invalid_parameter(format!("Invalid field selection {what}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selection_keeps_exactly_what_it_names() {
        let whole = || {
            json!({
                "kind": "list",
                "items": [{"name": "a", "net": {"x": 1, "y": 2}}, {"name": "b"}],
                "next": "t",
            })
        };
        for (mask, want) in [
            ("kind", json!({"kind": "list"})),
            ("items/name,next", json!({"items": [{"name": "a"}, {"name": "b"}], "next": "t"})),
            ("items(name,net/x)", json!({"items": [{"name": "a", "net": {"x": 1}}, {"name": "b"}]})),
            ("items.net.y", json!({"items": [{"net": {"y": 2}}, {}]})),
            ("items/net(x),items/net(y)", json!({"items": [{"net": {"x": 1, "y": 2}}, {}]})),
            ("items/*/x", json!({"items": [{"name": "a", "net": {"x": 1}}, {"name": "b"}]})),
            ("items,items/name", json!({"items": whole()["items"]})),
            ("items/name,items", json!({"items": whole()["items"]})),
            ("*", whole()),
            ("nothing", json!({})),
        ] {
            let mut value = whole();
            Mask::parse(mask).unwrap().apply(&mut value);
            assert_eq!(value, want, "{mask}");
        }
    }

    #[test]
    fn what_is_no_selection_is_refused_with_its_text() {
        let deep = "a(".repeat(40) + "b" + &")".repeat(40);
        for bad in ["", ",", "a,", "a(", "a)", "a()", "a(b", "a//b", "a b", "a(b)c", "/a", deep.as_str()] {
            let fault = Mask::parse(bad).expect_err(bad);
            assert_eq!(fault.reason, "invalidParameter");
            assert_eq!(fault.message, format!("Invalid field selection {bad}"));
        }
    }

    #[test]
    fn the_paths_of_a_mask_are_its_leaves() {
        assert_eq!(Mask::parse("b,a(c,d/e)").unwrap().paths(), ["a/c", "a/d/e", "b"]);
    }
}
