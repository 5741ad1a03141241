//! Row 61 with several processes at once: each does random operations in a part of its own and in one directory that
//! all share, on a mount and on a plain directory, and everything must come out the same; and what they fight over is
//! neither lost nor doubled. A failure says which seed: `SSEFS_SEED=n` runs it alone. SSEFS_PROCESS_ROUNDS
//! (default 3) is how often they start anew on what is there.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/random_ops.rs"]
mod random_ops;
#[path = "common/run.rs"]
mod run;
#[path = "common/sys.rs"]
mod sys;
#[path = "common/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use mount::{Mount, plain};
use random_ops::{Names, Op, Side, choose, story};
use run::{Ran, run};
use tree::{Compare, Dice, EVERYTHING, differences, walk};

const PROCESSES: usize = 4;
const STEPS: usize = 500;
const RECORDS: usize = 300;
const FIGHTS: usize = 600;

/// What one process is to do, and on which directories.
#[derive(Clone)]
struct Task {
    role: &'static str,
    seed: u64,
    process: usize,
    round: u64,
    dirs: Vec<PathBuf>,
}

impl Task {
    /// Runs `child_process` below as a process of its own.
    fn start(&self) -> Ran {
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["--exact", "child_process", "--ignored", "--nocapture", "--test-threads=1"]);
        c.env("SSEFS_TASK", format!("{}:{}:{}:{}", self.role, self.seed, self.process, self.round));
        run(c.env("SSEFS_TASK_DIRS", std::env::join_paths(&self.dirs).unwrap()))
    }

    /// A process each for `PROCESSES` numbers, at once; what each said after "says: ".
    #[track_caller]
    fn all(role: &'static str, seed: u64, round: u64, dirs: &[PathBuf]) -> Vec<String> {
        let ran: Vec<Ran> = thread::scope(|s| {
            let tasks = (0..PROCESSES).map(|process| Task { role, seed, process, round, dirs: dirs.to_vec() });
            let running: Vec<_> = tasks.map(|t| s.spawn(move || t.start())).collect();
            running.into_iter().map(|r| r.join().expect("a task that ends")).collect()
        });
        let said = |r: Ran| r.ok().lines().filter_map(|l| Some(l.split_once("says: ")?.1.to_string())).collect();
        ran.into_iter().map(said).collect()
    }
}

/// The other processes of the tests here; does nothing when it is not asked to.
#[test]
#[ignore = "the child process of other tests"]
fn child_process() {
    let (Ok(task), Some(dirs)) = (std::env::var("SSEFS_TASK"), std::env::var_os("SSEFS_TASK_DIRS")) else { return };
    let dirs: Vec<PathBuf> = std::env::split_paths(&dirs).collect();
    let (role, numbers) = task.split_once(':').unwrap();
    let n: Vec<u64> = numbers.split(':').map(|n| n.parse().unwrap()).collect();
    let (seed, process, round) = (n[0], n[1], n[2]);
    match role {
        "differ" => differ(seed, process, round, &dirs),
        "fight" => fight(Dice::new(seed * 100 + process), &dirs[0]),
        "append" => append(process, &dirs[0]),
        "count" => count(&dirs[0]),
        other => panic!("no such role: {other}"),
    }
}

/// Both sides get the same operations; what comes back must be the same. At the end everything of this process has
/// times that are told, not taken from the clock.
fn differ(seed: u64, process: u64, round: u64, dirs: &[PathBuf]) {
    let tag = format!("{process}-");
    let names = Names::of_process(&tag, "../shared");
    let mut dice = Dice::new(seed << 16 | round << 8 | process);
    let own = |dir: &PathBuf| Side::new(dir.join(format!("part{process}")));
    let (mut here, mut there) = (own(&dirs[0]), own(&dirs[1]));
    let mut done: Vec<(Op, String)> = vec![];
    for step in 0..STEPS {
        let op = choose(&mut dice, &names);
        let (want, got) = (here.apply(&op), there.apply(&op));
        assert!(
            want == got,
            "seed {seed}, round {round}, process {process}, step {step}: {op:?}\n plain: {want}\n mount: {got}\n\
             before it:\n{}",
            story(&done)
        );
        done.push((op, want));
    }
    for dir in dirs {
        let mut dice = Dice::new(seed);
        let own = |p: &Path| fs::read_dir(p).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        let mut tops: Vec<PathBuf> = own(&dir.join("shared"));
        tops.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with(&tag));
        tops.push(dir.join(format!("part{process}")));
        tops.sort();
        for top in tops {
            for (path, m) in walk(&top).into_iter().rev() {
                // join("") would add a slash, which follows a link.
                let path = if path.as_os_str().is_empty() { top.clone() } else { top.join(path) };
                let at = (dice.below(2_000_000_000) as i64, dice.below(1_000_000_000) as i64);
                sys::utimens(&path, at, at).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                assert_eq!(fs::symlink_metadata(&path).unwrap().mode(), m.mode());
            }
        }
    }
    // Files that are still open are closed after their times were set: that must not change them.
}

/// Ends ssefs, one way or another, and mounts again.
fn restart(m: &mut Mount, round: u64) {
    if round.is_multiple_of(2) {
        m.umount()
    } else {
        m.terminate()
    }
    m.mount();
}

fn run_seed(seed: u64) {
    let rules = ["AES256", "", "KMS", "KMS::SM4", "SSE-C"];
    let chunks = ["4K", "16K", "128K"];
    let pick = |of: &[&'static str]| of[seed as usize % of.len()];
    let mut builder = Mount::builder().chunk_size(pick(&chunks));
    builder = match pick(&rules) {
        "" => builder,
        "SSE-C" => builder.customer(),
        rule => builder.rule(rule),
    };
    let mut m = builder.mount();
    let dirs = [m.beside("plain"), m.path()];
    fs::create_dir(&dirs[0]).unwrap();
    for dir in &dirs {
        sys::chmod(dir, 0o755).unwrap();
        fs::create_dir(dir.join("shared")).unwrap();
        (0..PROCESSES).for_each(|p| fs::create_dir(dir.join(format!("part{p}"))).unwrap());
        // Listings of the shared directory take more than one call, with changes of others in between.
        for i in 0..400 {
            fs::write(dir.join(format!("shared/still-{i}-{}", "x".repeat(150))), b"").unwrap();
        }
    }
    let by = Compare { holes: false, ..EVERYTHING };
    let rounds: u64 = std::env::var("SSEFS_PROCESS_ROUNDS").map_or(3, |n| n.parse().expect("a number"));
    for round in 0..rounds {
        Task::all("differ", seed, round, &dirs);
        // Who changed these last is chance.
        let common = |dir: &PathBuf| [dir.clone(), dir.join("shared")];
        let still = |dir: &PathBuf| fs::read_dir(dir.join("shared")).unwrap().map(|e| e.unwrap().path());
        for dir in &dirs {
            let still = still(dir).filter(|p| p.to_string_lossy().contains("/still-"));
            for p in still.chain(common(dir)) {
                sys::utimens(p, (7, 7), (7, 123_456_789)).unwrap();
            }
        }
        for after in ["the round", "a restart"] {
            let found = differences(&dirs[0], &dirs[1], by);
            assert!(found.is_empty(), "seed {seed}, round {round}, after {after}:\n{}", found.join("\n"));
            if after == "the round" {
                restart(&mut m, round);
            }
        }
    }
}

fn seeds(of: std::ops::Range<u64>) {
    match std::env::var("SSEFS_SEED").map(|s| s.parse().expect("SSEFS_SEED is a number")) {
        Ok(seed) if of.start == 0 => run_seed(seed),
        Ok(_) => {}
        Err(_) => of.for_each(run_seed),
    }
}

#[test]
fn r61_processes_that_work_at_once_each_find_what_they_find_on_a_plain_directory() {
    seeds(0..3);
}

#[test]
fn r61_processes_that_work_at_once_each_find_what_they_find_with_other_seeds() {
    seeds(3..6);
}

/// What is there now, more or less: others rename meanwhile.
fn glance(arena: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut dirs, mut others) = (vec![arena.to_path_buf()], vec![]);
    let mut i = 0;
    while i < dirs.len() {
        let entries = fs::read_dir(&dirs[i]).inspect_err(refused).into_iter().flatten();
        for e in entries.map(Result::unwrap) {
            if e.file_type().unwrap().is_dir() { dirs.push(e.path()) } else { others.push(e.path()) }
        }
        i += 1;
    }
    (dirs, others)
}

/// Renames that never replace anything, of things that all the others rename too.
fn fight(mut dice: Dice, arena: &Path) {
    let mut won = 0;
    let (mut dirs, mut others) = glance(arena);
    for i in 0..FIGHTS {
        if i % 4 == 0 {
            (dirs, others) = glance(arena);
        }
        // Where all was on the move, no file may have been seen.
        let kind = if dice.one_in(2) || others.is_empty() { &dirs } else { &others };
        let from = dice.pick(kind).clone();
        let to = match dice.below(3) {
            0 => dice.pick(kind).clone(),
            _ => dice.pick(&dirs).join(format!("n{}", dice.below(9))),
        };
        if from == arena || to == arena {
            continue;
        }
        if std::ptr::eq(kind, &others) && dice.one_in(3) {
            match fs::read(&from) {
                Ok(content) => assert!(content.len() == 5000 && content.iter().all(|b| *b == content[0]), "{from:?}"),
                Err(e) => refused(&e),
            }
        }
        let flags = if dice.one_in(2) { libc::RENAME_NOREPLACE } else { libc::RENAME_EXCHANGE };
        match sys::rename2(&from, &to, flags) {
            Ok(()) => won += 1,
            Err(e) => refused(&e),
        }
    }
    println!("says: {won}");
}

#[track_caller]
fn refused(e: &std::io::Error) {
    let usual = [libc::ENOENT, libc::EEXIST, libc::EINVAL, libc::ENOTDIR, libc::EISDIR, libc::ENOTEMPTY];
    assert!(e.raw_os_error().is_some_and(|e| usual.contains(&e)), "{e}");
}

/// Each file by what is in it, each directory by its inode; panics where link counts are not what is there.
fn census(arena: &Path) -> (Vec<u8>, usize) {
    let (mut files, mut dirs) = (vec![], 0);
    let all = walk(arena);
    let mut below: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for (path, m) in &all {
        if m.is_dir() {
            dirs += 1;
            if let Some(parent) = path.parent() {
                *below.entry(parent.to_path_buf()).or_default() += 1;
            }
        } else {
            let content = fs::read(arena.join(path)).unwrap();
            assert!(content.len() == 5000 && content.iter().all(|b| *b == content[0]), "{path:?}");
            assert_eq!(m.nlink(), 1, "{path:?}");
            files.push(content[0]);
        }
    }
    if !plain() {
        for (path, m) in all.iter().filter(|(_, m)| m.is_dir()) {
            assert_eq!(m.nlink(), 2 + below.get(path).copied().unwrap_or(0), "{path:?}");
        }
    }
    files.sort_unstable();
    (files, dirs)
}

#[test]
fn r61_what_processes_rename_against_each_other_is_neither_lost_nor_doubled() {
    let mut m = Mount::new("AES256");
    let arena = m.at("arena");
    fs::create_dir(&arena).unwrap();
    for i in 0..3 {
        fs::create_dir(arena.join(format!("d{i}"))).unwrap();
        for j in 0..3 {
            fs::create_dir(arena.join(format!("d{i}/d{j}"))).unwrap();
            fs::write(arena.join(format!("d{i}/d{j}/f{j}")), [1 + 16 * i + j; 5000]).unwrap();
        }
    }
    let before = census(&arena);
    for round in 0..3 {
        let won = Task::all("fight", round + 1, round, std::slice::from_ref(&arena));
        let won: usize = won.iter().map(|n| n.parse::<usize>().unwrap()).sum();
        assert!(won > 100, "nobody fought: {won} renames");
        assert_eq!(census(&arena), before, "round {round}");
        restart(&mut m, round);
        assert_eq!(census(&arena), before, "round {round}, after a restart");
    }
}

/// Records of many lengths, each in one write; by handles for which the kernel keeps pages and by others.
fn append(process: u64, file: &Path) {
    let mut f = File::options().append(true).read(process.is_multiple_of(2)).open(file).unwrap();
    let mut dice = Dice::new(process);
    for i in 0..RECORDS {
        let filler = "x".repeat(dice.below(9000) as usize);
        f.write_all(format!("{process} {i} {} {filler}\n", filler.len()).as_bytes()).unwrap();
    }
}

#[test]
fn r61_records_that_processes_append_to_one_file_are_all_there_and_whole() {
    let mut m = Mount::new("AES256");
    let file = m.at("log");
    fs::write(&file, b"").unwrap();
    Task::all("append", 1, 0, std::slice::from_ref(&file));
    for _ in 0..2 {
        let text = fs::read_to_string(&file).unwrap();
        let mut next = [0; PROCESSES];
        for line in text.lines() {
            let part: Vec<&str> = line.splitn(4, ' ').collect();
            let n = |i: usize| part[i].parse::<usize>().unwrap_or_else(|_| panic!("torn: {:?}", &part[..i]));
            assert_eq!(n(2), part[3].len(), "record {} of process {} is not whole", part[1], part[0]);
            assert_eq!(n(1), next[n(0)], "process {}: in order, none lost, none twice", part[0]);
            next[n(0)] += 1;
        }
        assert_eq!(next, [RECORDS; PROCESSES]);
        m.remount();
    }
}

/// Adds one to the number in a file, again and again, under a lock.
fn count(file: &Path) {
    for _ in 0..RECORDS {
        let f = File::options().read(true).write(true).open(file).unwrap();
        sys::flock(&f).unwrap();
        let mut number = [0; 8];
        f.read_exact_at(&mut number, 0).unwrap();
        f.write_all_at(&(u64::from_le_bytes(number) + 1).to_le_bytes(), 0).unwrap();
    }
}

#[test]
fn r61_processes_that_count_in_one_file_under_a_lock_miss_nothing() {
    let mut m = Mount::new("AES256");
    let file = m.at("number");
    fs::write(&file, 0u64.to_le_bytes()).unwrap();
    Task::all("count", 1, 0, std::slice::from_ref(&file));
    for _ in 0..2 {
        let number = u64::from_le_bytes(fs::read(&file).unwrap().try_into().unwrap());
        assert_eq!(number, (RECORDS * PROCESSES) as u64);
        m.remount();
    }
}
