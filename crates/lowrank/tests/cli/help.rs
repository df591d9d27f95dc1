//! The help of the commands, as people read it.

use super::{Result, failure, stdout};

#[test]
fn each_command_explains_itself() -> Result<()> {
    insta::assert_snapshot!(stdout(["generate", "-h"])?, @r"
    Continues a prompt; without --json the new text is printed as it comes

    Usage: lowrank generate [OPTIONS] --model <DIR>

    Options:
          --model <DIR>                  Folder with config.json, weights and tokenizer; or an adapter
                                         folder that names its base
          --adapter <DIR>                PEFT adapter folder; of several given all are active, and their
                                         changes add up
          --dtype <DTYPE>                Convert the weights when they are loaded; by default they keep
                                         their dtype [possible values: float32, bfloat16, float16]
          --device <DEVICE>              Where the model runs: cpu, cuda (the first NVIDIA GPU) or
                                         cuda:N [default: cpu]
          --prompt <TEXT>                Text to continue
          --image <FILE>                 A picture (JPEG, PNG, WebP) to describe, or to answer the
                                         prompt by; for models that see
          --prompt-ids <IDS>...          Token ids to continue, e.g. 1,2,3; no token is added to them
          --raw                          Take the prompt as plain text even if the model has a chat
                                         template
          --template <NAME>              Chat template by LLaMA-Factory's name, e.g. chatml; by default
                                         the model's own
          --system <TEXT>                System text; an empty one turns the template's default off
          --max-new-tokens <N>           Most new tokens [default: 256]
          --temperature <NUMBER>         0 takes the likeliest token each time; above, one is drawn, the
                                         more freely the higher
          --top-k <N>                    Draw from so many of the likeliest tokens; 0: from all
          --top-p <SHARE>                Draw from the likeliest tokens that together have this
                                         probability
          --repetition-penalty <NUMBER>  Above 1: tokens that are already there become less likely
          --seed <N>                     Seed of the draws; the same seed draws the same
          --json                         Print one JSON object: `text` and `token_ids` of prompt and
                                         continuation, `completion`
      -h, --help                         Print help (see more with '--help')
    ");
    insta::assert_snapshot!(stdout(["chat", "-h"])?, @r"
    Talks with a model; /exit ends, /clear forgets, /adapter NAME or none switches adapters

    Usage: lowrank chat [OPTIONS] [RECIPE] [OVERRIDES]...

    Arguments:
      [RECIPE]        YAML or JSON recipe
      [OVERRIDES]...  Settings that replace the recipe's, `key=value`

    Options:
          --model <DIR>                  Folder with config.json, weights and tokenizer; or an adapter
                                         folder that names its base
          --adapter <DIR>                PEFT adapter folder; of several given all are active at first,
                                         and their changes add up
          --dtype <DTYPE>                Convert the weights when they are loaded; by default they keep
                                         their dtype [possible values: float32, bfloat16, float16]
          --device <DEVICE>              Where the model runs: cpu, cuda (the first NVIDIA GPU) or
                                         cuda:N; recipes say `device`
          --template <NAME>              Chat template by LLaMA-Factory's name, e.g. chatml; by default
                                         the model's own
          --system <TEXT>                System text; an empty one turns the template's default off
          --max-new-tokens <N>           Most tokens of an answer
          --temperature <NUMBER>         0 takes the likeliest token each time; above, one is drawn, the
                                         more freely the higher
          --top-k <N>                    Draw from so many of the likeliest tokens; 0: from all
          --top-p <SHARE>                Draw from the likeliest tokens that together have this
                                         probability
          --repetition-penalty <NUMBER>  Above 1: tokens that are already there become less likely
          --seed <N>                     Seed of the draws; the same seed draws the same
      -h, --help                         Print help (see more with '--help')
    ");
    insta::assert_snapshot!(stdout(["predict", "-h"])?, @r"
    Classifies texts, tags words or answers questions, a row of the data after the other

    Usage: lowrank predict [OPTIONS] --model <DIR>

    Options:
          --model <DIR>            Folder with config.json, weights and tokenizer; or an adapter folder
                                   that names its base
          --adapter <DIR>          PEFT adapter folder; of several given all are active, and their
                                   changes add up
          --dtype <DTYPE>          Convert the weights when they are loaded; by default they keep their
                                   dtype [possible values: float32, bfloat16, float16]
          --device <DEVICE>        Where the model runs: cpu, cuda (the first NVIDIA GPU) or cuda:N
                                   [default: cpu]
          --data <FILE>            File of rows: json, jsonl, csv, tsv, parquet or txt
          --dataset-dir <DIR>      Folder of dataset_info.json [default: data]
          --dataset <NAME>         Name in dataset_info.json
          --task <TASK>            seq-cls, token-cls or question-ans
          --batch-size <N>         Rows at once; for questions, windows [default: 32]
          --cutoff-len <N>         Most tokens of a row; by default what model and tokenizer can take
                                   (questions: 384)
          --doc-stride <N>         Tokens that two windows of a long context share (question answering)
          --max-answer-length <N>  Most tokens of an answer (question answering) [default: 30]
          --json                   Print one JSON object a row
      -h, --help                   Print help (see more with '--help')
    ");
    insta::assert_snapshot!(stdout(["merge", "-h"])?, @r"
    Merges adapters into their base: an ordinary model folder for transformers, llama.cpp, …

    Usage: lowrank merge [OPTIONS] [RECIPE] [OVERRIDES]...

    Arguments:
      [RECIPE]        YAML or JSON recipe
      [OVERRIDES]...  Settings that replace the recipe's, `key=value`

    Options:
          --model <DIR>            Folder of the base model; or an adapter folder that names its base
          --adapter <DIR>          PEFT adapter folder; may be given several times
          --out <DIR>              Where the merged model goes; must not exist yet, or be empty
          --dtype <DTYPE>          Dtype of the merged model; by default that of the base [possible
                                   values: float32, bfloat16, float16]
          --device <DEVICE>        Where the sums are made: cpu, cuda (the first NVIDIA GPU) or cuda:N;
                                   recipes say `device`
          --max-shard-size <SIZE>  Most bytes of one weight file, e.g. 5GB or 500MB
      -h, --help                   Print help (see more with '--help')
    ");
    insta::assert_snapshot!(stdout(["inspect", "-h"])?, @r"
    Shows a model's modules with shapes, dtypes and parameters, and which of them LoRA adapts

    Usage: lowrank inspect [OPTIONS] <MODEL>

    Arguments:
      <MODEL>  Folder with config.json and weights; or an adapter folder that names its base

    Options:
          --adapter <DIR>        Show what this adapter adapts
          --lora-target <NAMES>  Show what these targets would adapt: names, a regex, `all`
                                 (LLaMA-Factory's) or `all-linear` (PEFT's); by default PEFT's for this
                                 kind of model
          --lora-rank <N>        Rank of the adapters [default: 8]
          --task <TASK>          Head: causal-lm, seq2seq-lm, masked-lm, seq-cls, token-cls,
                                 question-ans or feature-extraction; by default the one in
                                 `architectures`
          --json                 Print one JSON object with every module
      -h, --help                 Print help
    ");
    insta::assert_snapshot!(stdout(["models", "-h"])?, @r"
    Lists the architectures that there are, classified by data, way of working and openness

    Usage: lowrank models [OPTIONS]

    Options:
          --json      Print one JSON object: `classes`, what each classification tells apart, and
                      `models`
          --markdown  Print the page docs/architectures.md
      -h, --help      Print help
    ");
    insta::assert_snapshot!(stdout(["preview", "-h"])?, @r#"
    Shows a recipe's rows as the model sees them: decoded, with what is trained told apart

    Usage: lowrank preview [OPTIONS] <RECIPE> [OVERRIDES]...

    Arguments:
      <RECIPE>        YAML or JSON recipe
      [OVERRIDES]...  Settings that replace the recipe's: `key=value`, or `--key value` behind `--`

    Options:
          --json      Print {"input_ids": […], "labels": […]}, a line for each row; -100 marks what
                      isn't trained
          --all       Show all rows
          --rows <N>  Show so many rows [default: 3]
      -h, --help      Print help (see more with '--help')
    "#);
    Ok(())
}

#[test]
fn a_wrong_flag_is_a_usage_error() -> Result<()> {
    insta::assert_snapshot!(failure(["generate", "--mdoel", "x"])?, @r"
    2: error: unexpected argument '--mdoel' found

      tip: a similar argument exists: '--model'

    Usage: lowrank generate --model <DIR>

    For more information, try '--help'.
    ");
    Ok(())
}
