//! What a GPU would run, run by the processor: `device: cpu:composed` trains, resumes and decodes as
//! our kernels do. And what is said where there is no GPU.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

#[path = "runs/case.rs"]
#[expect(dead_code, reason = "no run is killed here")]
mod case;

use std::{fs, path::Path, process::Command};

use case::{Case, assert_same};

const KEYS: [&str; 6] = [
    "max_steps=4",
    "save_steps=2",
    "max_samples=12",
    "max_grad_norm=0.3",
    "packing=true",
    "lora_target=all",
];

fn with(keys: &[&'static str]) -> Case {
    Case::new(&[&KEYS, keys].concat())
}

fn generate(device: &str, dtype: &str) -> (bool, String) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/stories260K");
    let prompt = ["--prompt", "Once upon a time", "--max-new-tokens", "40", "--temperature", "0"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_lowrank"));
    command.arg("generate").arg("--model").arg(model).args(prompt).args(["--device", device]);
    command.args(["--dtype", dtype]);
    let output = command.output().unwrap();
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn a_composed_run_has_the_losses_of_the_kernels() {
    // In bf16 either is about half of this from the losses in f32.
    for (dtype, allowed) in [("bf16=false", 1e-5), ("bf16=true", 3e-3)] {
        let case = |device| with(&[device, dtype]);
        let (kernels, composed) = (case("device=cpu"), case("device=cpu:composed"));
        for case in [&kernels, &composed] {
            let (code, said) = case.run("run");
            assert_eq!(code, Some(0), "{said}");
        }
        let (expected, found) = (kernels.losses("run"), composed.losses("run"));
        assert_eq!(found.len(), 4, "{found:?}");
        for ((step, expected), (same, found)) in expected.iter().zip(&found) {
            let near = (found - expected).abs() < allowed * expected;
            assert!(step == same && near, "{dtype}, step {step}: {found}, not {expected}");
        }
    }
}

#[test]
fn a_composed_run_goes_on_where_it_was() {
    let case = with(&["device=cpu:composed"]);
    for out in ["whole", "parts"] {
        assert_eq!(case.run(out).0, Some(0));
    }
    fs::remove_dir_all(case.out("parts").join("checkpoint-4")).unwrap();
    let (code, said) = case.run("parts");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("goes on from"), "{said}");
    assert_same(&case, "parts", "whole", 4);
}

#[test]
fn composed_decoding_finds_the_same_tokens() {
    for dtype in ["float32", "bfloat16"] {
        assert_eq!(generate("cpu:composed", dtype), generate("cpu", dtype), "{dtype}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let (succeeded, said) = generate("cuda:97", "float32");
    assert!(!succeeded && said.starts_with("error: device `cuda:97`: "), "{said}");
    let case = with(&["device=cuda:97"]);
    let (code, said) = case.run("run");
    assert_eq!(code, Some(1));
    assert!(said.contains("device `cuda:97`") && !case.out("run").exists(), "{said}");
}
