//! XLM-RoBERTa: RoBERTa over a hundred languages.
//! Paper: arXiv:1911.02116. Reference: transformers `models/xlm_roberta/modeling_xlm_roberta.py`.

use super::{Architecture, roberta};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "xlm-roberta",
    class: "XLMRoberta",
    paper: "arXiv:1911.02116",
    ..roberta::ENTRY
};
