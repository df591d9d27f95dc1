//! However and whenever a run is killed, the same command ends in the bytes of one that never was.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

#[path = "runs/case.rs"]
mod case;

use std::{fs, thread, time::Duration};

use case::{Case, Running, assert_same};

/// Enough steps to be killed in the middle of, with a checkpoint every few.
const KEYS: [&str; 3] = ["max_steps=60", "save_steps=3", "save_total_limit=2"];

/// Numbers that look random, from a seed: a linear congruential generator with Knuth's constants.
struct Random(u64);

impl Random {
    fn sleep_up_to_micros(&mut self, most: u64) {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_micros((self.0 >> 33) % most));
    }
}

/// Kills a run as `kill -9` does; false if it had ended by itself.
fn kill(mut run: Running) -> bool {
    run.0.kill().unwrap();
    run.0.wait().unwrap().code().is_none()
}

/// Whether a checkpoint is being written.
fn is_saving(case: &Case, out: &str) -> bool {
    let names = fs::read_dir(case.out(out)).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| name.starts_with(".checkpoint-") && name.ends_with(".tmp"))
}

#[test]
fn kill_9_at_any_moment_changes_nothing() {
    let case = Case::new(&KEYS);
    assert_eq!(case.run("whole").0, Some(0));
    let mut random = Random(20);
    let mut kills = 0;
    // Each time some way past where the last run came to, so that the kills spread over the run.
    for target in [4, 14, 23, 31, 42, 51] {
        let mut run = case.start("parts");
        if run.wait_until(|| case.logged_step("parts") == target) {
            random.sleep_up_to_micros(30_000);
            kills += u32::from(kill(run));
        }
    }
    assert!(kills >= 5, "only {kills} runs could be killed");
    let (code, said) = case.run("parts");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("goes on from"), "{said}");
    assert_same(&case, "parts", "whole", 60);
}

#[test]
fn kill_9_while_a_checkpoint_is_written_changes_nothing() {
    let case = Case::new(&["max_steps=30", "save_steps=1"]);
    assert_eq!(case.run("whole").0, Some(0));
    let mut random = Random(21);
    let mut kills = 0;
    for target in [2, 7, 13, 20] {
        let mut run = case.start("parts");
        let so_far = || case.logged_step("parts") >= target && is_saving(&case, "parts");
        if run.wait_until(so_far) {
            random.sleep_up_to_micros(1_000);
            kills += u32::from(kill(run));
        }
    }
    assert!(kills >= 3, "only {kills} runs could be killed");
    assert_eq!(case.run("parts").0, Some(0));
    assert!(!is_saving(&case, "parts"));
    assert_same(&case, "parts", "whole", 30);
}

/// Kernels divide their work by its size, never by the number of threads.
#[test]
fn the_number_of_threads_changes_nothing() {
    for more in [&[][..], &["bf16=true"]] {
        let keys = ["lora_target=all", "max_steps=4", "per_device_train_batch_size=6"];
        let case = Case::new(&[&keys[..], more].concat());
        for threads in ["1", "2", "3"] {
            let output = case.command(threads).env("RAYON_NUM_THREADS", threads).output().unwrap();
            assert!(output.status.success());
        }
        assert_same(&case, "2", "1", 4);
        assert_same(&case, "3", "1", 4);
    }
}

#[test]
fn a_run_that_leaves_the_numbers_fails() {
    let keys = ["lora_target=all", "learning_rate=1.0e10", "max_steps=5", "save_steps=1"];
    let case = Case::new(&keys);
    let (code, said) = case.run("out");
    assert_eq!(code, Some(1), "{said}");
    let last = case.logged_step("out");
    assert!(said.contains(&format!("error: step {}: the ", last + 1)), "{said}");
    assert!(said.contains("rows.jsonl:"), "{said}");
    assert!(case.out(&format!("out/checkpoint-{last}")).exists());
    assert!(!case.out(&format!("out/checkpoint-{}", last + 1)).exists());
}
