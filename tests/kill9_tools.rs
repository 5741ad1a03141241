//! kill -9 of ssefs in the middle of real programs: restic, borg, rsync and tar write to the mount, ssefs dies, and
//! after a remount each program finds what it was told is safe, by its own checks.
//! SSEFS_KILLS sets the rounds for each program (default 5), SSEFS_KILL_SEED the seed.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/run.rs"]
mod run;
#[path = "common/sys.rs"]
mod sys;
#[path = "common/tree.rs"]
mod tree;

use mount::{COMMAND_LIMIT, Mount, number, plain, run, sh, skip_without_ssefs, wait};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tree::{Contents, Dice, EVERYTHING, assert_same, generate, walk};

const TREE: Contents = Contents { files: 700, xattrs: false, sparse: false, nodes: false, bytes_in_names: false };

/// Starts `command`, kills ssefs after `0..longest` milliseconds and the program with it, as a crash of the machine would,
/// and mounts again. True if the program had ended well before, which says that its work is safe.
#[track_caller]
fn kill_during(m: &mut Mount, dice: &mut Dice, longest: u64, command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut program = command.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(dice.below(longest)));
    let finished = program.try_wait().unwrap().is_some_and(|status| status.success());
    m.kill9_leaving_the_mount();
    // SAFETY: kill has no memory effects; the group is that of our own child, not yet waited for or gone.
    unsafe { libc::kill(-(program.id() as i32), libc::SIGKILL) };
    assert!(wait(&mut program, COMMAND_LIMIT).is_some(), "{command:?} cannot be killed after its file system died");
    mount::detach(&m.path());
    m.mount();
    finished
}

/// Files of a tree change from round to round, so that each has something to write.
fn change(source: &Path, dice: &mut Dice, round: u64) {
    let files: Vec<_> = walk(source).into_iter().filter(|(_, m)| m.is_file()).map(|(p, _)| source.join(p)).collect();
    for _ in 0..80 {
        let n = dice.below(40_000) as usize;
        fs::write(dice.pick(&files), dice.bytes(n)).unwrap();
    }
    fs::write(source.join(format!("new {round}")), dice.bytes(6_000_000)).unwrap();
}

/// Runs `round` as often as asked for, with the seed of each in the message of its panic.
fn rounds(mut round: impl FnMut(u64, &mut Dice)) {
    let seed = number("SSEFS_KILL_SEED", 1);
    for n in 0..number("SSEFS_KILLS", 5) {
        eprintln!("round {n}, SSEFS_KILL_SEED={seed}");
        round(n, &mut Dice::new(seed * 1000 + n));
    }
}

#[test]
fn r62_restic_finds_every_snapshot_it_finished() {
    if skip_without_ssefs() {
        return;
    }
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 21, TREE);
    let restic = |m: &Mount, args: &[&str]| {
        let mut c = Command::new("restic");
        c.args(["-r", m.at("repo").to_str().unwrap(), "--no-cache", "-q"]).args(args);
        c.env("RESTIC_PASSWORD", "test").env("TMPDIR", m.beside("")).current_dir(m.beside("source"));
        c
    };
    run(&mut restic(&m, &["init"])).ok();
    run(&mut restic(&m, &["backup", "."])).ok();
    let mut finished = 1;
    rounds(|n, dice| {
        change(&source, dice, n);
        let mut backup = restic(&m, &["backup", "."]);
        finished += usize::from(kill_during(&mut m, dice, 2500, &mut backup));
        run(&mut restic(&m, &["unlock", "--remove-all"])).ok();
        run(&mut restic(&m, &["check", "--read-data"])).ok();
        let there = run(&mut restic(&m, &["snapshots", "--json"])).ok().matches("\"short_id\"").count();
        assert!(there >= finished, "{finished} backups had ended well, {there} snapshots are there");
        finished = there;
    });
    run(&mut restic(&m, &["backup", "."])).ok();
    let target = m.beside("restored");
    run(&mut restic(&m, &["restore", "latest", "--target", target.to_str().unwrap()])).ok();
    sh(&m.beside(""), "diff -r --no-dereference source restored");
}

#[test]
fn r62_borg_finds_every_archive_it_finished() {
    if skip_without_ssefs() {
        return;
    }
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 22, TREE);
    let borg = |m: &Mount, args: &[&str]| {
        let mut c = Command::new("borg");
        c.args(args).current_dir(m.beside("")).env("BORG_REPO", m.at("repo")).env("BORG_BASE_DIR", m.beside("borg"));
        c.env("BORG_PASSPHRASE", "test").env("BORG_DISPLAY_PASSPHRASE", "no").env("TMPDIR", m.beside(""));
        c
    };
    run(&mut borg(&m, &["init", "-e", "repokey-blake2"])).ok();
    run(&mut borg(&m, &["create", "::first", "source"])).ok();
    let mut finished = 1;
    rounds(|n, dice| {
        change(&source, dice, n);
        let mut create = borg(&m, &["create", &format!("::round{n}"), "source"]);
        finished += usize::from(kill_during(&mut m, dice, 2000, &mut create));
        run(&mut borg(&m, &["break-lock"])).ok();
        run(&mut borg(&m, &["check", "--verify-data"])).ok();
        let there = run(&mut borg(&m, &["list", "--short"])).ok().lines().count();
        assert!(there >= finished, "{finished} archives had been made, {there} are there");
        finished = there;
    });
    run(&mut borg(&m, &["create", "::last", "source"])).ok();
    fs::create_dir(m.beside("out")).unwrap();
    let mut extract = borg(&m, &["extract", "::last"]);
    run(extract.current_dir(m.beside("out"))).ok();
    assert_same(&source, &m.beside("out/source"), EVERYTHING);
}

#[test]
fn r62_what_rsync_renamed_into_place_is_whole() {
    if skip_without_ssefs() {
        return;
    }
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 23, TREE);
    rounds(|n, dice| {
        change(&source, dice, n);
        let mut copy = Command::new("rsync");
        copy.args(["-aHAX", "--delete", "source/", "mnt/copy/"]).current_dir(m.beside(""));
        kill_during(&mut m, dice, 400, &mut copy);
        // -c looks at the content: of each file that has its name, size and time it must be the source's. Files still
        // as they were a round ago differ in time or size, and are none of these.
        let by_time = sh(&m.beside(""), "rsync -an --out-format=%n source/ mnt/copy/");
        let by_content = sh(&m.beside(""), "rsync -anc --out-format=%n source/ mnt/copy/");
        let waiting: Vec<&str> = by_time.lines().collect();
        let torn: Vec<&str> = by_content.lines().filter(|f| !waiting.contains(f)).collect();
        assert!(torn.is_empty(), "whole by name, size and time, but not by content: {torn:?}");
        if n % 2 == 1 {
            sh(&m.beside(""), "rsync -aHAX --delete source/ mnt/copy/");
            assert_eq!(sh(&m.beside(""), "rsync -aHAXc --delete --itemize-changes source/ mnt/copy/"), "");
        } else {
            sh(&m.beside(""), "rm -rf mnt/copy");
        }
    });
}

#[test]
fn r62_what_tar_unpacked_is_there_up_to_one_file() {
    if skip_without_ssefs() {
        return;
    }
    let mut m = Mount::new("AES256");
    let source = m.beside("source");
    generate(&source, 24, TREE);
    let order = sh(&m.beside(""), "tar -cf source.tar source && tar -tf source.tar");
    rounds(|n, dice| {
        let target = m.at(format!("out{n}"));
        fs::create_dir(&target).unwrap();
        let mut unpack = Command::new("tar");
        unpack.args(["-xf", "source.tar", "-C"]).arg(&target).current_dir(m.beside(""));
        kill_during(&mut m, dice, 300, &mut unpack);
        let mut end = None;
        for name in order.lines() {
            let (from, to) = (m.beside(name), target.join(name));
            // Names that tar prints with escapes are not found, and not needed.
            if !fs::symlink_metadata(&from).is_ok_and(|m| m.is_file() && m.len() > 0) {
                continue;
            }
            let found = fs::read(&to).ok();
            if let Some(end) = &end {
                assert!(found.is_none(), "{name} is there, but {end}, unpacked before it, is not whole");
            } else if found.as_ref() != Some(&fs::read(&from).unwrap()) {
                if let Some(part) = found {
                    assert!(fs::read(&from).unwrap().starts_with(&part), "{name} holds what was never written to it");
                }
                end = Some(name);
            }
        }
    });
}

#[test]
fn ssefs_killed_the_moment_its_mount_is_live_leaves_no_process() {
    if plain() {
        return;
    }
    let mut m = Mount::builder().rule("AES256").option("nosuid").foreground().mount();
    for _ in 0..30 {
        // `mount` comes back as soon as the mount table has it, in the middle of what ssefs still has to do.
        m.kill9();
        m.mount();
    }
}
