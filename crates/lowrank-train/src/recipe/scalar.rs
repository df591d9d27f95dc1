//! What a scalar means. The rules are those of PyYAML (YAML 1.1) with OmegaConf's change that
//! `1e-4` is a number although it has no dot, because LLaMA-Factory reads its recipes that way.
//! The text is kept as written, and each key reads it as the type it needs: `eval_strategy: no`
//! stays the word, `packing: no` is false.

/// Whether an unquoted scalar stands for null.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// An unquoted truth value, in any of YAML 1.1's spellings.
pub(super) fn as_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// A whole number: decimal, `0x`, `0b`, octal (`0o17`, `017`), underscores between digits.
/// A float without a fraction, such as `1e3`, counts as whole.
pub(super) fn as_integer(text: &str) -> Option<i64> {
    let (negative, digits) = split_sign(text);
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, digits.get(2..)?),
        [b'0', b'b', ..] => (2, digits.get(2..)?),
        [b'0', b'o', ..] => (8, digits.get(2..)?),
        [b'0', _, ..] => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    match from_digits(digits, radix) {
        Some(value) if negative => value.checked_neg(),
        Some(value) => Some(value),
        None => as_float(text).and_then(whole),
    }
}

/// A number, whole or not. `.inf` and `.nan` give infinity and NaN, so that the caller can refuse
/// them by their value.
pub(super) fn as_number(text: &str) -> Option<f64> {
    as_float(text).or_else(|| as_integer(text).map(|value| value as f64))
}

/// A number with a dot or an exponent.
fn as_float(text: &str) -> Option<f64> {
    let (negative, magnitude) = split_sign(text);
    let value = match magnitude {
        ".inf" | ".Inf" | ".INF" => f64::INFINITY,
        ".nan" | ".NaN" | ".NAN" => f64::NAN,
        _ => from_decimal(magnitude)?,
    };
    Some(if negative { -value } else { value })
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    }
}

fn from_digits(digits: &str, radix: u32) -> Option<i64> {
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    if plain.is_empty() || !plain.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(&plain, radix).ok()
}

fn from_decimal(magnitude: &str) -> Option<f64> {
    let starts_well = matches!(magnitude.as_bytes().first(), Some(b'0'..=b'9' | b'.'));
    let characters = |c: char| matches!(c, '0'..='9' | '.' | 'e' | 'E' | '+' | '-' | '_');
    let is_float = magnitude.contains(['.', 'e', 'E']);
    if !starts_well || !is_float || !magnitude.chars().all(characters) {
        return None;
    }
    magnitude.replace('_', "").parse().ok()
}

fn whole(value: f64) -> Option<i64> {
    // 2^53: beyond it a float no longer says which whole number was meant.
    let exact = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
    exact.then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from PyYAML 6.0.4 with OmegaConf's pattern for floats. Three differ on
    /// purpose: `-.5` and `0o17`, words there, are numbers; `1:30`, 90 there, is a word.
    #[test]
    fn numbers_are_read_as_omegaconf_reads_them() {
        assert_eq!(as_number("1e-4"), Some(1e-4));
        assert_eq!(as_number("1.0e-4"), Some(1e-4));
        assert_eq!(as_number("-.5"), Some(-0.5));
        assert_eq!(as_number("5."), Some(5.0));
        assert_eq!(as_number(".inf"), Some(f64::INFINITY));
        assert_eq!(as_number("017"), Some(15.0));
        for text in ["inf", "nan", "09", "e5", "1.2.3", "1:30", "", "-", "."] {
            assert_eq!(as_number(text), None, "{text}");
        }
        assert_eq!(as_integer("180_000_000"), Some(180_000_000));
        assert_eq!(as_integer("0x10"), Some(16));
        assert_eq!(as_integer("017"), Some(15));
        assert_eq!(as_integer("0o17"), Some(15));
        assert_eq!(as_integer("0b11"), Some(3));
        assert_eq!(as_integer("0"), Some(0));
        assert_eq!(as_integer("-1"), Some(-1));
        assert_eq!(as_integer("1e3"), Some(1000));
        for text in ["0.5", "09", "0x", "1e30", "9223372036854775808", "eight"] {
            assert_eq!(as_integer(text), None, "{text}");
        }
    }
}
