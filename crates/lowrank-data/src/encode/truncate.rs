//! How a limit is shared between a prompt and its answer.
//! Reference: LLaMA-Factory 0.9.5 `data/processor/processor_utils.py`, `infer_seqlen`.

/// The lengths that prompt (`source`) and answer (`target`) keep of `cutoff` tokens: in proportion,
/// except that a short part keeps all of itself. Both keep their beginning.
pub(super) fn infer_seqlen(source: usize, target: usize, cutoff: usize) -> (usize, usize) {
    let max_target = if 2 * target < cutoff {
        cutoff
    } else if 2 * source < cutoff {
        cutoff - source
    } else {
        // In double precision, as Python does it: the result decides where a text is cut.
        (cutoff as f64 * (target as f64 / (source + target) as f64)) as usize
    };
    let target = max_target.min(target);
    let source = cutoff.saturating_sub(target).min(source);
    (source, target)
}

#[cfg(test)]
mod tests {
    use super::infer_seqlen;
    use proptest::prelude::*;

    #[test]
    fn shares_the_limit() {
        assert_eq!(infer_seqlen(3000, 2000, 1000), (600, 400));
        assert_eq!(infer_seqlen(2000, 3000, 1000), (400, 600));
        assert_eq!(infer_seqlen(1000, 100, 1000), (900, 100));
        assert_eq!(infer_seqlen(100, 1000, 1000), (100, 900));
    }

    proptest! {
        #[test]
        fn never_exceeds_the_limit(s in 0..9000usize, t in 0..9000usize, c in 1..5000usize) {
            let (source, target) = infer_seqlen(s, t, c);
            prop_assert!(source + target <= c);
            prop_assert!(source <= s && target <= t);
            if s + t <= c {
                prop_assert_eq!((source, target), (s, t));
            }
        }
    }
}
