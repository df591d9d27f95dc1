//! From a plan to what the data side asks for: one conversion, so that training and `preview` see
//! the same rows.

use std::path::PathBuf;

use lowrank_data::{DataError, DataOptions, DateTime, MixStrategy, Packing as Rows};

use crate::recipe::plan::{DatasetDir, Packing, Plan, ValSize};

/// The data options of a plan; `now` is the day that templates write into prompts.
///
/// A sample's limit is [`sample_len`](crate::recipe::plan::DataPlan::sample_len), one less than
/// `cutoff_len` where samples are packed. The order of rows within an epoch has a seed of its own,
/// `data_seed`, and isn't decided here: `seed` is that of splits and random picks, as in
/// LLaMA-Factory.
///
/// # Errors
/// [`DataError::Option`] when a value is out of range or two contradict each other.
pub fn data_options(plan: &Plan, now: DateTime) -> Result<DataOptions, DataError> {
    let data = &plan.data;
    let template = &data.template;
    let (dataset_dir, dataset_info) = match &data.dataset_dir {
        DatasetDir::Folder(folder) => (folder.clone(), None),
        DatasetDir::Inline(info) => (PathBuf::from("."), Some(info.clone())),
    };
    let options = DataOptions {
        dataset_dir,
        dataset_info,
        media_dir: data.media_dir.clone(),
        dataset: data.dataset.clone(),
        template: template.template.clone(),
        cutoff_len: data.sample_len,
        train_on_prompt: data.train_on_prompt,
        mask_history: data.mask_history,
        default_system: template.default_system.clone(),
        enable_thinking: template.enable_thinking,
        preserve_thinking: template.preserve_thinking,
        tool_format: template.tool_format.clone(),
        split_special_tokens: data.split_special_tokens,
        max_samples: data.max_samples,
        mix_strategy: MixStrategy::Concat,
        interleave_probs: None,
        val_size: match data.val_size {
            None => 0.0,
            Some(ValSize::Share(share)) => share,
            Some(ValSize::Rows(rows)) => rows as f64,
        },
        seed: plan.train.seed,
        disable_shuffling: !plan.train.shuffle,
        packing: match data.packing {
            Packing::Off => Rows::Off,
            Packing::Plain | Packing::Neat => Rows::On,
        },
        preprocessing_batch_size: data.preprocessing_batch_size,
        ignore_pad_token_for_loss: data.ignore_pad_token_for_loss,
        skip_bad_rows: data.skip_bad_rows,
        now: Some(now),
    };
    options.check()?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn options(more: &str) -> Result<DataOptions, Box<dyn std::error::Error>> {
        let recipe = format!(
            "model_name_or_path: m\nstage: sft\ndo_train: true\nfinetuning_type: lora\n\
             output_dir: out\ndataset: a,b\n{more}"
        );
        let plan = Recipe::parse(&recipe, "recipe.yaml", &[])?.resolve()?;
        Ok(data_options(&plan, DateTime::from_unix(0))?)
    }

    #[test]
    fn every_key_arrives() -> Result<(), Box<dyn std::error::Error>> {
        let plain =
            options("dataset_dir: here\nmedia_dir: seen\ncutoff_len: 64\nseed: 7\ndata_seed: 8\n")?;
        let expected = DataOptions {
            dataset_dir: "here".into(),
            media_dir: Some("seen".into()),
            dataset: vec!["a".to_owned(), "b".to_owned()],
            cutoff_len: 64,
            seed: 7,
            now: Some(DateTime::from_unix(0)),
            ..DataOptions::default()
        };
        assert_eq!(plain, expected);
        let all = options(
            "template: chatml\ncutoff_len: 64\npacking: true\nval_size: 3\nmask_history: true\n\
             default_system: Hi\nenable_thinking: false\npreserve_thinking: true\n\
             tool_format: qwen\nsplit_special_tokens: true\nmax_samples: 5\n\
             disable_shuffling: true\npreprocessing_batch_size: 10\nskip_bad_rows: true\n",
        )?;
        let expected = DataOptions {
            dataset: vec!["a".to_owned(), "b".to_owned()],
            template: Some("chatml".to_owned()),
            cutoff_len: 63,
            packing: Rows::On,
            val_size: 3.0,
            mask_history: true,
            default_system: Some("Hi".to_owned()),
            enable_thinking: Some(false),
            preserve_thinking: true,
            tool_format: Some("qwen".to_owned()),
            split_special_tokens: true,
            max_samples: Some(5),
            disable_shuffling: true,
            preprocessing_batch_size: 10,
            skip_bad_rows: true,
            now: Some(DateTime::from_unix(0)),
            ..DataOptions::default()
        };
        assert_eq!(all, expected);
        Ok(())
    }

    #[test]
    fn a_dataset_info_inside_the_recipe_is_taken() -> Result<(), Box<dyn std::error::Error>> {
        let options = options("dataset_dir: {a: {file_name: a.json}}\n")?;
        let info = serde_json::json!({"a": {"file_name": "a.json"}});
        assert_eq!(options.dataset_info.map(serde_json::Value::Object), Some(info));
        assert_eq!(options.dataset_dir, PathBuf::from("."));
        Ok(())
    }
}
