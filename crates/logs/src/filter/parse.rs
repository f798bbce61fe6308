//! From text to [`Expr`]. One pass, one character of look-ahead, no backtracking.
//!
//! Not like most languages: OR binds tighter than AND, and two terms side by side mean AND. Start with
//! [`Parser::all`]; every function reads one rule of the grammar written above it.

use model::limits;

mod call;

use super::{
    Expr, FilterError,
    derived::Derived,
    regexp,
    schema::{self, Field, Kind},
    test::{Literal, Rel, Test},
};

pub(super) fn parse(text: &str) -> Result<Option<Expr>, FilterError> {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() > limits::FILTER_CHARS_MAX {
        let message =
            format!("Filter is too long: {} characters of at most {}.", chars.len(), limits::FILTER_CHARS_MAX);
        return Err(FilterError { message, line: 1, column: 1 });
    }
    let mut parser = Parser { chars, at: 0, depth: 0 };
    parser.blanks();
    if parser.peek().is_none() {
        return Ok(None);
    }
    let all = parser.all()?;
    match parser.peek() {
        None => Ok(Some(all)),
        Some(_) => Err(parser.unexpected()),
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
}

/// A path or a value, before it is known which.
struct Word {
    parts: Vec<Part>,
    start: usize,
}

struct Part {
    text: String,
    quoted: bool,
}

impl Word {
    fn bare(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part { text, quoted: false }] => Some(text),
            _ => None,
        }
    }

    fn is(&self, keyword: &str) -> bool {
        self.bare() == Some(keyword)
    }

    fn is_keyword(&self) -> bool {
        ["AND", "OR", "NOT"].iter().any(|k| self.is(k))
    }
}

/// What a comparison is made for: one left side, one relation, several values perhaps.
struct Left {
    of: Derived,
    rel: Operator,
}

impl Left {
    fn expr(&self, test: Test) -> Expr {
        match self.of.steps.is_empty() {
            true => Expr::Field { field: self.of.field.clone(), test },
            false => Expr::Derived { left: self.of.clone(), test },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    Rel(Rel),
    Matches { wanted: bool },
}

type Parsed<T> = Result<T, FilterError>;

impl Parser {
    /// `all := any { ["AND"] any }`
    fn all(&mut self) -> Parsed<Expr> {
        let mut terms = vec![self.any()?];
        loop {
            self.blanks();
            if matches!(self.peek(), None | Some(')')) {
                return Ok(Expr::all(terms));
            }
            if self.keyword("AND") {
                self.blanks();
            }
            terms.push(self.any()?);
        }
    }

    /// `any := not { "OR" not }`
    fn any(&mut self) -> Parsed<Expr> {
        let mut terms = vec![self.not()?];
        loop {
            self.blanks();
            if !self.keyword("OR") {
                return Ok(Expr::any(terms));
            }
            self.blanks();
            terms.push(self.not()?);
        }
    }

    /// `not := ["NOT" | "-"] simple`
    fn not(&mut self) -> Parsed<Expr> {
        let negated = if self.keyword("NOT") {
            self.blanks();
            true
        } else if self.peek() == Some('-') {
            self.at += 1;
            true
        } else {
            false
        };
        let simple = self.simple()?;
        Ok(if negated { Expr::Not(Box::new(simple)) } else { simple })
    }

    /// `simple := "(" all ")" | function | derived op values | value`
    fn simple(&mut self) -> Parsed<Expr> {
        if self.peek() == Some('(') {
            return self.nested(Parser::all);
        }
        let word = self.word()?;
        if word.is_keyword() {
            return Err(self.unexpected_at(word.start));
        }
        if self.peek() == Some('(')
            && let Some(name) = word.bare()
        {
            let name = name.to_ascii_lowercase();
            if !call::is_derivation(&name) {
                return self.function(&name, word.start);
            }
            let of = self.derivation(&name, word.start)?;
            self.blanks();
            let Some(rel) = self.operator()? else { return Err(self.unexpected()) };
            return self.values(&Left { of, rel });
        }
        self.blanks();
        let Some(rel) = self.operator()? else { return self.anywhere(&word) };
        let of = Derived::plain(self.field(&word)?);
        self.values(&Left { of, rel })
    }

    /// `values := value | "(" values_all ")"`
    fn values(&mut self, left: &Left) -> Parsed<Expr> {
        self.blanks();
        if self.peek() == Some('(') { self.nested(|p| p.values_all(left)) } else { self.value(left) }
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Parser) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > limits::FILTER_DEPTH_MAX {
            let why = format!("Filter is nested too deeply: at most {} levels.", limits::FILTER_DEPTH_MAX);
            return Err(self.error(self.at, why));
        }
        self.at += 1;
        self.blanks();
        let expr = inner(self)?;
        self.blanks();
        self.expect(')')?;
        self.depth -= 1;
        Ok(expr)
    }

    /// A value alone is searched for everywhere.
    fn anywhere(&self, word: &Word) -> Parsed<Expr> {
        match word.parts.as_slice() {
            [part] if part.quoted || !part.text.starts_with(['+', '.', '*']) => Ok(Expr::anywhere(&part.text)),
            _ => Err(self.unexpected_at(word.start)),
        }
    }

    /// `values_all := values_any { ["AND"] values_any }`, each compared with the same field
    fn values_all(&mut self, left: &Left) -> Parsed<Expr> {
        let mut terms = vec![self.values_any(left)?];
        loop {
            self.blanks();
            if matches!(self.peek(), None | Some(')')) {
                return Ok(Expr::all(terms));
            }
            if self.keyword("AND") {
                self.blanks();
            }
            terms.push(self.values_any(left)?);
        }
    }

    /// `values_any := values_not { "OR" values_not }`
    fn values_any(&mut self, left: &Left) -> Parsed<Expr> {
        let mut terms = vec![self.values_not(left)?];
        loop {
            self.blanks();
            if !self.keyword("OR") {
                return Ok(Expr::any(terms));
            }
            self.blanks();
            terms.push(self.values_not(left)?);
        }
    }

    /// `values_not := ["NOT"] ( "(" values_all ")" | value )`
    fn values_not(&mut self, left: &Left) -> Parsed<Expr> {
        let negated = self.keyword("NOT");
        self.blanks();
        let inner = if self.peek() == Some('(') { self.nested(|p| p.values_all(left))? } else { self.value(left)? };
        Ok(if negated { Expr::Not(Box::new(inner)) } else { inner })
    }

    /// The right side of a comparison, read as the field's type.
    fn value(&mut self, left: &Left) -> Parsed<Expr> {
        let start = self.at;
        let word = self.value_word()?;
        let part = match word.parts.as_slice() {
            [part] if !word.is_keyword() => part,
            _ => return Err(self.unexpected_at(start)),
        };
        if matches!(self.peek(), Some(':' | '=' | '<' | '>' | '!' | '~' | ',')) {
            // `2025-10-15T02:25` first of all is no word; that it is no timestamp either helps nobody.
            return Err(self.unexpected());
        }
        let test = match left.rel {
            Operator::Matches { wanted } => Test::Matches { regex: self.regex(&left.of, part, start)?, wanted },
            Operator::Rel(rel) => self.plain_test(left, part, rel, start)?,
        };
        Ok(left.expr(test))
    }

    fn regex(&self, of: &Derived, part: &Part, start: usize) -> Parsed<regex::Regex> {
        if !part.quoted {
            return Err(self.error(start, "regular expressions must begin and end with '\"'".to_owned()));
        }
        if !matches!(of.kind(), Kind::Text | Kind::Dynamic) {
            return Err(self.error(start, "regular expressions can only be used with string fields".to_owned()));
        }
        regexp::compile(&part.text).map_err(|why| self.error(start, format!("invalid regular expression: {why}")))
    }

    fn plain_test(&self, left: &Left, part: &Part, rel: Rel, start: usize) -> Parsed<Test> {
        if !part.quoted && part.text == "*" {
            return if rel == Rel::Has { Ok(Test::Present) } else { Err(self.unexpected_at(start)) };
        }
        if !part.quoted && part.text == "NULL_VALUE" {
            return match (left.of.kind(), rel) {
                (Kind::Dynamic, Rel::Eq) => Ok(Test::Null { wanted: true }),
                (Kind::Dynamic, Rel::Ne) => Ok(Test::Null { wanted: false }),
                _ => Err(self.error(start, "NULL_VALUE can only be compared with '=' in a JSON field".to_owned())),
            };
        }
        let literal = Literal::new(&part.text);
        Test::new(left.of.kind(), rel, literal).map_err(|why| self.error(start, why))
    }

    fn field(&self, word: &Word) -> Parsed<Field> {
        let path = self.path(word)?;
        schema::resolve(&path).map_err(|name| self.error_text(word.start, format!("Field not found: '{name}'.")))
    }

    /// Quoted parts are names as they stand; bare ones are cut at their dots.
    fn path(&self, word: &Word) -> Parsed<Vec<String>> {
        let mut path = Vec::new();
        let last = word.parts.len() - 1;
        for (n, part) in word.parts.iter().enumerate() {
            if part.quoted {
                path.push(part.text.clone());
                continue;
            }
            let mut text = part.text.as_str();
            if n > 0 && n < last && text == "." {
                continue;
            }
            if n > 0 {
                text = text.strip_prefix('.').ok_or_else(|| self.unexpected_at(word.start))?;
            }
            if n < last {
                text = text.strip_suffix('.').ok_or_else(|| self.unexpected_at(word.start))?;
            }
            path.extend(text.split('.').map(str::to_owned));
        }
        match path.iter().any(String::is_empty) {
            true => Err(self.unexpected_at(word.start)),
            false => Ok(path),
        }
    }

    fn only<'a>(&self, word: &'a Word) -> Parsed<&'a Part> {
        match word.parts.as_slice() {
            [part] => Ok(part),
            _ => Err(self.unexpected_at(word.start)),
        }
    }

    // ---- characters ----

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn peek_after(&self) -> Option<char> {
        self.chars.get(self.at + 1).copied()
    }

    /// Skips white space and comments.
    fn blanks(&mut self) {
        loop {
            match self.peek() {
                Some(c) if c.is_whitespace() => self.at += 1,
                Some('-') if self.peek_after() == Some('-') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    /// Takes a keyword if it stands here as a whole word, in capitals.
    fn keyword(&mut self, keyword: &str) -> bool {
        let end = self.at + keyword.len();
        let here = keyword.chars().enumerate().all(|(n, c)| self.chars.get(self.at + n) == Some(&c));
        let whole = self.chars.get(end).is_none_or(|c| !is_bare(*c));
        if here && whole {
            self.at = end;
        }
        here && whole
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.peek() == Some(c) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected())
    }

    fn operator(&mut self) -> Parsed<Option<Operator>> {
        let (operator, length) = match (self.peek(), self.peek_after()) {
            (Some('='), Some('~')) => (Operator::Matches { wanted: true }, 2),
            (Some('!'), Some('~')) => (Operator::Matches { wanted: false }, 2),
            (Some('!'), Some('=')) => (Operator::Rel(Rel::Ne), 2),
            (Some('>'), Some('=')) => (Operator::Rel(Rel::Ge), 2),
            (Some('<'), Some('=')) => (Operator::Rel(Rel::Le), 2),
            (Some('='), _) => (Operator::Rel(Rel::Eq), 1),
            (Some('>'), _) => (Operator::Rel(Rel::Gt), 1),
            (Some('<'), _) => (Operator::Rel(Rel::Lt), 1),
            (Some(':'), _) => (Operator::Rel(Rel::Has), 1),
            _ => return Ok(None),
        };
        self.at += length;
        Ok(Some(operator))
    }

    /// Bare and quoted parts that touch each other.
    fn word(&mut self) -> Parsed<Word> {
        let mut word = Word { parts: Vec::new(), start: self.at };
        loop {
            match self.peek() {
                Some('"') => {
                    let text = self.quoted()?;
                    word.parts.push(Part { text, quoted: true });
                    if self.peek() != Some('.') {
                        break;
                    }
                }
                Some(c) if is_bare(c) => {
                    let text = self.bare();
                    let goes_on = text.ends_with('.') && self.peek() == Some('"');
                    word.parts.push(Part { text, quoted: false });
                    if !goes_on {
                        break;
                    }
                }
                _ => break,
            }
        }
        if word.parts.is_empty() { Err(self.unexpected()) } else { Ok(word) }
    }

    /// A word on the right side: only a number may start with a sign.
    fn value_word(&mut self) -> Parsed<Word> {
        let start = self.at;
        let word = match self.peek() {
            Some('"') => Word { parts: vec![Part { text: self.quoted()?, quoted: true }], start },
            Some(c) if is_bare(c) => Word { parts: vec![Part { text: self.bare(), quoted: false }], start },
            _ => return Err(self.unexpected()),
        };
        let signed = word.bare().is_some_and(|t| t.starts_with(['+', '-', '.']) && t.parse::<f64>().is_err());
        if signed { Err(self.unexpected_at(start)) } else { Ok(word) }
    }

    fn bare(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(is_bare) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn quoted(&mut self) -> Parsed<String> {
        let start = self.at;
        self.at += 1;
        let mut text = String::new();
        loop {
            let Some(c) = self.peek() else { return Err(self.unexpected_at(start)) };
            self.at += 1;
            match c {
                '"' => return Ok(text),
                '\\' => self.escape(&mut text)?,
                _ => text.push(c),
            }
        }
    }

    /// After a backslash. What is no escape stays as written, so that a lone `\d` in a regular expression works.
    fn escape(&mut self, text: &mut String) -> Parsed<()> {
        let start = self.at - 1;
        let Some(c) = self.peek() else { return Err(self.unexpected_at(start)) };
        self.at += 1;
        match c {
            '"' | '\\' => text.push(c),
            't' => text.push('\t'),
            'n' => text.push('\n'),
            'r' => text.push('\r'),
            'u' => text.push(self.code(16, 4, start)?),
            'x' => text.push(self.code(16, 2, start)?),
            '0'..='3' => {
                self.at -= 1;
                text.push(self.code(8, 3, start)?);
            }
            _ => {
                text.push('\\');
                text.push(c);
            }
        }
        Ok(())
    }

    fn code(&mut self, radix: u32, length: usize, start: usize) -> Parsed<char> {
        let digits: String = self.chars.iter().skip(self.at).take(length).collect();
        let code = u32::from_str_radix(&digits, radix).ok().filter(|_| digits.chars().count() == length);
        self.at = (self.at + length).min(self.chars.len());
        code.and_then(char::from_u32).ok_or_else(|| self.error(start, "invalid escape sequence".to_owned()))
    }

    // ---- errors ----

    fn place(&self, at: usize) -> (usize, usize) {
        let before = &self.chars[..at.min(self.chars.len())];
        let line = before.iter().filter(|c| **c == '\n').count() + 1;
        let column = before.iter().rev().take_while(|c| **c != '\n').count() + 1;
        (line, column)
    }

    fn unexpected(&self) -> FilterError {
        self.unexpected_at(self.at)
    }

    fn unexpected_at(&self, at: usize) -> FilterError {
        let (line, column) = self.place(at);
        let rest = self.chars.get(at..).unwrap_or_default();
        let token: String = match rest.first() {
            None => "<EOF>".to_owned(),
            Some(c) if is_bare(*c) => rest.iter().take_while(|c| is_bare(**c)).take(60).collect(),
            Some(c) => c.to_string(),
        };
        let message = format!("Unparseable filter: syntax error at line {line}, column {column}, token '{token}'");
        FilterError { message, line, column }
    }

    fn error(&self, at: usize, why: String) -> FilterError {
        let (line, column) = self.place(at);
        FilterError { message: format!("Unparseable filter: {why} at line {line}, column {column}"), line, column }
    }

    fn error_text(&self, at: usize, message: String) -> FilterError {
        let (line, column) = self.place(at);
        FilterError { message, line, column }
    }
}

fn is_bare(c: char) -> bool {
    !c.is_whitespace() && !matches!(c, '"' | '(' | ')' | '=' | '<' | '>' | '!' | '~' | ':' | ',')
}
