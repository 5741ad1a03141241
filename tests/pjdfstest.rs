//! SEMANTICS row 61 by somebody else's measure: every test of pjdfstest that does not fail on the plain disk must not
//! fail on a mount, but for the gaps listed here, and those must fail. `make test` brings the program; without it
//! (`cargo test` alone in a fresh clone) there is nothing to run.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/run.rs"]
mod run;
#[path = "common/sys.rs"]
mod sys;

use mount::{Mount, is_root, skip_without_ssefs};
use run::{Ran, run};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tests that do not pass on a mount although they pass on a plain disk, each with its reason, which stands in ssefs(5)
/// as well.
const GAPS: [(&str, &str); 1] =
    [("link::link_count_max", "skipped: the C library's pathconf(3) knows no limit of links for any FUSE mount")];

/// Stands before mount(8) in the path, to remount: not by the helper of an ssefs that may be installed, and again while
/// the kernel says busy, because FUSE lets go of a file that was closed and removed only when ssefs has heard of it.
const MOUNT: &str = "#!/bin/sh
PATH='@PATH@'
for try in $(seq 200); do
    if said=$(mount -i \"$@\" 2>&1); then
        exit 0
    fi
    case $said in *busy*) sleep 0.05 ;; *) break ;; esac
done
echo \"$said\" >&2
exit 1
";

/// Fewer results than this, and the program has not run as it should (version 0.2.2 has 398).
const TESTS_MIN: usize = 300;
/// The same for those that want a file system made read-only (13).
const EROFS_TESTS_MIN: usize = 10;

/// The program: where `make test` says, or where it leaves it.
fn program() -> Option<PathBuf> {
    if let Some(said) = std::env::var_os("SSEFS_PJDFSTEST") {
        let said = PathBuf::from(said);
        assert!(said.is_file(), "SSEFS_PJDFSTEST names {}, which is not there", said.display());
        return Some(said);
    }
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/pjdfstest");
    usual.is_file().then_some(usual)
}

/// Two users of this system with the groups they are in, for the tests that switch users.
fn two_users() -> [(String, String); 2] {
    let rows = |file: &str| -> Vec<Vec<String>> {
        let text = fs::read_to_string(file).unwrap();
        text.lines().map(|l| l.split(':').map(str::to_owned).collect()).filter(|r: &Vec<_>| r.len() > 3).collect()
    };
    let groups: BTreeMap<String, String> =
        rows("/etc/group").into_iter().map(|r| (r[2].clone(), r[0].clone())).collect();
    let mut found = rows("/etc/passwd")
        .into_iter()
        .filter(|r| r[2] != "0" && r[3] != "0")
        .filter_map(|r| Some((r[0].clone(), groups.get(&r[3])?.clone())));
    let mut next = || found.next().expect("two users besides root, each with a group, in /etc/passwd");
    [next(), next()]
}

/// Settings; `remount` lets the tests of EROFS make the file system read-only for a moment each.
fn settings(remount: bool) -> String {
    let [a, b] = two_users();
    format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
         [settings]\nnaptime = 0.02\nallow_remount = {remount}\n\
         [dummy_auth]\nentries = [[{:?}, {:?}], [{:?}, {:?}]]\n",
        a.0, a.1, b.0, b.1
    )
}

/// `name ... ok`, `name ... FAILED` or `name ... skipped` among whatever else is printed.
fn results(printed: &str) -> BTreeMap<String, String> {
    printed
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, result @ ("ok" | "FAILED" | "skipped")] = words[..] else { return None };
            name.contains("::").then(|| (name.to_owned(), result.to_owned()))
        })
        .collect()
}

/// What the mount must not have: tests that fail and do not fail on the plain side or are left out, and gaps that are none.
fn complaints(
    plain: &BTreeMap<String, String>,
    mounted: &BTreeMap<String, String>,
    gaps: &[(&str, &str)],
) -> Vec<String> {
    let mut found = Vec::new();
    for (name, result) in plain.iter().filter(|(_, r)| *r != "FAILED") {
        let gap = gaps.iter().any(|(g, _)| g == name);
        match mounted.get(name).map(String::as_str) {
            Some("ok") if gap => found.push(format!("{name} is listed as a gap and passes: take it from the list")),
            Some(_) if gap => {}
            Some("FAILED") => found.push(format!("{name} is {result} on the plain disk and fails on the mount")),
            Some("skipped") if result == "ok" => found.push(format!("{name} runs on the plain disk only")),
            Some(_) => {}
            None => found.push(format!("{name} did not run on the mount")),
        }
    }
    let unknown = gaps.iter().filter(|(g, _)| !plain.contains_key(*g));
    found.extend(unknown.map(|(g, _)| format!("{g} is listed as a gap, and there is no such test")));
    found
}

#[test]
fn r61_what_pjdfstest_finds_right_on_a_plain_disk_it_finds_right_on_a_mount() {
    if skip_without_ssefs() {
        return;
    }
    let Some(program) = program() else {
        eprintln!("skipped: no pjdfstest; make test installs it");
        return;
    };
    let rule = Mount::builder().rule("AES256");
    let m = if is_root() { rule.shared().mount() } else { rule.mount() };
    let plain = m.beside("plain");
    fs::create_dir(&plain).unwrap();
    let bin = m.beside("bin");
    fs::create_dir(&bin).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    fs::write(bin.join("mount"), MOUNT.replace("@PATH@", &path)).unwrap();
    fs::set_permissions(bin.join("mount"), fs::Permissions::from_mode(0o755)).unwrap();

    let tested = |name: &str, dir: &Path, other: &Path, only: &str| -> (BTreeMap<String, String>, Ran) {
        let config = m.beside(&format!("{name}.toml"));
        fs::write(&config, settings(!only.is_empty())).unwrap();
        let mut c = Command::new(&program);
        c.arg("-c").arg(&config).arg("-p").arg(dir).arg("-s").arg(other).args((!only.is_empty()).then_some(only));
        c.env("NO_COLOR", "1").env("PATH", format!("{}:{path}", bin.display()));
        let ran = run(&mut c);
        (results(&ran.stdout), ran)
    };
    // Never a remount on the plain side: it would be the disk under this test.
    let (on_plain, said) = tested("plain", &plain, &m.path(), "");
    assert!(on_plain.len() >= TESTS_MIN, "only {} results: {said:?}", on_plain.len());
    let (mut on_mount, mut said) = tested("mount", &m.path(), &plain, "");
    if is_root() {
        // In a process of their own: other tests leave files open, which no file system can be made read-only with.
        let (read_only, more) = tested("remount", &m.path(), &plain, "erofs");
        assert!(read_only.len() >= EROFS_TESTS_MIN, "only {} results: {more:?}", read_only.len());
        on_mount.extend(read_only);
        said.stdout.push_str(&more.stdout);
    }
    let passed = |r: &BTreeMap<String, String>| r.values().filter(|r| *r == "ok").count();
    println!("pjdfstest: {} pass on the plain disk, {} on the mount", passed(&on_plain), passed(&on_mount));
    let found = complaints(&on_plain, &on_mount, &GAPS);
    assert!(found.is_empty(), "{}\n\n{}", found.join("\n"), said.stdout);
}

#[test]
fn a_test_that_fails_on_the_mount_alone_and_a_gap_that_is_none_are_both_seen() {
    let of = |text: &str| results(text);
    let plain = of("a::x   ok\nb::x  FAILED\n\tpanicked at b::x\nc::x skipped\n\treason\nd::x ok\n\nSummary: 1 failed");
    assert_eq!(plain.len(), 4);
    assert_eq!(complaints(&plain, &plain, &[]), [""; 0]);
    let worse = of("a::x FAILED\nb::x FAILED\nc::x FAILED\nd::x skipped");
    assert_eq!(complaints(&plain, &worse, &[]).len(), 3);
    assert_eq!(complaints(&plain, &worse, &[("a::x", ""), ("c::x", "")]).len(), 1);
    assert_eq!(complaints(&plain, &worse, &[("a::x", ""), ("c::x", ""), ("d::x", "")]).len(), 0);
    assert_eq!(complaints(&plain, &plain, &[("a::x", ""), ("gone::x", "")]).len(), 2);
    assert_eq!(complaints(&plain, &of("a::x ok"), &[]).len(), 2);
}
