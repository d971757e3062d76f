//! Every target over its corpus and over mutations of it, the same in every run.

use std::path::Path;
use std::time::Instant;

use milonga_fuzz::{Mutator, TARGETS, Target, seeds};

/// Mutations of each target; the slow ones take a tenth.
const MUTATIONS: usize = 4_000;

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let files = std::fs::read_dir(folder.join(target.name)).expect("each target has a corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    files.sort();
    let read = |path| std::fs::read(path).expect("readable");
    files.into_iter().map(read).collect()
}

#[test]
fn every_target_takes_its_corpus_and_mutations_of_it() {
    for target in TARGETS {
        let began = now();
        let corpus = corpus(target);
        assert!(!corpus.is_empty(), "{}", target.name);
        corpus.iter().for_each(|input| (target.run)(input));
        let slow = matches!(target.name, "directory" | "unit" | "certificates");
        let mutations = if slow { MUTATIONS / 10 } else { MUTATIONS };
        let mut mutator = Mutator::new(1);
        for nth in 0..mutations {
            let mut input = corpus[nth % corpus.len()].clone();
            let other = &corpus[(nth / corpus.len()) % corpus.len()];
            mutator.mutate(&mut input, other);
            (target.run)(&input);
        }
        let inputs = corpus.len() + mutations;
        println!("{}: {inputs} inputs in {:?}", target.name, began.elapsed());
    }
}

/// The committed seeds are those that this build writes: a changed format gets new ones (and keeps the old).
#[test]
fn the_seeds_of_this_build_are_in_the_corpora() {
    for (target, name, bytes) in seeds() {
        let path = format!("{}/corpus/{target}/{name}", env!("CARGO_MANIFEST_DIR"));
        let same = std::fs::read(&path).is_ok_and(|found| found == bytes);
        assert!(same, "run `cargo run -p milonga-fuzz --bin seeds`: {path}");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test that says how long it took"
)]
fn now() -> Instant {
    Instant::now()
}
