//! Which of transformers' tokenizer classes a folder is for. Reference: transformers 5.24
//! `models/auto/tokenization_auto.py`.

/// A class, or several that are the same to the ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Bert,
    Gpt2,
    Roberta,
    Qwen2,
    GptNeoX,
    Deberta,
    T5,
    XlmRoberta,
    MBart,
    DebertaV2,
    Llama,
    CodeLlama,
    Gemma,
    /// ChatGLM2's and ChatGLM3's, whose code comes with the models.
    ChatGlm,
    /// GLM-4's, in the form of tiktoken.
    ChatGlm4,
    /// transformers' `TokenizersBackend`: whatever a SentencePiece model says of itself.
    Backend,
}

use Class::{
    Backend, Bert, ChatGlm, ChatGlm4, CodeLlama, Deberta, DebertaV2, Gemma, Gpt2, GptNeoX, Llama,
    MBart, Qwen2, Roberta, T5, XlmRoberta,
};

/// Names of classes; the first of several for one class is that class's own.
const NAMES: &[(&str, Class)] = &[
    ("BertTokenizer", Bert),
    ("ConvBertTokenizer", Bert),
    ("DistilBertTokenizer", Bert),
    ("ElectraTokenizer", Bert),
    ("LayoutLMTokenizer", Bert),
    ("MobileBertTokenizer", Bert),
    ("GPT2Tokenizer", Gpt2),
    ("CodeGenTokenizer", Gpt2),
    ("RobertaTokenizer", Roberta),
    ("BartTokenizer", Roberta),
    ("Qwen2Tokenizer", Qwen2),
    ("GPTNeoXTokenizer", GptNeoX),
    ("DebertaTokenizer", Deberta),
    ("T5Tokenizer", T5),
    ("XLMRobertaTokenizer", XlmRoberta),
    ("MBartTokenizer", MBart),
    ("DebertaV2Tokenizer", DebertaV2),
    ("LlamaTokenizer", Llama),
    ("CodeLlamaTokenizer", CodeLlama),
    ("GemmaTokenizer", Gemma),
    ("ChatGLMTokenizer", ChatGlm),
    ("ChatGLM4Tokenizer", ChatGlm4),
    ("PreTrainedTokenizerFast", Backend),
    ("TokenizersBackend", Backend),
];

/// The class for each `model_type`, as far as lowrank has the models or they are common.
const REGISTERED: &[(&str, Class)] = &[
    ("bart", Roberta),
    ("bert", Bert),
    ("blip-2", Gpt2),
    ("chatglm", ChatGlm),
    ("codegen", Gpt2),
    ("deberta", Deberta),
    ("deberta-v2", DebertaV2),
    ("distilbert", Bert),
    ("electra", Bert),
    ("gemma", Gemma),
    ("gemma2", Gemma),
    ("gemma3", Gemma),
    ("gemma3_text", Gemma),
    ("glm", Backend),
    ("glm4", Backend),
    ("gpt2", Gpt2),
    ("gpt_bigcode", Backend),
    ("gpt_neo", Gpt2),
    ("gpt_neox", GptNeoX),
    ("gptj", Gpt2),
    ("layoutlm", Bert),
    ("mbart", MBart),
    ("mistral", Backend),
    ("mixtral", Backend),
    ("mpt", GptNeoX),
    ("mt5", T5),
    ("opt", Gpt2),
    ("phi", Gpt2),
    ("phi3", Backend),
    ("qwen2", Qwen2),
    ("qwen2_moe", Qwen2),
    ("qwen3", Qwen2),
    ("qwen3_moe", Qwen2),
    ("roberta", Roberta),
    ("stablelm", Backend),
    ("t5", T5),
    ("xlm-roberta", XlmRoberta),
];

/// Model types of which transformers believes no folder that names another class.
const DISBELIEVED: [&str; 2] = ["phi3", "qwen2"];

impl Class {
    /// The class for a folder whose files name the class `stated` and whose model is a
    /// `model_type`.
    pub(super) fn of(stated: Option<&str>, model_type: &str) -> Self {
        let registered = REGISTERED.iter().find(|(name, _)| *name == model_type).map(|(_, c)| *c);
        let Some(stated) = stated else { return registered.unwrap_or(Backend) };
        match registered {
            Some(Backend) => Backend,
            Some(registered) if DISBELIEVED.contains(&model_type) => registered,
            _ => Self::named(stated).unwrap_or(Backend),
        }
    }

    fn named(name: &str) -> Option<Self> {
        let name = name.strip_suffix("Fast").unwrap_or(name);
        NAMES.iter().find(|(own, _)| *own == name).map(|(_, class)| *class)
    }

    /// Whether a class of this name is known.
    pub(super) fn is_known(name: &str) -> bool {
        Self::named(name).is_some()
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, class)| *class == self).map_or("TokenizersBackend", |(name, _)| name)
    }

    /// The file with its vocabulary.
    pub(super) fn file(self) -> &'static str {
        match self {
            Bert => "vocab.txt",
            Gpt2 | Roberta | Qwen2 | GptNeoX | Deberta => "vocab.json",
            T5 => "spiece.model",
            XlmRoberta | MBart => "sentencepiece.bpe.model",
            DebertaV2 => "spm.model",
            Llama | CodeLlama | Gemma | ChatGlm | ChatGlm4 | Backend => "tokenizer.model",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_believed_as_transformers_believes_it() {
        assert_eq!(Class::of(None, "llama"), Backend);
        assert_eq!(Class::of(Some("LlamaTokenizerFast"), "llama"), Llama);
        assert_eq!(Class::of(Some("LlamaTokenizer"), "mistral"), Backend);
        assert_eq!(Class::of(Some("LlamaTokenizer"), "qwen2"), Qwen2);
        assert_eq!(Class::of(Some("CodeGenTokenizer"), "phi"), Gpt2);
        assert_eq!(Class::of(Some("RobertaTokenizer"), "bert"), Roberta);
        assert_eq!(Class::of(None, "bert"), Bert);
        assert_eq!(Class::of(Some("UnheardOf"), "t5"), Backend);
    }
}
