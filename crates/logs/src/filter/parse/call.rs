//! Functions: those that are a term of their own, and those whose value is compared.

use super::{
    super::{
        Expr, Query,
        derived::{Derived, Step, Type},
        net::Net,
        schema::{Field, Kind},
    },
    Parsed, Parser, Word,
};

/// Functions whose value is compared.
pub(super) fn is_derivation(name: &str) -> bool {
    matches!(name, "cast" | "regexp_extract")
}

impl Parser {
    /// `derived := path | derivation`
    fn derived(&mut self) -> Parsed<Derived> {
        let word = self.word()?;
        match word.bare().map(str::to_ascii_lowercase).filter(|_| self.peek() == Some('(')) {
            Some(name) if is_derivation(&name) => self.derivation(&name, word.start),
            Some(name) => Err(self.error(word.start, format!("function '{name}' has no value to go on with"))),
            None => Ok(Derived::plain(self.field(&word)?)),
        }
    }

    /// `derivation := "cast" "(" derived "," type [ "," timezone ] ")" | "regexp_extract" "(" derived "," pattern ")"`
    pub(super) fn derivation(&mut self, name: &str, start: usize) -> Parsed<Derived> {
        self.nested(|parser| {
            let mut of = parser.derived()?;
            if matches!(of.kind(), Kind::Object) {
                return Err(parser.error(start, format!("'{name}' needs a field with a value of its own")));
            }
            parser.blanks();
            parser.expect(',')?;
            parser.blanks();
            let step = match name {
                "cast" => Step::Cast(parser.cast_type()?),
                _ => Step::Extract(parser.extraction(&of)?),
            };
            of.steps.push(step);
            Ok(of)
        })
    }

    /// `type := name [ "," "TIMEZONE" "(" zone ")" ]`
    fn cast_type(&mut self) -> Parsed<Type> {
        let start = self.at;
        let word = self.word()?;
        let name = self.only(&word)?.text.clone();
        self.blanks();
        let mut zone = None;
        if self.peek() == Some(',') {
            self.at += 1;
            self.blanks();
            let function = self.word()?;
            if !function.bare().is_some_and(|name| name.eq_ignore_ascii_case("TIMEZONE")) || self.peek() != Some('(') {
                return Err(self.unexpected_at(function.start));
            }
            zone = Some(self.nested(Parser::zone)?);
        }
        Type::parse(&name, zone)
            .ok_or_else(|| self.error(start, format!("'{name}' is no type that a field can be cast to")))
    }

    fn zone(&mut self) -> Parsed<jiff::tz::TimeZone> {
        let word = self.word()?;
        let name = &self.only(&word)?.text;
        jiff::tz::TimeZone::get(name).map_err(|_| self.error(word.start, format!("'{name}' is no time zone")))
    }

    fn extraction(&mut self, of: &Derived) -> Parsed<regex::Regex> {
        let start = self.at;
        let word = self.word()?;
        let part = self.only(&word)?;
        let regex = self.regex(of, part, start)?;
        match regex.captures_len() {
            2 => Ok(regex),
            groups => {
                let why = format!("regexp_extract needs a pattern with one group, not {}", groups - 1);
                Err(self.error(start, why))
            }
        }
    }

    /// `function := name "(" [ argument { "," argument } ] ")"`
    pub(super) fn function(&mut self, name: &str, start: usize) -> Parsed<Expr> {
        self.at += 1;
        let mut arguments = Vec::new();
        self.blanks();
        while self.peek() != Some(')') {
            arguments.push(self.word()?);
            self.blanks();
            if self.peek() != Some(')') {
                self.expect(',')?;
                self.blanks();
            }
        }
        self.at += 1;
        let expr = self.call(name, &arguments, start)?;
        self.blanks();
        match self.operator()? {
            Some(_) => Err(self.error(start, format!("function '{name}' cannot be compared"))),
            None => Ok(expr),
        }
    }

    fn call(&self, name: &str, arguments: &[Word], start: usize) -> Parsed<Expr> {
        match (name, arguments) {
            ("log_id", [id]) => Ok(Expr::LogId(self.only(id)?.text.clone())),
            ("source", [parent]) => Ok(Expr::Source(self.only(parent)?.text.clone())),
            ("sample", [field, share]) => {
                let text = &self.only(share)?.text;
                let share = text.parse().ok().filter(|f| *f > 0.0 && *f <= 1.0);
                let share =
                    share.ok_or_else(|| self.error(start, "sample takes a fraction above 0, at most 1".to_owned()))?;
                Ok(Expr::Sample { field: self.field(field)?, share })
            }
            ("ip_in_net", [field, net]) => {
                let text = &self.only(net)?.text;
                let net = Net::parse(text).ok_or_else(|| self.error(start, format!("'{text}' is not a subnet")))?;
                Ok(Expr::InNet { field: self.field(field)?, net })
            }
            ("search", [query]) => self.search(None, query),
            ("search", [field, query]) => self.search(Some(self.field(field)?), query),
            ("log_id" | "source" | "sample" | "ip_in_net" | "search", _) => {
                Err(self.error(start, format!("wrong number of arguments for function '{name}'")))
            }
            _ => Err(self.error(start, format!("unknown function '{name}'"))),
        }
    }

    fn search(&self, field: Option<Field>, query: &Word) -> Parsed<Expr> {
        let parsed = Query::parse(&self.only(query)?.text);
        if parsed.is_empty() {
            return Err(self.error(query.start, "there is nothing to search for".to_owned()));
        }
        Ok(Expr::Search { field, query: parsed })
    }
}
