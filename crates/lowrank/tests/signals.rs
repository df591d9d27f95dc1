//! SIGTERM and SIGINT: the run finishes its step, saves, and goes on when it is started again.
#![cfg(unix)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

#[path = "runs/case.rs"]
mod case;

use std::{io::Read as _, process::Command};

use case::{Case, assert_same};

const STEPS: u64 = 40;

fn stops_and_goes_on(signal: &str) {
    // No checkpoint but that of the signal.
    let case = Case::new(&["max_steps=40", "save_steps=40"]);
    assert_eq!(case.run("whole").0, Some(0));
    for target in [3, 17] {
        let mut run = case.start("parts");
        assert!(run.wait_until(|| case.logged_step("parts") >= target), "it ended too early");
        let pid = run.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        assert_eq!(run.0.wait().unwrap().code(), Some(130));
        let mut said = String::new();
        run.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let step = case.logged_step("parts");
        assert!(step < STEPS, "the signal was overheard");
        assert!(said.contains(&format!("stopped after step {step} of {STEPS}")), "{said}");
        assert!(case.out(&format!("parts/checkpoint-{step}/run_state.json")).exists());
        assert!(!case.out("parts/adapter_model.safetensors").exists());
    }
    assert_eq!(case.run("parts").0, Some(0));
    assert_same(&case, "parts", "whole", STEPS);
}

#[test]
fn sigterm_stops_a_run_that_goes_on_later() {
    stops_and_goes_on("-TERM");
}

#[test]
fn sigint_stops_a_run_that_goes_on_later() {
    stops_and_goes_on("-INT");
}
