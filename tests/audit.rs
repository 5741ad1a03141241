//! Every crate of Cargo.lock: known vulnerabilities (as of packaging/advisories.tsv), licences and sources (deny.toml). No
//! network is needed; `make audit` asks cargo-deny, which looks at today's advisories as well.

use std::fs;
use std::path::Path;
use std::process::Command;

use semver::{Version, VersionReq};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A crate of Cargo.lock.
#[derive(Debug)]
struct Locked {
    name: String,
    version: Version,
    /// None for our own.
    source: Option<String>,
    has_checksum: bool,
}

fn locked(lock: &str) -> Vec<Locked> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(" = \""));
        line.and_then(|l| l.strip_suffix('"')).map(str::to_owned)
    };
    let packages = lock.split("[[package]]").skip(1).map(|block| Locked {
        name: value(block, "name").expect("a name"),
        version: value(block, "version").expect("a version").parse().expect("a version as semver has it"),
        source: value(block, "source"),
        has_checksum: value(block, "checksum").is_some(),
    });
    packages.collect()
}

/// One line of the advisories.
struct Advisory<'a> {
    package: &'a str,
    id: &'a str,
    kind: &'a str,
    /// Versions that it does not touch.
    good: Vec<VersionReq>,
}

fn advisories(text: &str) -> Vec<Advisory<'_>> {
    let rows = text.lines().filter(|l| !l.starts_with('#')).map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [package, id, kind, patched, unaffected] = fields[..] else { panic!("not five fields: {line}") };
        let reqs = [patched, unaffected].into_iter().flat_map(|f| f.split('|')).map(str::trim);
        let good = reqs.filter(|r| !r.is_empty()).map(|r| r.parse().unwrap_or_else(|e| panic!("{line}: {e}")));
        Advisory { package, id, kind, good: good.collect() }
    });
    rows.collect()
}

/// Whether the advisory is about this crate in this version.
fn touches(advisory: &Advisory<'_>, krate: &Locked) -> bool {
    advisory.package == krate.name && !advisory.good.iter().any(|req| req.matches(&krate.version))
}

#[test]
fn no_crate_has_a_known_vulnerability() {
    let (text, deny) = (read("packaging/advisories.tsv"), read("deny.toml"));
    let (advisories, crates) = (advisories(&text), locked(&read("Cargo.lock")));
    assert!(advisories.len() > 1000 && crates.len() > 50, "both lists were read");
    let as_of = text.lines().next().and_then(|l| l.split(',').nth(1)).unwrap_or("").split(':').next().unwrap_or("");
    eprintln!("advisories as of{as_of}; packaging/advisories makes them anew, make audit looks at today's");
    let mut found = Vec::new();
    for krate in crates.iter().filter(|k| k.source.is_some()) {
        for advisory in advisories.iter().filter(|a| touches(a, krate)) {
            let ignored = deny.lines().any(|l| l.contains(advisory.id) && l.contains("reason"));
            let line = format!(
                "{} {}: {} https://rustsec.org/advisories/{}",
                krate.name, krate.version, advisory.kind, advisory.id
            );
            match advisory.kind {
                "vulnerability" | "unsound" if !ignored => found.push(line),
                _ => eprintln!("note: {line}"),
            }
        }
    }
    assert!(found.is_empty(), "use a patched version, or give a reason in deny.toml:\n{}", found.join("\n"));
}

#[test]
fn a_crate_with_a_vulnerability_would_be_seen() {
    let text = read("packaging/advisories.tsv");
    let advisories = advisories(&text);
    let of = |name: &str, version: &str| -> Vec<&str> {
        let lock = format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\nsource = \"{REGISTRY}\"\n");
        let krate = &locked(&lock)[0];
        advisories.iter().filter(|a| touches(a, krate)).map(|a| a.id).collect()
    };
    assert_eq!(of("crossbeam-channel", "0.5.14"), ["RUSTSEC-2025-0024"]);
    assert_eq!(of("crossbeam-channel", "0.5.15"), [""; 0]);
    assert_eq!(of("smallvec", "1.6.0"), ["RUSTSEC-2021-0003"]);
    assert_eq!(of("rusqlite", "0.22.0").first(), Some(&"RUSTSEC-2020-0014"));
}

/// The strings of `allow` in deny.toml.
fn allowed(deny: &str) -> Vec<String> {
    let list = deny.split("\nallow = [").nth(1).and_then(|rest| rest.split(']').next()).expect("the list of licences");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be met with the licences of `allow`: OR binds less than AND, `/` is an old OR.
fn permits(expression: &str, allow: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = any(&words, &mut at, allow);
    met && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allow: &[String]) -> bool {
    let mut met = all(words, at, allow);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(words, at, allow);
    }
    met
}

fn all(words: &[&str], at: &mut usize, allow: &[String]) -> bool {
    let mut met = one(words, at, allow);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allow);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allow: &[String]) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let met = any(words, at, allow);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return met && closed;
    }
    let mut licence = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{licence} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allow.contains(&licence)
}

#[test]
fn licences_are_read_as_spdx_has_them() {
    let allow = ["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(String::from);
    for good in
        ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "ISC AND (GPL-3.0 OR MIT)", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(permits(good, &allow), "{good}");
    }
    for bad in
        ["GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT)", "", "MIT WITH LLVM-exception", "ISC AND (GPL-3.0 OR BSL-1.0)"]
    {
        assert!(!permits(bad, &allow), "{bad}");
    }
}

#[test]
fn every_crate_may_be_used_under_a_licence_of_the_list() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    // Those that are built for Linux: the others are not here to be read.
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let ran = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &target])
        .current_dir(ROOT)
        .output()
        .expect("cargo runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let used: Vec<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().filter_map(|n| n["id"].as_str()).collect();
    let allow = allowed(&read("deny.toml"));
    let mut found = Vec::new();
    let mut seen = 0;
    for package in metadata["packages"].as_array().unwrap() {
        if used.iter().any(|id| package["id"] == *id) {
            seen += 1;
            let licence = package["license"].as_str().unwrap_or("");
            if !permits(licence, &allow) {
                found.push(format!("{} {}: {licence:?}", package["name"], package["version"]));
            }
        }
    }
    assert!(seen > 50, "the crates were read: {seen}");
    assert!(found.is_empty(), "no licence of deny.toml's list:\n{}", found.join("\n"));
}

#[test]
fn every_crate_comes_from_crates_io_with_its_checksum() {
    for krate in locked(&read("Cargo.lock")) {
        if krate.name == "ssefs" {
            continue;
        }
        assert_eq!(krate.source.as_deref(), Some(REGISTRY), "{}", krate.name);
        assert!(krate.has_checksum, "{}", krate.name);
    }
}
