//! BLIP-2: a vision transformer and a language model, and between them queries that say in the
//! words' own space what is to be seen. Paper: arXiv:2301.12597. Reference: transformers
//! `models/blip_2/modeling_blip_2.py`.

use std::sync::Arc;

use candle_core::Tensor;
use lowrank_autograd::{Result as ComputeResult, Value, ops};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Linear},
};

use super::{Architecture, Beside, Modality, Parts};
use crate::{
    Builder, Cache, Config, Context, Encoded, ImageTokens, Input, Network, Result, Task,
    blocks::{query_former::QueryFormer, vision_tower::VisionTower},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "blip-2",
    modality: Modality::Multimodal,
    beside: Beside::Picture,
    tasks: &[Task::CausalLm, Task::Seq2SeqLm, Task::FeatureExtraction],
    class: "Blip2",
    causal_lm: "ForConditionalGeneration",
    prefixes: &[],
    paper: "arXiv:2301.12597",
    build,
    ..Architecture::DECODER
};

#[derive(Debug)]
struct Blip2 {
    vision_model: VisionTower,
    qformer: QueryFormer,
    language_projection: Linear,
    language_model: Arc<dyn Network>,
    /// Stands in a text where an image's vectors go.
    image_token: u32,
}

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let part = |name| c.object(name)?.ok_or_else(|| c.wrong(name, "an object"));
    let [vision, queries, text] =
        [part("vision_config")?, part("qformer_config")?, part("text_config")?];
    let vision_model = VisionTower::build(&vision, &b.at("vision_model"))?;
    let ImageTokens { id: image_token, count } = ImageTokens::read(c)?;
    let qformer = QueryFormer::build(&queries, count, vision.size("hidden_size")?, b)?;
    let inner = Architecture::of(&text)?;
    let text = inner.with_token_ids(&text);
    // transformers' bare model is the whole one, the words' head included.
    let task = match task {
        Task::FeatureExtraction => inner.default_task(&text)?,
        task => task,
    };
    inner.check_task(task)?;
    // T5 calls its width `d_model`.
    let width = text.size_or_none("hidden_size")?.map_or_else(|| text.size("d_model"), Ok)?;
    if text.size_or("word_embed_proj_dim", width)? != width {
        let must_be = format!("`hidden_size`, which is {width}: images take the place of words");
        return Err(text.wrong("word_embed_proj_dim", must_be));
    }
    let language_projection =
        b.linear("language_projection", queries.size("hidden_size")?, width, true)?;
    let (language_model, head) =
        (inner.build)(&text, task, &b.nested("language_model", inner, task))?;
    let network = Blip2 { vision_model, qformer, language_projection, language_model, image_token };
    Ok((Arc::new(network), head))
}

impl Blip2 {
    /// The input with the vectors of its words, and what stands for its images in the places of
    /// image tokens. transformers reads them here, from the language model's table, and not from
    /// one that its encoder has (T5).
    fn looked_at(&self, input: &Input, pass: &Pass) -> ComputeResult<Input> {
        let words = self.language_model.table().forward(&input.ids, pass)?;
        let given = Some(match &input.images {
            Some(images) => self.with_images(&words, images, input, pass)?,
            None => words,
        });
        Ok(Input { images: None, given, ..input.clone() })
    }

    fn with_images(
        &self,
        words: &Value,
        images: &Tensor,
        input: &Input,
        pass: &Pass,
    ) -> ComputeResult<Value> {
        let starts: Vec<usize> = input.sequences.starts().collect();
        let seen = self.vision_model.forward(images, &starts, pass)?;
        let (queries, own) = self.qformer.forward(&seen, &starts, pass)?;
        let vectors = self.language_projection.forward(&queries, &own)?;
        // Where each row's vector lies, behind the words those of the images.
        let mut from: Vec<usize> = (0..input.ids.len()).collect();
        let mut behind = input.ids.len()..;
        for (i, span) in input.sequences.spans.iter().enumerate() {
            let is_image = |row: &usize| input.ids.get(*row) == Some(&self.image_token);
            let rows: Vec<usize> = span.queries.clone().filter(is_image).collect();
            let (found, must_be) = (rows.len(), self.qformer.queries());
            if found != must_be {
                let what = format!(
                    "text {i} has {found} image tokens ({}); an image needs {must_be}",
                    self.image_token
                );
                return Err(candle_core::Error::Msg(what).into());
            }
            for (row, behind) in rows.into_iter().zip(&mut behind) {
                if let Some(place) = from.get_mut(row) {
                    *place = behind;
                }
            }
        }
        ops::select_rows(&ops::concat_rows(&[words, &vectors])?, &from.into())
    }
}

impl Network for Blip2 {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> ComputeResult<Value> {
        // Without images it is a target, or goes on after one.
        match input.images {
            Some(_) => self.language_model.forward(&self.looked_at(input, pass)?, context, pass),
            None => self.language_model.forward(input, context, pass),
        }
    }

    fn encode(&self, input: &Input, pass: &Pass) -> ComputeResult<Encoded> {
        self.language_model.encode(&self.looked_at(input, pass)?, pass)
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        self.language_model.new_cache(sequences)
    }

    fn table(&self) -> &Embedding {
        self.language_model.table()
    }
}
