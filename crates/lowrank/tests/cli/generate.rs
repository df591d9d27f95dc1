//! `generate`: the stories model's greedy tokens are those of llama2.c's own program.

use serde_json::Value;

use super::{Result, adapter, failure, lowrank, model, objects, stdout, stories};

/// The first 65 tokens of `stories260K/golden_greedy.json`, made by an implementation in numpy.
const GOLDEN: [u32; 65] = [
    1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396,
    267, 337, 410, 408, 419, 292, 411, 322, 265, 282, 295, 433, 426, 385, 328, 432, 358, 394, 261,
    370, 432, 352, 266, 268, 388, 426, 338, 391, 266, 267, 337, 335, 312, 432, 398, 312, 286, 267,
    414, 270, 333, 415, 426, 13, 438, 310,
];

fn token_ids(object: &Value) -> Result<Vec<u32>> {
    Ok(serde_json::from_value(object["token_ids"].clone())?)
}

fn generate(more: &[&str]) -> Result<Value> {
    let stories = stories();
    let fixed = ["generate", "--model", &stories, "--temperature", "0", "--json"];
    let objects = objects(&stdout(fixed.iter().chain(more))?)?;
    Ok(objects.into_iter().next().ok_or("no object")?)
}

#[test]
fn greedy_tokens_are_the_golden_ones() -> Result<()> {
    let object = generate(&["--prompt-ids", "1", "--max-new-tokens", "64"])?;
    assert_eq!(token_ids(&object)?, GOLDEN);
    let text = "Once upon a time, there was a little girl named Lily. She loved to play outside \
                in the park. One day, she saw a big, red ball. She wanted to play with it, but it \
                was too high.\nLily";
    assert_eq!(object["text"], text);
    assert_eq!(object["completion"], text);
    Ok(())
}

#[test]
fn a_plain_prompt_begins_with_bos_and_is_part_of_the_result() -> Result<()> {
    let object = generate(&["--prompt", "Once upon a time", "--max-new-tokens", "8"])?;
    assert_eq!(token_ids(&object)?, GOLDEN[..13]);
    assert_eq!(object["completion"], ", there was a little girl");
    Ok(())
}

#[test]
fn what_is_streamed_is_the_completion() -> Result<()> {
    let prompt = ["--prompt", "Lily said", "--max-new-tokens", "40", "--temperature", "1.5"];
    let seed = ["--seed", "7", "--repetition-penalty", "1.2", "--top-k", "40", "--top-p", "0.9"];
    let stories = stories();
    let command = ["generate", "--model", &stories];
    let streamed = stdout(command.iter().chain(&prompt).chain(&seed))?;
    let whole = stdout(command.iter().chain(&prompt).chain(&seed).chain(&["--json"]))?;
    let whole = &objects(&whole)?[0];
    assert_eq!(Some(streamed.trim_end_matches('\n')), whole["completion"].as_str());
    Ok(())
}

#[test]
fn adapters_change_what_is_generated_and_add_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let names = ["half", "other_half", "whole"];
    let paths = names.map(|name| folder.path().join(name).display().to_string());
    for (path, size) in paths.iter().zip([1.0, 1.0, 2.0]) {
        adapter(path.as_ref(), "q_proj", size)?;
    }
    let prompt = ["--prompt", "Once", "--max-new-tokens", "40"];
    let with = |adapters: &[usize]| {
        let flags = adapters.iter().flat_map(|&i| ["--adapter", paths[i].as_str()]);
        generate(&prompt.into_iter().chain(flags).collect::<Vec<_>>())
    };
    let whole = with(&[2])?;
    assert_ne!(whole, with(&[])?);
    assert_ne!(whole, with(&[0])?);
    assert_eq!(whole, with(&[0, 1])?);
    // An adapter's folder stands for itself on the base that it names.
    let alone = stdout(["generate", "--model", &paths[2], "--json"].iter().chain(&prompt))?;
    assert_eq!(objects(&alone)?[0], whole);
    Ok(())
}

#[test]
fn a_named_template_makes_the_prompt_a_turn() -> Result<()> {
    let turn = ["--prompt", "Hi", "--template", "alpaca", "--system", "", "--max-new-tokens", "1"];
    let text = generate(&turn)?["text"].as_str().ok_or("no text")?.to_owned();
    assert!(text.starts_with("### Instruction:\nHi\n\n### Response:\n"), "{text}");
    Ok(())
}

#[test]
fn ids_need_no_tokenizer_and_t5_returns_its_decoders_tokens() -> Result<()> {
    let t5 = model("t5").display().to_string();
    let flags = ["--prompt-ids", "3,4,5,1", "--max-new-tokens", "4", "--json"];
    let object = &objects(&stdout(["generate", "--model", &t5].iter().chain(&flags))?)?[0];
    assert_eq!(object["text"], Value::Null);
    let ids = token_ids(object)?;
    assert_eq!(ids.first(), Some(&0), "decoder_start_token_id");
    assert!((2..=5).contains(&ids.len()), "{ids:?}");
    Ok(())
}

#[test] // tokens of transformers 5.24 and PEFT 0.21.2, `BartForCausalLM` with the table of both halves
fn an_adapter_of_the_decoder_alone_generates_with_it_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [own, merged] = ["own", "merged"].map(|name| folder.path().join(name));
    adapter(&own, "bart", 4.0)?;
    let (own, merged) = (own.display().to_string(), merged.display().to_string());
    let bart = model("bart_own").display().to_string();
    let flags = ["--prompt-ids", "2,7,9,11", "--max-new-tokens", "8", "--json"];
    let tokens = |more: &[&str]| {
        let text = stdout(["generate", "--model"].iter().chain(more).chain(&flags))?;
        token_ids(&objects(&text)?[0])
    };
    let expected = [2, 7, 9, 11, 27, 27, 27, 26, 23, 16, 19, 9];
    assert_eq!(tokens(&[&bart, "--adapter", &own])?, expected);
    assert_eq!(tokens(&[&bart])?[..2], [2, 16], "both halves answer the prompt");
    stdout(["merge", "--model", &bart, "--adapter", &own, "--out", &merged])?;
    assert_eq!(tokens(&[&merged])?, expected);
    Ok(())
}

#[test]
fn errors_say_what_to_do() -> Result<()> {
    let stories = stories();
    insta::assert_snapshot!(failure(["generate", "--model", "nowhere", "--prompt", "a"])?, @"1: error: `nowhere` is not a model folder: it has no `config.json`");
    insta::assert_snapshot!(
        failure(["generate", "--model", &stories, "--prompt", "a", "--adapter", "nowhere"])?, @"1: error: `nowhere` is not an adapter folder: it has no `adapter_config.json`");
    insta::assert_snapshot!(
        failure(["generate", "--model", &stories, "--prompt-ids", "1,512"])?, @"1: error: token id 512 is outside the model's vocabulary of 512");
    let bert = model("bert").display().to_string();
    insta::assert_snapshot!(failure(["generate", "--model", &bert, "--prompt", "a"])?, @"1: error: `bert` models don't generate text unless `is_decoder` in their `config.json` is true; `lowrank predict` asks them");
    insta::assert_snapshot!(
        failure(["generate", "--model", &stories, "--prompt", "a", "--top-p", "0"])?, @r"
    2: error: invalid value '0' for '--top-p <SHARE>': it must be a number above 0, up to 1

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(failure(["generate", "--model", &stories])?, @r"
    2: error: the following required arguments were not provided:
      --prompt <TEXT>

    Usage: lowrank generate --model <DIR> --prompt <TEXT>

    For more information, try '--help'.
    ");
    Ok(())
}

#[test]
fn a_closed_pipe_is_no_error() -> Result<()> {
    let stories = stories();
    let mut command = std::process::Command::new(lowrank(Vec::<&str>::new())?.get_program());
    command.args(["generate", "--model", &stories, "--prompt", "Once", "--max-new-tokens", "200"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output()?;
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    Ok(())
}
