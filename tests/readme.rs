//! Holds the documents true: what README shows to type is typed, its commands and make targets exist, its links lead
//! somewhere, and `.ci/run` runs the tests.

mod cli_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::Parser;
use cli_support::{SSEFS, Sandbox, is_mounted, require_fuse};
use ssefs::cli::args::Cli;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The contents of the fenced `sh` blocks, with the line before each.
fn blocks(document: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = document.lines();
    let mut before = "";
    while let Some(line) = lines.next() {
        if line == "```sh" {
            let block: Vec<&str> = lines.by_ref().take_while(|l| *l != "```").collect();
            found.push((before.to_owned(), block.join("\n")));
        }
        before = line;
    }
    found
}

/// The words of one line of shell, without its comment; quotes are not needed where this is used.
fn words(line: &str) -> Vec<String> {
    line.split(" #").next().unwrap_or(line).split_whitespace().map(|w| w.trim_matches(['"', '\'']).to_owned()).collect()
}

fn has_target(makefile: &str, target: &str) -> bool {
    makefile.lines().any(|l| l.split(':').next() == Some(target) && l.contains(':'))
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    require_fuse();
    let readme = read("README.md");
    let marked: Vec<_> =
        blocks(&readme).into_iter().filter(|(b, _)| b.contains("tests/readme.rs runs this block")).collect();
    let [(_, script)] = &marked[..] else { panic!("one block is marked, not {}", marked.len()) };
    let s = Sandbox::new();
    let home = s.mkdir("home");
    let bin = Path::new(SSEFS).parent().unwrap().to_str().unwrap();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
    let ended = s
        .command("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let o = cli_support::Outcome::from(ended);
    assert_eq!(o.code, 0, "{o:?}");
    assert!(o.err.contains("root.key"), "the first time it says where the root key lies: {o:?}");
    assert!(o.out.lines().any(|l| l == "AES256"), "encryption get: {o:?}");
    let photos = Path::new(&home).join("photos");
    assert!(is_mounted(&photos));
    assert_eq!(fs::read_to_string(photos.join("note.txt")).unwrap(), "a secret\n");
    s.ssefs(&["umount", photos.to_str().unwrap()]).ok();
    let found = Command::new("grep").args(["-rla", "a secret"]).arg(s.path("store")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "whoever takes the disk finds ciphertext");
}

#[test]
fn every_command_shown_in_a_document_is_one_that_the_program_takes() {
    let mut seen = 0;
    for document in ["README.md", "CONTRIBUTING.md", "packaging/README.md"] {
        for (_, block) in blocks(&read(document)) {
            for line in block.lines().filter(|l| l.starts_with("ssefs ")) {
                seen += 1;
                let parsed = Cli::try_parse_from(words(line));
                assert!(
                    parsed.is_ok(),
                    "{document}: {line}: {}",
                    parsed.err().map(|e| e.to_string()).unwrap_or_default()
                );
            }
        }
    }
    assert!(seen >= 7, "the examples were found");
}

#[test]
fn every_command_that_the_demo_prints_is_one_that_the_program_takes() {
    let demo = read("packaging/demo");
    let shown: Vec<&str> = demo.lines().map(str::trim).filter(|l| l.starts_with("ssefs ")).collect();
    assert!(shown.len() >= 4, "{shown:?}");
    for line in shown {
        assert!(Cli::try_parse_from(words(line)).is_ok(), "{line}");
    }
}

#[test]
fn every_make_target_that_a_document_names_exists() {
    let makefile = read("Makefile");
    let mut seen = 0;
    for document in ["README.md", "CONTRIBUTING.md", "packaging/README.md", ".ci/run"] {
        let text = read(document);
        let shown = text.lines().filter_map(|l| l.strip_prefix("make ")).chain(text.split("`make ").skip(1));
        for target in shown.filter_map(|t| t.split([' ', '`', '\n']).next()) {
            seen += 1;
            assert!(has_target(&makefile, target), "{document} names make {target}");
        }
    }
    assert!(seen >= 5, "the targets were found");
    for target in ["demo", "test", "bench", "lint", "soak"] {
        assert!(has_target(&makefile, target), "{target}");
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in ["README.md", "CONTRIBUTING.md", "packaging/README.md"] {
        let at = Path::new(ROOT).join(document);
        for link in read(document).split("](").skip(1).filter_map(|l| l.split(')').next()) {
            if !link.contains("://") && !link.starts_with('#') {
                assert!(at.parent().unwrap().join(link).exists(), "{document}: {link}");
            }
        }
    }
}

#[test]
fn what_continuous_integration_runs_is_the_test_suite_and_stops_at_the_first_failure() {
    let run = read(".ci/run");
    assert!(run.contains("set -euo pipefail"));
    assert_eq!(run.lines().last(), Some("make test"), "the closing lines are the runner's own");
    for script in [".ci/run", "packaging/need", "packaging/demo"] {
        let mode = fs::metadata(Path::new(ROOT).join(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} can be run");
    }
}

#[test]
fn a_missing_program_is_named_with_its_package_where_it_cannot_be_installed() {
    let need = Path::new(ROOT).join("packaging/need");
    let empty = tempfile::tempdir().unwrap();
    for tool in ["id", "sh"] {
        let real = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap();
        let real = String::from_utf8(real.stdout).unwrap();
        std::os::unix::fs::symlink(real.trim(), empty.path().join(tool)).unwrap();
    }
    let run = |pairs: &[&str]| -> cli_support::Outcome {
        // No apt-get on this PATH: nothing is installed by a test.
        Command::new(&need).args(pairs).env("PATH", empty.path()).output().unwrap().into()
    };
    assert_eq!(run(&["sh:dash"]).code, 0);
    let o = run(&["sh:dash", "no-such-program:its-package"]);
    assert_eq!(o.code, 1, "{o:?}");
    assert!(o.err.contains("missing: no-such-program") && o.err.contains("its-package"), "{o:?}");
}
