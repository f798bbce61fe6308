//! Regular expressions as RE2 reads them, on the `regex` crate.
//!
//! The two agree but for three things, which [`compile`] evens out: RE2's `\d`, `\w`, `\s` and `\b` know ASCII only; and
//! inside brackets RE2 has no nested sets, so `[`, `&&`, `--` and `~~` are plain characters there.

use regex::{Regex, RegexBuilder};

/// Bytes of a compiled expression.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// # Errors
/// One line that says what is wrong with the pattern.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern)).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
        other => other.to_string().lines().last().unwrap_or("syntax error").trim_start_matches("error: ").to_owned(),
    })
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut in_set = false;
    let mut before = '\0';
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let Some(next) = chars.next() else {
                    out.push('\\');
                    break;
                };
                match (next, in_set) {
                    ('d' | 'w' | 's', true) => out.push_str(ascii_class(next)),
                    ('d' | 'w' | 's', false) => {
                        out.push('[');
                        out.push_str(ascii_class(next));
                        out.push(']');
                    }
                    ('D' | 'W' | 'S', false) => {
                        out.push_str("[^");
                        out.push_str(ascii_class(next.to_ascii_lowercase()));
                        out.push(']');
                    }
                    ('b' | 'B', false) => out.push_str(if next == 'b' { r"(?-u:\b)" } else { r"(?-u:\B)" }),
                    _ => {
                        out.push('\\');
                        out.push(next);
                    }
                }
                before = '\0';
                continue;
            }
            '[' if !in_set => {
                in_set = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                // A bracket that comes first is a plain one.
                if chars.next_if_eq(&']').is_some() {
                    out.push_str(r"\]");
                }
            }
            '[' if chars.peek() == Some(&':') => {
                // A named class such as [:alpha:] up to its end.
                out.push('[');
                while let Some(inner) = chars.next() {
                    out.push(inner);
                    if inner == ':' && chars.next_if_eq(&']').is_some() {
                        out.push(']');
                        break;
                    }
                }
            }
            '[' => out.push_str(r"\["),
            ']' if in_set => {
                in_set = false;
                out.push(']');
            }
            '&' | '~' | '-' if in_set && before == c => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
        before = c;
    }
    out
}

fn ascii_class(letter: char) -> &'static str {
    match letter {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        _ => r"\t\n\f\r ",
    }
}
