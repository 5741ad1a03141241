//! The structure of the code: which layer may use which, who speaks SQL, who prints, how long a file may be. Read from
//! the sources, so that a breach is a failing test and not a remark in a review.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the ground up; each uses only those before it.
const LAYERS: [&str; 13] =
    ["types", "crypto", "rule", "keys", "catalog", "log", "seal", "bucket", "fs", "fuse", "ops", "control", "cli"];

/// Arrows that the order would allow and that are forbidden all the same.
const FORBIDDEN: [(&str, &str); 8] = [
    ("rule", "crypto"),
    ("catalog", "keys"),
    ("log", "catalog"),
    ("seal", "catalog"),
    ("ops", "fs"),
    ("ops", "fuse"),
    ("control", "fs"),
    ("control", "fuse"),
];

const LINES_MAX: usize = 700;

fn files(below: &str, into: &mut Vec<(PathBuf, String)>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in fs::read_dir(root.join(below)).expect("a directory of the repository") {
        let path = entry.expect("an entry").path();
        let relative = path.strip_prefix(root).expect("below the repository").to_owned();
        if path.is_dir() {
            files(relative.to_str().expect("UTF-8"), into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push((relative, fs::read_to_string(&path).expect("a source")));
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    files("src", &mut all);
    assert!(all.len() > 20, "the sources were found");
    all
}

/// The module a file belongs to: `src/ops/wire.rs` and `src/ops.rs` to `ops`.
fn layer_of(path: &Path) -> String {
    let first = path.components().nth(1).expect("src/...").as_os_str().to_str().expect("UTF-8");
    first.strip_suffix(".rs").unwrap_or(first).to_owned()
}

/// Every top-level module that a source names as `crate::x`, with its line.
fn uses(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let code: String =
        source.lines().map(|l| if l.trim_start().starts_with("//") { "\n".into() } else { format!("{l}\n") }).collect();
    for (at, _) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let word = |s: &str| s.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (0, String::new());
            for c in group.chars() {
                match c {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push((line, word(item.trim())));
                        item.clear();
                        continue;
                    }
                    _ => {}
                }
                item.push(c);
            }
            found.push((line, word(item.trim())));
        } else {
            found.push((line, word(rest)));
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

fn breaches(layer: &str, source: &str) -> Vec<String> {
    let own = LAYERS.iter().position(|l| *l == layer);
    uses(source)
        .into_iter()
        .filter_map(|(line, used)| {
            // A macro of ours (`crate::name!`) or the own module is no arrow.
            let target = LAYERS.iter().position(|l| *l == used)?;
            let forbidden = FORBIDDEN.contains(&(layer, used.as_str()));
            (used != layer && (own.is_none_or(|own| target > own) || forbidden))
                .then(|| format!("line {line}: {layer} uses {used}"))
        })
        .collect()
}

/// The part of a source before its own unit tests.
fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]").next().unwrap_or(source)
}

#[track_caller]
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn each_layer_uses_only_those_below_it() {
    let mut found = Vec::new();
    for (path, source) in sources() {
        let layer = layer_of(&path);
        if layer == "lib" || layer == "main" {
            continue;
        }
        if !LAYERS.contains(&layer.as_str()) {
            found.push(format!("{}: {layer} is no layer: give it a place in tests/tidy.rs", path.display()));
        }
        found.extend(breaches(&layer, &source).into_iter().map(|b| format!("{} {b}", path.display())));
    }
    assert_none(&found);
}

#[test]
fn an_arrow_in_the_wrong_direction_is_seen_in_every_spelling() {
    assert_eq!(breaches("log", "use crate::types::X;\nuse crate::bucket::Bucket;"), ["line 2: log uses bucket"]);
    assert_eq!(breaches("ops", "use crate::{\n    bucket::{A, B},\n    fs,\n};"), ["line 1: ops uses fs"]);
    assert_eq!(breaches("rule", "fn f(k: crate::keys::Keyring) {}"), ["line 1: rule uses keys"]);
    assert_eq!(breaches("cli", "use crate::{fuse, control::Server};"), [""; 0]);
    assert_eq!(breaches("types", "// crate::cli is not used here"), [""; 0]);
}

#[test]
fn sql_is_spoken_in_catalog_and_keys_only() {
    let words = [
        "rusqlite",
        "\"SELECT ",
        "\"INSERT ",
        "\"UPDATE ",
        "\"DELETE FROM ",
        "\"CREATE TABLE",
        "\"PRAGMA ",
        "\"BEGIN",
        "\"COMMIT\"",
    ];
    let mut found = Vec::new();
    for (path, source) in sources() {
        if matches!(layer_of(&path).as_str(), "catalog" | "keys") {
            continue;
        }
        let source = without_tests(&source);
        found.extend(words.iter().filter(|w| source.contains(**w)).map(|w| format!("{}: {w}", path.display())));
    }
    assert_none(&found);
}

#[test]
fn only_the_command_line_prints() {
    let words = ["println!(", "print!(", "eprintln!(", "eprint!(", "dbg!(", "io::stdout(", "io::stderr("];
    let mut found = Vec::new();
    for (path, source) in sources() {
        if layer_of(&path) == "cli" {
            continue;
        }
        let source = without_tests(&source);
        found.extend(words.iter().filter(|w| source.contains(**w)).map(|w| format!("{}: {w}", path.display())));
    }
    assert_none(&found);
}

#[test]
fn types_of_fuser_are_named_in_the_adapter_only() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|(path, source)| layer_of(path) != "fuse" && source.contains("fuser::"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_none(&found);
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let mut all = sources();
    files("tests", &mut all);
    let mut found = Vec::new();
    for (path, source) in all {
        let lines = source.lines().count();
        if lines > LINES_MAX {
            found.push(format!("{}: {lines} lines, {LINES_MAX} at most", path.display()));
        }
        if !source.starts_with("//!") {
            found.push(format!("{}: begins with no head", path.display()));
        }
    }
    assert_none(&found);
}

#[test]
fn no_stub_is_left_in_the_sources() {
    let words = ["todo!(", "unimplemented!(", "FIXME", "XXX"];
    let mut found = Vec::new();
    for (path, source) in sources() {
        found.extend(words.iter().filter(|w| source.contains(**w)).map(|w| format!("{}: {w}", path.display())));
    }
    assert_none(&found);
}
