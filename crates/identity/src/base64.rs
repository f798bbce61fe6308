//! Base64 (RFC 4648), strict: one text for one byte string.
//!
//! Decoders that forgive stray bits let one signed token be written in several ways. This one refuses white space,
//! padding where none belongs, missing padding where it does, and non-zero trailing bits.

/// Which of the two alphabets of RFC 4648, and whether `=` fills the last group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Section 4: `+` and `/`, padded.
    Standard,
    /// Section 5 as JWS uses it (RFC 7515, 2): `-` and `_`, not padded.
    Url,
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// No character of the alphabet.
const NONE: u8 = 0xff;
const STANDARD_VALUES: [u8; 256] = values(STANDARD);
const URL_VALUES: [u8; 256] = values(URL);

const fn values(alphabet: &[u8; 64]) -> [u8; 256] {
    let mut table = [NONE; 256];
    let mut value = 0u8;
    while value < 64 {
        table[alphabet[value as usize] as usize] = value;
        value += 1;
    }
    table
}

pub fn encode(form: Form, bytes: &[u8]) -> String {
    let alphabet = match form {
        Form::Standard => STANDARD,
        Form::Url => URL,
    };
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= group.len() {
                text.push(char::from(alphabet[(bits >> (18 - 6 * digit) & 63) as usize]));
            } else if form == Form::Standard {
                text.push('=');
            }
        }
    }
    text
}

/// None when the text is not exactly what [`encode`] writes for some bytes.
pub fn decode(form: Form, text: &str) -> Option<Vec<u8>> {
    let (digits, table) = match form {
        Form::Standard => (unpad(text)?, &STANDARD_VALUES),
        Form::Url => (text.as_bytes(), &URL_VALUES),
    };
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for i in 0..4 {
            let value = group.get(i).map_or(0, |digit| table[usize::from(*digit)]);
            if value == NONE {
                return None;
            }
            bits = bits << 6 | u32::from(value);
        }
        let [_, a, b, c] = bits.to_be_bytes();
        match (group.len(), b, c) {
            (4, _, _) => bytes.extend([a, b, c]),
            (3, _, 0) => bytes.extend([a, b]),
            (2, 0, 0) => bytes.push(a),
            _ => return None,
        }
    }
    Some(bytes)
}

fn unpad(text: &str) -> Option<&[u8]> {
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(4) {
        return None;
    }
    Some(bytes.strip_suffix(b"==").or_else(|| bytes.strip_suffix(b"=")).unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648_hold() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(Form::Standard, bytes.as_bytes()), text);
            assert_eq!(decode(Form::Standard, text).unwrap(), bytes.as_bytes());
            assert_eq!(encode(Form::Url, bytes.as_bytes()), text.trim_end_matches('='));
        }
        assert_eq!(encode(Form::Url, &[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn a_second_spelling_of_the_same_bytes_is_refused() {
        for bad in ["Zh", "Zm9", "Z", "Zg==", "Zg ", "Zg\n", "+_8", "Zm9vY", "é"] {
            assert_eq!(decode(Form::Url, bad), None, "{bad:?}");
        }
        for bad in ["Zg", "Zg=", "Zh==", "====", "=", "Z===", "-_8=", "Zg==Zg=="] {
            assert_eq!(decode(Form::Standard, bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_text(text in "[A-Za-z0-9_-]{0,12}") {
            if let Some(bytes) = decode(Form::Url, &text) {
                prop_assert_eq!(encode(Form::Url, &bytes), text);
            }
        }

        #[test]
        fn what_encodes_decodes_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for form in [Form::Standard, Form::Url] {
                prop_assert_eq!(decode(form, &encode(form, &bytes)), Some(bytes.clone()));
            }
        }
    }
}
