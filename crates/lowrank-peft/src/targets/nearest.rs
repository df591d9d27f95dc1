//! Names similar to a mistyped one.

/// The up to three `names` that are fewest edits away from `wanted`, nearest first; names without
/// any resemblance are left out.
pub(super) fn nearest(wanted: &str, names: &[String]) -> Vec<String> {
    let limit = wanted.chars().count().div_ceil(2);
    let mut ranked: Vec<(usize, &String)> = names
        .iter()
        .map(|name| (edits(wanted, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    ranked.sort();
    ranked.into_iter().take(3).map(|(_, name)| name.clone()).collect()
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut diagonal = i;
        for (slot, y) in row.iter_mut().skip(1).zip(&b) {
            let changed = diagonal + usize::from(x != *y);
            diagonal = *slot;
            left = changed.min(diagonal + 1).min(left + 1);
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", ""), 3);
        assert_eq!(edits("q_proj", "q_proj"), 0);
    }

    #[test]
    fn the_nearest_name_comes_first() {
        let names = ["down_proj", "q_proj", "qkv_proj"].map(str::to_owned);
        assert_eq!(nearest("q_porj", &names), ["q_proj"]);
        assert!(nearest("xyz", &names).is_empty());
    }
}
