//! Random operations on a mount and on a plain directory at once: every answer and every error must be the
//! same, and so must both trees, in the middle, after remounts and at the end. A seed that failed is run
//! again, alone, with `SSEFS_SEED=n`.

use crate::mount::Mount;
use crate::random_ops::{Names, Op, Side, choose, story};
use crate::sys;
use crate::tree::{Compare, Dice, EVERYTHING, differences};
use std::fs;

fn run_seed(seed: u64, steps: usize) {
    let mut m = match seed % 3 {
        0 => Mount::new(""),
        1 => Mount::new("AES256"),
        _ => Mount::builder().customer().mount(),
    };
    fs::create_dir(m.beside("plain")).unwrap();
    sys::chmod(m.beside("plain"), 0o755).unwrap();
    sys::chmod(m.path(), 0o755).unwrap();
    let mut dice = Dice::new(seed);
    let (mut here, mut there) = (Side::new(m.beside("plain")), Side::new(m.path()));
    let names = Names::default();
    let mut done: Vec<(Op, String)> = vec![];
    // Times of the two sides differ by when each operation came; the tests of times are elsewhere.
    let by = Compare { times: false, holes: false, ..EVERYTHING };
    for step in 0..steps {
        let op = choose(&mut dice, &names);
        let want = here.apply(&op);
        let got = there.apply(&op);
        assert!(
            want == got,
            "seed {seed}, step {step}: {op:?}\n plain: {want}\n mount: {got}\nbefore it:\n{}",
            story(&done)
        );
        done.push((op, want));
        let remount = dice.one_in(400);
        if remount || step % 250 == 249 || step + 1 == steps {
            if remount || step + 1 == steps {
                (here.open, there.open) = Default::default();
                m.remount();
            }
            let found = differences(&here.root, &there.root, by);
            let after = if remount { "a remount" } else { "this" };
            assert!(
                found.is_empty(),
                "seed {seed}, step {step}, after {after}:\n{}\nbefore it:\n{}",
                found.join("\n"),
                story(&done)
            );
        }
    }
}

fn seeds(of: std::ops::Range<u64>) {
    match std::env::var("SSEFS_SEED").map(|s| s.parse().expect("SSEFS_SEED is a number")) {
        Ok(seed) if of.contains(&seed) => run_seed(seed, 2000),
        Ok(_) => {}
        Err(_) => of.for_each(|s| run_seed(s, 2000)),
    }
}

#[test]
fn r61_random_operations_do_what_they_do_on_a_plain_directory() {
    seeds(0..8);
}

#[test]
fn r61_random_operations_do_what_they_do_on_a_plain_directory_with_other_seeds() {
    seeds(8..16);
}
