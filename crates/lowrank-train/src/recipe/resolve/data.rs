//! The data's part of a plan.

use crate::recipe::plan::{
    DataPlan, DatasetDir, MethodPlan, Packing, TaskType, TemplatePlan, ValSize,
};
use crate::recipe::yaml::Value;
use crate::recipe::{Recipe, RecipeError};

/// LLaMA-Factory takes a `val_size` up to this for none.
const NO_VALIDATION: f64 = 1e-6;

impl Recipe {
    pub(super) fn data(&self, method: &MethodPlan) -> Result<DataPlan, RecipeError> {
        let cutoff_len: usize = self.get("cutoff_len")?;
        let packing = self.packing()?;
        let plan = DataPlan {
            dataset_dir: self.dataset_dir()?,
            media_dir: self.opt::<String>("media_dir")?.map(Into::into),
            image_min_pixels: self.opt("image_min_pixels")?,
            image_max_pixels: self.opt("image_max_pixels")?,
            dataset: self.opt("dataset")?.unwrap_or_default(),
            eval_dataset: self.opt("eval_dataset")?.unwrap_or_default(),
            val_size: self.val_size()?,
            max_samples: self.opt("max_samples")?,
            template: self.template()?,
            cutoff_len,
            sample_len: if packing == Packing::Off { cutoff_len } else { cutoff_len - 1 },
            packing,
            preprocessing_batch_size: self.get("preprocessing_batch_size")?,
            doc_stride: self.get("doc_stride")?,
            train_on_prompt: self.get("train_on_prompt")?,
            mask_history: self.get("mask_history")?,
            ignore_pad_token_for_loss: self.get("ignore_pad_token_for_loss")?,
            split_special_tokens: self.get("split_special_tokens")?,
            skip_bad_rows: self.get("skip_bad_rows")?,
        };
        self.check_data(&plan)?;
        let MethodPlan::Lora(lora) = method;
        if lora.task_type == TaskType::QuestionAns && plan.doc_stride >= plan.cutoff_len {
            let rule = "windows of `cutoff_len` tokens must share fewer than that";
            return Err(self.contradiction("doc_stride", "cutoff_len", rule));
        }
        Ok(plan)
    }

    fn check_data(&self, plan: &DataPlan) -> Result<(), RecipeError> {
        if plan.train_on_prompt && plan.mask_history {
            let rule = "one puts loss on all turns, the other on the last one only";
            return Err(self.contradiction("train_on_prompt", "mask_history", rule));
        }
        if plan.dataset.is_empty() && self.get("do_train")? {
            return Err(self.missing("dataset", "training needs the name of a dataset"));
        }
        if plan.val_size.is_none() {
            return Ok(());
        }
        if !plan.eval_dataset.is_empty() {
            let rule = "evaluate on rows split off or on another dataset, not both";
            return Err(self.contradiction("val_size", "eval_dataset", rule));
        }
        if plan.dataset.is_empty() {
            let rule = "there is no dataset to split rows off";
            return Err(self.contradiction("val_size", "dataset", rule));
        }
        Ok(())
    }

    /// `neat_packing` sets `packing`, whatever that says.
    pub(super) fn packing(&self) -> Result<Packing, RecipeError> {
        let plain = self.opt("packing")?.unwrap_or(false);
        Ok(match (self.get("neat_packing")?, plain) {
            (true, _) => Packing::Neat,
            (false, true) => Packing::Plain,
            (false, false) => Packing::Off,
        })
    }

    pub(super) fn template(&self) -> Result<TemplatePlan, RecipeError> {
        // Here null isn't the default: LLaMA-Factory has three ways.
        let thinking =
            if self.is_null("enable_thinking") { None } else { self.opt("enable_thinking")? };
        Ok(TemplatePlan {
            template: self.opt("template")?,
            default_system: self.opt("default_system")?,
            tool_format: self.opt("tool_format")?,
            enable_thinking: thinking,
            preserve_thinking: self.get("preserve_thinking")?,
        })
    }

    pub(super) fn val_size(&self) -> Result<Option<ValSize>, RecipeError> {
        let size: f64 = self.get("val_size")?;
        match size {
            size if size <= NO_VALIDATION => Ok(None),
            size if size < 1.0 => Ok(Some(ValSize::Share(size))),
            size if size.fract() == 0.0 && size < 1e15 => Ok(Some(ValSize::Rows(size as usize))),
            _ => Err(self.bad("val_size", "a share below 1 or a whole number of rows")),
        }
    }

    fn dataset_dir(&self) -> Result<DatasetDir, RecipeError> {
        if let Some(Value::Map(_)) = self.node("dataset_dir").map(|node| node.value) {
            return match self.get("dataset_dir")? {
                serde_json::Value::Object(map) => Ok(DatasetDir::Inline(map)),
                _ => Err(self.bad("dataset_dir", "a folder or a map")),
            };
        }
        let folder: String = self.opt("dataset_dir")?.unwrap_or_default();
        match folder.as_str() {
            "" => Err(self.bad("dataset_dir", "a folder or a map")),
            hub if hub == "ONLINE" || hub.starts_with("REMOTE:") => Err(self.not_yet(
                "dataset_dir",
                "data are local files; give the folder of dataset_info.json",
            )),
            folder => Ok(DatasetDir::Folder(folder.into())),
        }
    }
}
