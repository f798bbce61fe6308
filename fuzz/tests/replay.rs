//! Every input that was worth keeping, through every target, whenever the tests run.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn inputs(target: &str) -> Vec<PathBuf> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = fs::read_dir(&place).into_iter().flatten().flatten();
    files.map(|file| file.path()).collect()
}

#[test]
fn every_kept_input_is_survived() {
    for (name, target) in fuzz::TARGETS {
        let inputs = inputs(name);
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in inputs {
            println!("{}", input.display());
            target(&fs::read(&input).unwrap());
        }
    }
}

#[test]
fn every_corpus_belongs_to_a_target_and_is_small() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut bytes = 0;
    for corpus in fs::read_dir(corpora).unwrap().flatten() {
        let name = corpus.file_name().into_string().unwrap();
        assert!(fuzz::target(&name).is_some(), "{name} is no target");
        let inputs = inputs(&name);
        assert!(inputs.len() <= 100, "{name} has {} inputs", inputs.len());
        bytes += inputs.iter().map(|input| input.metadata().unwrap().len()).sum::<u64>();
    }
    assert!(bytes < 300 << 10, "the corpora have {bytes} bytes");
}
