//! What rows bring beside words, and what models read of it.

use lowrank_data::{RowProblem, Sample};
use lowrank_models::{Architecture, Beside};

/// What is wrong with a row that brings what the model doesn't read: it must not be left out in
/// silence. `None` stands for a folder without a config.json.
#[must_use]
pub fn needless(architecture: Option<&Architecture>, sample: &Sample) -> Option<RowProblem> {
    let beside = architecture.map_or(Beside::Nothing, |a| a.beside);
    let model_type = architecture.map_or("without a config.json", |a| a.model_type);
    let message = if !sample.images().is_empty() && beside != Beside::Picture {
        format!(
            "the row has pictures (`images`), but the model ({model_type}) sees none; train one \
             that does (blip-2), or take `images` out of the data set's `columns`"
        )
    } else if sample.boxes().is_some() && beside != Beside::Boxes {
        format!(
            "the row has `boxes`, but the model ({model_type}) doesn't read where words stand; \
             take one that does (layoutlm), or leave that column out of the data"
        )
    } else {
        return None;
    };
    Some(RowProblem::Other { message })
}

/// What is wrong with a row that lacks what the model reads, if anything is.
#[must_use]
pub fn missing(architecture: Option<&Architecture>, sample: &Sample) -> Option<RowProblem> {
    let lacks = architecture.is_some_and(|a| a.beside == Beside::Boxes) && sample.boxes().is_none();
    let message = "no field `boxes`; the model reads where each word stands: [x0, y0, x1, y1], \
                   in thousandths of its page";
    lacks.then(|| RowProblem::Other { message: message.to_owned() })
}
