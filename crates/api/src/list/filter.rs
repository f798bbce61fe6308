//! The two filter languages of Compute lists.
//!
//! `name eq "web-.*"` (regular expressions over whole values) and `name=web AND labels.env:*` (comparisons with AND, OR,
//! NOT and parentheses). One expression may not mix them. Source: Compute, parameter `filter`.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use model::fault::Fault;

use crate::schema::{self, Body};

/// Characters of a filter, nesting of its parentheses, and bytes of a compiled expression: strangers write them.
const TEXT_MAX: usize = 8_192;
const DEPTH_MAX: usize = 32;
const REGEX_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Debug)]
pub struct Filter(Node);

#[derive(Clone, Debug)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    /// The path of a field, and what must hold of one of its values.
    Test(Vec<String>, Test),
}

#[derive(Clone, Debug)]
enum Test {
    Matches(Regex),
    Differs(Regex),
    Compare(Comparison, String),
    /// `:` — contains the text, in any case.
    Has(String),
    /// `:*`
    Present,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Filter {
    /// # Errors
    /// 400 for what is no filter, mixes the languages, or names a field that `body` does not have.
    pub fn parse(text: &str, body: Body) -> Result<Filter, Fault> {
        let parsed = tokens(text).and_then(|tokens| {
            let mut parser = Parser { tokens: &tokens, dialect: None, body };
            let node = parser.any(0)?;
            parser.tokens.is_empty().then_some(Filter(node))
        });
        parsed.ok_or_else(|| {
            Fault::invalid(format!("Invalid value for field 'filter': '{text}'. Invalid list filter expression."))
        })
    }

    pub fn matches(&self, item: &Value) -> bool {
        self.0.holds(item)
    }
}

impl Node {
    fn holds(&self, item: &Value) -> bool {
        match self {
            Node::All(nodes) => nodes.iter().all(|node| node.holds(item)),
            Node::Any(nodes) => nodes.iter().any(|node| node.holds(item)),
            Node::Not(node) => !node.holds(item),
            Node::Test(path, test) => {
                let mut values = Vec::new();
                collect(item, path, &mut values);
                test.holds(&values)
            }
        }
    }
}

/// Every value at a path, looking through lists.
fn collect<'a>(value: &'a Value, path: &[String], out: &mut Vec<&'a Value>) {
    match (value, path) {
        (Value::Array(items), _) => items.iter().for_each(|item| collect(item, path, out)),
        (Value::Null, _) => {}
        (value, []) => out.push(value),
        (Value::Object(fields), [name, rest @ ..]) => {
            if let Some(value) = fields.get(name) {
                collect(value, rest, out);
            }
        }
        _ => {}
    }
}

impl Test {
    /// A field that is absent has no value, and so equals nothing and differs from everything.
    fn holds(&self, values: &[&Value]) -> bool {
        let texts = || values.iter().map(|value| text(value));
        match self {
            Test::Matches(regex) => texts().any(|t| regex.is_match(&t)),
            Test::Differs(regex) => !texts().any(|t| regex.is_match(&t)),
            Test::Has(part) => texts().any(|t| t.to_lowercase().contains(&part.to_lowercase())),
            Test::Present => !values.is_empty(),
            Test::Compare(Comparison::NotEqual, want) => !texts().any(|t| t == *want),
            Test::Compare(how, want) => texts().any(|t| compare(*how, &t, want)),
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Numbers compare as numbers, times as times, other texts as texts.
fn compare(how: Comparison, have: &str, want: &str) -> bool {
    use model::time::Timestamp;
    let numbers = have.parse::<f64>().ok().zip(want.parse::<f64>().ok()).and_then(|(a, b)| a.partial_cmp(&b));
    let times = || Some(Timestamp::parse_rfc3339(have)?.cmp(&Timestamp::parse_rfc3339(want)?));
    let order = numbers.or_else(times).unwrap_or_else(|| have.cmp(want));
    match how {
        Comparison::Equal => have == want || order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    }
}

// ---- parsing ----

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// A bare word: a field, a value, or one of AND, OR, NOT, eq, ne.
    Word(String),
    Quoted(String),
    Symbol(&'static str),
}

/// Operators with two characters come first.
const SYMBOLS: [&str; 10] = ["!=", "<=", ">=", "=", "<", ">", ":", "(", ")", "-"];

fn tokens(text: &str) -> Option<Vec<Token>> {
    if text.chars().count() > TEXT_MAX {
        return None;
    }
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (token, end) = token(rest, out.last())?;
        if end == 0 {
            return None;
        }
        out.push(token);
        rest = rest[end..].trim_start();
    }
    Some(out)
}

/// The token at the start of `rest`, and its length. A value may hold characters that are operators elsewhere, so what
/// a word ends at depends on the token before it.
fn token(rest: &str, last: Option<&Token>) -> Option<(Token, usize)> {
    if let Some(quote @ ('"' | '\'')) = rest.chars().next() {
        return quoted(rest, quote);
    }
    let space_or_paren = |c: char| c.is_whitespace() || c == '(' || c == ')';
    match last {
        // A regular expression goes up to a space, or to the parenthesis that closes a group around it.
        Some(Token::Word(word)) if word == "eq" || word == "ne" => {
            let mut depth = 0_usize;
            Some(bare(rest, |c| {
                let closes = c == ')' && depth == 0;
                match c {
                    '(' => depth += 1,
                    ')' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                closes || c.is_whitespace()
            }))
        }
        Some(Token::Symbol(symbol)) if !matches!(*symbol, "(" | ")" | "-") => match rest.chars().next() {
            Some('(' | ')') => None,
            _ => Some(bare(rest, space_or_paren)),
        },
        _ => match SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            Some(symbol) => Some((Token::Symbol(symbol), symbol.len())),
            None => Some(bare(rest, |c| space_or_paren(c) || "=!<>:\"'".contains(c))),
        },
    }
}

fn bare(rest: &str, stops: impl FnMut(char) -> bool) -> (Token, usize) {
    let end = rest.find(stops).unwrap_or(rest.len());
    (Token::Word(rest[..end].to_owned()), end)
}

/// A quoted text; a backslash keeps the quote after it, and itself before anything else.
fn quoted(rest: &str, quote: char) -> Option<(Token, usize)> {
    let mut out = String::new();
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if chars.peek().is_some_and(|(_, next)| *next == quote) => {
                out.push(quote);
                chars.next();
            }
            c if c == quote => return Some((Token::Quoted(out), at + 1)),
            c => out.push(c),
        }
    }
    None
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Regex,
    Comparison,
}

struct Parser<'a> {
    tokens: &'a [Token],
    dialect: Option<Dialect>,
    body: Body,
}

impl Parser<'_> {
    /// `any = all {"OR" all}`
    fn any(&mut self, depth: usize) -> Option<Node> {
        let mut nodes = vec![self.all(depth)?];
        while self.eat_word("OR") {
            self.speak(Dialect::Comparison)?;
            nodes.push(self.all(depth)?);
        }
        Some(if nodes.len() == 1 { nodes.remove(0) } else { Node::Any(nodes) })
    }

    /// `all = term {["AND"] term}`
    fn all(&mut self, depth: usize) -> Option<Node> {
        let mut nodes = vec![self.term(depth)?];
        loop {
            let explicit = self.eat_word("AND");
            match self.tokens.first() {
                Some(Token::Symbol(")")) | None if !explicit => break,
                Some(Token::Word(word)) if word == "OR" && !explicit => break,
                _ => nodes.push(self.term(depth)?),
            }
        }
        Some(if nodes.len() == 1 { nodes.remove(0) } else { Node::All(nodes) })
    }

    fn term(&mut self, depth: usize) -> Option<Node> {
        if depth > DEPTH_MAX {
            return None;
        }
        if self.eat_symbol("-") || self.eat_word("NOT") {
            self.speak(Dialect::Comparison)?;
            return Some(Node::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.eat_symbol("(") {
            let node = self.any(depth + 1)?;
            return self.eat_symbol(")").then_some(node);
        }
        let path = self.field()?;
        let operator = self.next()?;
        let test = match operator {
            Token::Word(word) if word == "eq" => Test::Matches(self.regex()?),
            Token::Word(word) if word == "ne" => Test::Differs(self.regex()?),
            Token::Symbol(symbol) => self.comparison(symbol)?,
            Token::Word(_) | Token::Quoted(_) => return None,
        };
        Some(Node::Test(path, test))
    }

    /// A path whose every step the resource has; below a map, any name.
    fn field(&mut self) -> Option<Vec<String>> {
        let Token::Word(word) = self.next()? else { return None };
        let path: Vec<String> = word.split('.').map(str::to_owned).collect();
        schema::has_path(self.body, &path).then_some(path)
    }

    fn comparison(&mut self, symbol: &str) -> Option<Test> {
        self.speak(Dialect::Comparison)?;
        let value = self.next()?;
        let how = match symbol {
            ":" => {
                return match value {
                    Token::Word(word) if word == "*" => Some(Test::Present),
                    Token::Word(text) | Token::Quoted(text) => Some(Test::Has(text)),
                    Token::Symbol(_) => None,
                };
            }
            "=" => Comparison::Equal,
            "!=" => Comparison::NotEqual,
            "<" => Comparison::Less,
            "<=" => Comparison::LessOrEqual,
            ">" => Comparison::Greater,
            ">=" => Comparison::GreaterOrEqual,
            _ => return None,
        };
        match value {
            Token::Word(text) | Token::Quoted(text) => Some(Test::Compare(how, text)),
            Token::Symbol(_) => None,
        }
    }

    fn regex(&mut self) -> Option<Regex> {
        self.speak(Dialect::Regex)?;
        let (Token::Word(text) | Token::Quoted(text)) = self.next()? else { return None };
        RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(REGEX_BYTES_MAX)
            .dfa_size_limit(REGEX_BYTES_MAX)
            .build()
            .ok()
    }

    /// Notes the language of an operator; `None` when it is not the one spoken so far.
    fn speak(&mut self, dialect: Dialect) -> Option<()> {
        (*self.dialect.get_or_insert(dialect) == dialect).then_some(())
    }

    fn next(&mut self) -> Option<Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }

    fn eat_word(&mut self, word: &str) -> bool {
        self.eat(|token| matches!(token, Token::Word(w) if w == word))
    }

    fn eat_symbol(&mut self, symbol: &str) -> bool {
        self.eat(|token| matches!(token, Token::Symbol(s) if *s == symbol))
    }

    fn eat(&mut self, wanted: impl Fn(&Token) -> bool) -> bool {
        let found = self.tokens.first().is_some_and(wanted);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::Kind;

    fn parse(text: &str) -> Result<Filter, Fault> {
        Filter::parse(text, Kind::Instance.body())
    }

    fn vm() -> Value {
        json!({
            "name": "test-vm", "id": "42", "status": "RUNNING", "description": "The web server",
            "creationTimestamp": "2026-05-06T18:20:11.123-07:00",
            "labels": {"env": "prod"}, "tags": {"items": ["web", "ssh"]},
            "scheduling": {"automaticRestart": true},
            "networkInterfaces": [{"networkIP": "10.1.0.2"}],
        })
    }

    #[test]
    fn a_filter_holds_for_what_it_describes() {
        for (filter, holds) in [
            // What gcloud sends for --filter="name=test-vm".
            (r#"name eq ".*\btest\-vm\b.*""#, true),
            ("name eq test-.*", true),
            ("name eq test", false),
            ("(name eq (test|web)-.*) (status ne (STOPPED|STOPPING))", true),
            ("name ne test", true),
            ("name ne 'test-vm'", false),
            ("(name eq test-.*) (status eq RUNNING)", true),
            ("(name eq test-.*) (status eq STOPPED)", false),
            ("name=test-vm", true),
            ("name = \"test-vm\"", true),
            ("name!=test-vm", false),
            ("name:TEST", true),
            ("description:\"web server\"", true),
            ("labels.env:*", true),
            ("labels.owner:*", false),
            ("labels.owner!=me", true),
            ("labels.env=prod AND name=other", false),
            ("labels.env=prod OR name=other", true),
            ("labels.env=prod name=other", false),
            ("name=other OR labels.env=prod status=RUNNING", true),
            ("(name=other OR labels.env=prod) AND status=STOPPED", false),
            ("NOT name=other", true),
            ("-name=test-vm", false),
            ("scheduling.automaticRestart=true", true),
            ("id>41", true),
            ("id>=43", false),
            ("id<100", true),
            ("creationTimestamp>2026-05-07T00:00:00Z", true),
            ("creationTimestamp<2026-05-07T00:00:00Z", false),
            ("tags.items=ssh", true),
            ("tags.items=ftp", false),
            ("networkInterfaces.networkIP=10.1.0.2", true),
            ("name=-x", false),
        ] {
            assert_eq!(parse(filter).expect(filter).matches(&vm()), holds, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let deep = "(".repeat(50) + "name=a" + &")".repeat(50);
        let huge = format!("name eq {}", "a{1000}".repeat(1000));
        for bad in [
            "name",
            "=a",
            "name=",
            "name ~ a",
            "(name=a",
            "name=a)",
            "name=a AND",
            "OR name=a",
            "nosuch=a",
            "name.x=a",
            "tags.nosuch=a",
            "name eq a AND name=a",
            "name=a (name eq b)",
            "name eq (",
            "name=\"a",
            "labels.env=prod OR",
            "name eq [",
            deep.as_str(),
            huge.as_str(),
        ] {
            let fault = parse(bad).expect_err(bad);
            assert!(fault.message.ends_with("Invalid list filter expression."), "{}", fault.message);
        }
    }
}
