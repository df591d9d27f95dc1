//! `chat`: turns from standard input.

use super::{Result, adapter, lowrank, stories};

/// Standard output and error of a conversation.
fn chat(flags: &[&str], turns: &str) -> Result<(String, String)> {
    let stories = stories();
    let fixed = ["chat", "--model", &stories, "--template", "alpaca", "--max-new-tokens", "12"];
    let mut command = lowrank(fixed.iter().chain(flags))?;
    let output = command.write_stdin(turns).output()?;
    let stderr = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{stderr}");
    Ok((String::from_utf8(output.stdout)?, stderr))
}

fn answers(flags: &[&str], turns: &str) -> Result<Vec<String>> {
    Ok(chat(flags, turns)?.0.lines().map(str::to_owned).collect())
}

#[test]
fn history_is_kept_until_it_is_cleared() -> Result<()> {
    let greedy = ["--temperature", "0"];
    let both = answers(&greedy, "Lily\n\nLily\n/exit\nLily\n")?;
    let apart = answers(&greedy, "Lily\n/clear\nLily\n")?;
    assert_eq!((both.len(), apart.len()), (2, 2), "{both:?} {apart:?}");
    assert_eq!(both[0], apart[0]);
    assert_eq!(apart[0], apart[1]);
    assert_ne!(both[0], both[1]);
    Ok(())
}

#[test]
fn draws_follow_the_seed_and_differ_by_turn() -> Result<()> {
    let drawn = |seed: &str| answers(&["--seed", seed], "Lily\n/clear\nLily\n");
    let first = drawn("1")?;
    assert_eq!(first, drawn("1")?);
    assert_ne!(first, drawn("2")?);
    assert_ne!(first[0], first[1]);
    Ok(())
}

#[test]
fn adapters_are_switched_in_between() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let lora = folder.path().join("tuned");
    adapter(&lora, "lm_head", 2.0)?;
    let lora = lora.display().to_string();
    let turns = "Lily\n/clear\n/adapter none\nLily\n/clear\n/adapter tuned\nLily\n/adapter x\n/y\n";
    let flags = ["--temperature", "0", "--adapter", &lora];
    let (stdout, stderr) = chat(&flags, turns)?;
    let found: Vec<&str> = stdout.lines().collect();
    assert_eq!(found.len(), 3, "{stdout}");
    assert_eq!(found[0], found[2]);
    assert_eq!(found[1], answers(&["--temperature", "0"], "Lily\n")?[0]);
    assert_ne!(found[0], found[1]);
    insta::assert_snapshot!(stderr, @r"
    the conversation is forgotten
    no adapter is active
    the conversation is forgotten
    active: tuned
    warning: there is no adapter named `x`; loaded: tuned
    commands: /exit, /clear, /adapter NAME… or none (loaded: tuned)
    ");
    Ok(())
}

#[test]
fn a_recipe_for_chat_is_understood() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = folder.path().join("chat.yaml");
    let text = format!(
        "model_name_or_path: {}\ntemplate: alpaca\ninfer_backend: huggingface\n\
         do_sample: false\nmax_new_tokens: 12\n",
        stories()
    );
    std::fs::write(&recipe, text)?;
    let mut command = lowrank(["chat", &recipe.display().to_string()])?;
    let output = command.write_stdin("Lily\n").output()?;
    assert!(output.status.success(), "{}", String::from_utf8(output.stderr)?);
    let answer = answers(&["--temperature", "0"], "Lily\n")?;
    assert_eq!(String::from_utf8(output.stdout)?.lines().collect::<Vec<_>>(), answer);
    Ok(())
}
