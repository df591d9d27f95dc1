//! Where an answer stands in a rendered conversation.

use serde_json::Value;

use super::Chat;
use crate::error::RowProblem;
use crate::tokenizer::Tokenizer;

/// Bytes of a rendering.
pub(super) type Span = std::ops::Range<usize>;

/// Stands for an answer; private-use characters that no template looks at.
const PLACEHOLDER: &str = "\u{f8f0}answer\u{f8f1}";

/// Where the answer `index` stands in `full`, the rendering of all messages.
pub(super) fn find(chat: &Chat<'_>, full: &str, index: usize) -> Result<Option<Span>, RowProblem> {
    match by_prefix(chat, full, index)? {
        Some(span) => Ok(Some(span)),
        None => by_placeholder(chat, full, index),
    }
}

/// From the end of the generation prompt to the end of the turn, if rendering only the messages
/// up to there gives the beginning of `full`. Where the generation prompt itself is continued
/// differently (an empty thought that the answer fills), the answer begins where they part.
fn by_prefix(chat: &Chat<'_>, full: &str, index: usize) -> Result<Option<Span>, RowProblem> {
    let before = chat.messages.get(..index).unwrap_or_default();
    let with = chat.messages.get(..=index).unwrap_or_default();
    let is_last = with.len() == chat.messages.len();
    let end = if is_last {
        full.len()
    } else {
        let turn = chat.render(with, false)?;
        if !full.starts_with(&turn) {
            return Ok(None);
        }
        turn.len()
    };
    let base = chat.render(before, false)?;
    let asked = chat.render(before, true)?;
    let start = common_prefix(&asked, full);
    Ok((full.starts_with(&base) && start >= base.len() && start <= end).then_some(start..end))
}

/// By what surrounds a placeholder in the answer's place.
fn by_placeholder(chat: &Chat<'_>, full: &str, index: usize) -> Result<Option<Span>, RowProblem> {
    let mut messages = chat.messages.clone();
    match messages.get_mut(index).and_then(|m| m.get_mut("content")) {
        Some(content) if !content.as_str().unwrap_or_default().is_empty() => {
            *content = Value::from(PLACEHOLDER);
        }
        _ => return Ok(None),
    }
    let marked = chat.render(&messages, false)?;
    let alone = chat.render(messages.get(..=index).unwrap_or_default(), false)?;
    let (Some((head, rest)), Some((_, tail))) =
        (marked.split_once(PLACEHOLDER), alone.split_once(PLACEHOLDER))
    else {
        return Ok(None);
    };
    let fits = !rest.contains(PLACEHOLDER) && full.ends_with(rest) && rest.starts_with(tail);
    let start = common_prefix(head, full);
    let end = full.len() - rest.len() + tail.len();
    Ok((fits && start <= full.len() - rest.len()).then_some(start..end))
}

/// The answer without white space that follows its end-of-turn token.
pub(super) fn without_trailing_space(
    span: &Span,
    full: &str,
    tokens: &[(u32, (usize, usize))],
    tokenizer: &Tokenizer,
) -> Span {
    let text = full.get(span.clone()).unwrap_or_default();
    let end = span.start + text.trim_end().len();
    let closes = tokens.iter().any(|(id, (_, e))| *e == end && tokenizer.is_special(*id));
    span.start..if closes { end } else { span.end }
}

/// Bytes that both texts begin with, never inside a character.
fn common_prefix(a: &str, b: &str) -> usize {
    let equal = a.char_indices().zip(b.chars()).find(|((_, a), b)| a != b);
    match equal {
        Some(((at, _), _)) => at,
        None => a.len().min(b.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::common_prefix;

    #[test]
    fn prefixes_end_between_characters() {
        assert_eq!(common_prefix("aé", "aè"), 1);
        assert_eq!(common_prefix("abc", "ab"), 2);
        assert_eq!(common_prefix("", "ab"), 0);
    }
}
