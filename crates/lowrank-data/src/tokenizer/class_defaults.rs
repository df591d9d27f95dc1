//! Special tokens that transformers' tokenizer classes assume where the folder names none.
//! Reference: the `__init__` defaults of transformers `models/*/tokenization_*.py`.

use super::Special;

/// The token that class `class` (with or without `Fast`) uses for `which`.
pub(super) fn special(class: &str, which: Special) -> Option<&'static str> {
    use Special::{Bos, Cls, Eos, Mask, Pad, Sep, Unk};
    let class = class.strip_suffix("Fast").unwrap_or(class);
    let token = match (class, which) {
        (
            "BertTokenizer"
            | "ConvBertTokenizer"
            | "DistilBertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "MobileBertTokenizer",
            Bos | Eos,
        ) => return None,
        (
            "BertTokenizer"
            | "ConvBertTokenizer"
            | "DistilBertTokenizer"
            | "ElectraTokenizer"
            | "LayoutLMTokenizer"
            | "MobileBertTokenizer"
            | "DebertaTokenizer"
            | "DebertaV2Tokenizer",
            _,
        ) => match which {
            Bos | Cls => "[CLS]",
            Eos | Sep => "[SEP]",
            Pad => "[PAD]",
            Unk => "[UNK]",
            Mask => "[MASK]",
        },
        ("RobertaTokenizer" | "XLMRobertaTokenizer" | "BartTokenizer" | "MBartTokenizer", _) => {
            match which {
                Bos | Cls => "<s>",
                Eos | Sep => "</s>",
                Pad => "<pad>",
                Unk => "<unk>",
                Mask => "<mask>",
            }
        }
        ("GPT2Tokenizer" | "CodeGenTokenizer" | "GPTNeoXTokenizer", Bos | Eos | Unk) => {
            "<|endoftext|>"
        }
        ("GPTNeoXTokenizer", Pad) => "<|padding|>",
        ("Qwen2Tokenizer", Eos | Pad | Unk) => "<|endoftext|>",
        ("LlamaTokenizer" | "CodeLlamaTokenizer", Bos) => "<s>",
        ("LlamaTokenizer" | "CodeLlamaTokenizer" | "T5Tokenizer", Eos) => "</s>",
        ("LlamaTokenizer" | "CodeLlamaTokenizer" | "T5Tokenizer" | "GemmaTokenizer", Unk) => {
            "<unk>"
        }
        ("T5Tokenizer" | "GemmaTokenizer", Pad) => "<pad>",
        ("GemmaTokenizer", Bos) => "<bos>",
        ("GemmaTokenizer", Eos) => "<eos>",
        ("GemmaTokenizer", Mask) => "<mask>",
        ("ChatGLMTokenizer", Eos) => "</s>",
        ("ChatGLMTokenizer", Pad | Unk) => "<unk>",
        _ => return None,
    };
    Some(token)
}

/// Whether class `class` puts `bos_token` in front of texts unless told otherwise.
pub(super) fn add_bos_token(class: &str) -> bool {
    let class = class.strip_suffix("Fast").unwrap_or(class);
    matches!(class, "LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer")
}

/// Whether models of class `class` take `token_type_ids`.
pub(super) fn uses_type_ids(class: &str) -> bool {
    let class = class.strip_suffix("Fast").unwrap_or(class);
    matches!(
        class,
        "BertTokenizer"
            | "ElectraTokenizer"
            | "MobileBertTokenizer"
            | "AlbertTokenizer"
            | "DebertaTokenizer"
            | "DebertaV2Tokenizer"
            | "XLNetTokenizer"
            | "ConvBertTokenizer"
            | "RoFormerTokenizer"
    )
}
