//! Writing a model as a folder that transformers loads: `config.json` and `*.safetensors`, in one
//! file or in shards with an index. Reference: transformers 5.24 `modeling_utils.py`,
//! `save_pretrained`; huggingface_hub `serialization/_base.py` for how shards are filled.
//!
//! Nothing is written here: the caller is given bytes, tensor by tensor, so that a model is never
//! in memory twice and the caller decides what makes files durable.

use candle_core::{DType, Tensor};
use lowrank_peft::{BaseTensor, Stored, layers::Linear};
use serde_json::{Map, Value, json};

use crate::{Config, Error, Head, Model, Result, Task};

/// How a model is saved.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// Converts all tensors; by default each keeps the dtype that it was opened in.
    pub dtype: Option<DType>,
    /// Most bytes of tensors in one file; a larger tensor has a file of its own.
    pub max_shard_size: u64,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { dtype: None, max_shard_size: 5_000_000_000 }
    }
}

/// What will be written: the files' names and contents, before any tensor is converted.
#[derive(Debug)]
pub struct Saved<'a> {
    model: &'a Model,
    shards: Vec<Shard>,
}

/// One weight file.
#[derive(Debug)]
pub struct Shard {
    /// Its name in the folder.
    pub file_name: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    tensor: Stored,
    dtype: DType,
}

impl Entry {
    fn new(tensor: Stored, options: &SaveOptions) -> Result<Self> {
        let dtype = options.dtype.unwrap_or(tensor.dtype);
        name_of(dtype)?;
        Ok(Self { tensor, dtype })
    }

    fn all_of(tensor: &BaseTensor, options: &SaveOptions) -> Result<Vec<Self>> {
        tensor.stored()?.into_iter().map(|part| Self::new(part, options)).collect()
    }

    fn named(self, name: String) -> Self {
        Self { tensor: Stored { name, ..self.tensor }, ..self }
    }

    fn elements(&self) -> u64 {
        self.tensor.weight.elem_count() as u64
    }

    fn size(&self) -> u64 {
        self.elements() * self.dtype.size_in_bytes() as u64
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let tensor = self.tensor.to_tensor()?.to_dtype(self.dtype)?;
        bytes_of(&tensor.flatten_all()?)
    }
}

impl Model {
    /// Plans the files of this model, merged adapters included.
    ///
    /// Tensors that share memory are written once, under the name that others are tied to. Where a
    /// merge has parted them, or transformers wouldn't tie them, both are written.
    ///
    /// # Errors
    /// When a dtype isn't one that files hold.
    pub fn saved(&self, options: &SaveOptions) -> Result<Saved<'_>> {
        let (mut entries, apart) = (Vec::new(), self.reads_every_table()?);
        for tensor in self.modules.tensors().filter(|tensor| apart || !self.is_tied(tensor)) {
            let copies = Entry::all_of(tensor, options)?.into_iter();
            entries.extend(copies.map(|copy| {
                let name = self.architecture.file_name(&copy.tensor.name).into_owned();
                copy.named(name)
            }));
        }
        if let Some((name, bias)) = self.second_bias() {
            let copies = Entry::all_of(bias, options)?;
            entries.extend(copies.into_iter().map(|copy| copy.named(name.clone())));
        }
        let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
        let mut filled = 0u64;
        for entry in entries {
            let is_full =
                filled > 0 && filled.saturating_add(entry.size()) > options.max_shard_size;
            if is_full {
                shards.push(Vec::new());
                filled = 0;
            }
            filled = filled.saturating_add(entry.size());
            if let Some(shard) = shards.last_mut() {
                shard.push(entry);
            }
        }
        let count = shards.len();
        let shards = shards.into_iter().enumerate();
        let shards = shards.map(|(i, entries)| Shard::new(entries, i, count)).collect();
        Ok(Saved { model: self, shards })
    }

    /// The output layer of a language model, if its weight isn't the embedding's.
    fn own_output(&self) -> Option<&Linear> {
        let is_language_model =
            matches!(self.task, Task::CausalLm | Task::Seq2SeqLm | Task::MaskedLm);
        match self.head() {
            Head::Tokens(head) if is_language_model => {
                Some(&head.linear).filter(|linear| !self.is_tied(linear.weight()))
            }
            _ => None,
        }
    }

    /// Whether transformers looks for every table in the files.
    fn reads_every_table(&self) -> Result<bool> {
        let tied = self.config.switch_or("tie_word_embeddings", true)?;
        let is_apart = !tied || self.own_output().is_some();
        Ok(is_apart && self.architecture.unties_all)
    }

    /// BERT's output layer has its bias under a name of its own, of which the layer's is a copy
    /// only as long as the weight is tied.
    fn second_bias(&self) -> Option<(String, &BaseTensor)> {
        let bias = self.own_output()?.bias()?;
        Some((bias.second_name()?.to_owned(), bias))
    }

    /// Whether a tensor is still the same as the one it is tied to.
    fn is_tied(&self, tensor: &BaseTensor) -> bool {
        let Some(other) = tensor.tied_to() else { return false };
        let other = self.modules.tensors().find(|t| t.name() == other);
        other.is_some_and(|other| !other.is_merged())
    }
}

impl Saved<'_> {
    /// The weight files.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.shards.iter().map(|shard| shard.entries.len()).sum()
    }

    /// The files beside the weights by name: `config.json`, and the index if there are shards.
    ///
    /// # Errors
    /// Those of serialization.
    pub fn texts(&self) -> Result<Vec<(String, String)>> {
        let mut texts = vec![("config.json".to_owned(), self.config()?)];
        if self.shards.len() > 1 {
            texts.push(("model.safetensors.index.json".to_owned(), self.index()?));
        }
        Ok(texts)
    }

    fn config(&self) -> Result<String> {
        let mut config = self.model.config.clone();
        if let Some(class) = self.model.architecture.class_for(self.model.task) {
            config.set("architectures", json!([class]));
        }
        if self.model.own_output().is_some() {
            untie(&mut config)?;
        }
        let mut dtypes = self.shards.iter().flat_map(|s| &s.entries).map(|e| e.dtype);
        if let Some(first) = dtypes.next().filter(|first| dtypes.all(|d| d == *first)) {
            // transformers 4 calls it `torch_dtype`; a file has the one or the other.
            let old = config.get("torch_dtype").is_some();
            let key = if old { "torch_dtype" } else { "dtype" };
            config.set(key, long_name(first).into());
        }
        pretty("config.json", &Value::Object(config.fields().clone()))
    }

    fn index(&self) -> Result<String> {
        let mut by_tensor = Map::new();
        let (mut bytes, mut elements) = (0u64, 0u64);
        for shard in &self.shards {
            for entry in &shard.entries {
                bytes = bytes.saturating_add(entry.size());
                elements += entry.elements();
                by_tensor.insert(entry.tensor.name.clone(), shard.file_name.as_str().into());
            }
        }
        let metadata = json!({"total_parameters": elements, "total_size": bytes});
        let index = json!({"metadata": metadata, "weight_map": by_tensor});
        pretty("model.safetensors.index.json", &index)
    }
}

impl Shard {
    fn new(mut entries: Vec<Entry>, index: usize, count: usize) -> Self {
        // Wide ones first, so that every tensor is aligned.
        entries.sort_by_key(|e| std::cmp::Reverse(e.dtype.size_in_bytes()));
        let file_name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        Self { file_name, entries }
    }

    /// Hands the file's bytes to `sink`, a tensor at a time.
    ///
    /// # Errors
    /// Those of the conversion, and the sink's own.
    pub fn write<E: From<Error>>(
        &self,
        sink: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        sink(&self.header()?)?;
        self.entries.iter().try_for_each(|entry| sink(&entry.bytes()?))
    }

    /// Length and JSON, padded so that the tensors after it are aligned.
    fn header(&self) -> Result<Vec<u8>> {
        let mut fields = Map::new();
        fields.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut start = 0;
        for entry in &self.entries {
            let end = start + entry.size();
            let (dtype, shape) = (name_of(entry.dtype)?, entry.tensor.shape());
            let field = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            fields.insert(entry.tensor.name.clone(), field);
            start = end;
        }
        let mut json = Value::Object(fields).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend(json);
        Ok(header)
    }
}

/// Says that output layer and embedding differ. T5 scales its hidden states where they were tied,
/// and has to go on doing so.
fn untie(config: &mut Config) -> Result<()> {
    if config.word("model_type")? == Some("t5") {
        let tied = config.switch_or("tie_word_embeddings", true)?;
        let scaled = config.switch_or("scale_decoder_outputs", tied)?;
        config.set("scale_decoder_outputs", scaled.into());
    }
    config.set("tie_word_embeddings", false.into());
    Ok(())
}

fn pretty(file: &str, value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value);
    Ok(text.map_err(|source| Error::Json { file: file.to_owned(), source })? + "\n")
}

fn bytes_of(flat: &Tensor) -> Result<Vec<u8>> {
    Ok(match flat.dtype() {
        DType::F32 => le_bytes(flat.to_vec1::<f32>()?, f32::to_le_bytes),
        DType::BF16 => le_bytes(flat.to_vec1::<half::bf16>()?, half::bf16::to_le_bytes),
        DType::F16 => le_bytes(flat.to_vec1::<half::f16>()?, half::f16::to_le_bytes),
        other => return Err(no_such_dtype(other)),
    })
}

fn le_bytes<T, const N: usize>(values: Vec<T>, bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.into_iter().flat_map(bytes).collect()
}

/// The name in a safetensors header.
fn name_of(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("F32"),
        DType::BF16 => Ok("BF16"),
        DType::F16 => Ok("F16"),
        other => Err(no_such_dtype(other)),
    }
}

/// The name in `config.json`.
fn long_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}

fn no_such_dtype(dtype: DType) -> Error {
    Error::Input(format!("models are saved in f32, bf16 or f16, not in {dtype:?}"))
}
