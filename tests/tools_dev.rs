//! What developers do all day, on a mount: git, a compiler, SQLite. SQLite is also the strictest customer of
//! fsync: what it has acknowledged must be there when ssefs is killed in the middle.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/run.rs"]
mod run;
#[path = "common/sys.rs"]
mod sys;
#[path = "common/tree.rs"]
mod tree;

use mount::{Mount, plain, run, sh};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use tree::{Contents, generate};

/// git in `dir`, away from the settings of whoever runs the tests.
#[track_caller]
fn git(m: &Mount, dir: &Path, script: &str) -> String {
    let mut c = Command::new("sh");
    c.arg("-euc").arg(script).current_dir(dir).env("HOME", m.beside("")).env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        c.env(format!("GIT_{who}_NAME"), "T").env(format!("GIT_{who}_EMAIL"), "t@example.org");
    }
    run(&mut c).ok()
}

#[test]
fn git_clones_commits_and_finds_its_repository_sound() {
    let mut m = Mount::new("AES256");
    let origin = m.beside("origin");
    generate(&origin, 11, Contents { files: 1200, xattrs: false, sparse: false, nodes: false, bytes_in_names: false });
    git(
        &m,
        &origin,
        "git init -q -b main . && for d in dir*; do git add -- \"$d\"; git commit -qm \"$d\"; done; git add -A; git commit -qm rest",
    );
    git(&m, &m.path(), "git clone -q --no-local ../origin clone");
    let clone = m.at("clone");
    git(&m, &clone, "git fsck --full --strict");
    assert_eq!(git(&m, &clone, "git status --porcelain"), "");
    git(
        &m,
        &clone,
        "git checkout -qb work; for i in 1 2 3 4 5; do seq $i 4000 > seq.$i; git add seq.$i; git commit -qm \"seq $i\"; done; git rm -qr 'dir 0000'; git commit -qm gone",
    );
    m.remount();
    assert_eq!(git(&m, &clone, "git status --porcelain"), "");
    git(&m, &clone, "git checkout -q main && git merge -q work && git gc -q --prune=now && git fsck --full --strict");
    git(&m, &clone, "git push -q origin work && git worktree add -q ../tree work && diff seq.5 ../tree/seq.5");
    assert_eq!(git(&m, &clone, "git rev-parse main"), git(&m, &origin, "git rev-parse work"));
    git(&m, &clone, "git clone -q . ../second && git -C ../second fsck --full");
}

#[track_caller]
fn sqlite(m: &Mount, sql: &str) -> String {
    run(Command::new("sqlite3").args(["-batch", "-bail", "-cmd", ".timeout 60000"]).arg(m.at("data.db")).arg(sql))
        .ok()
        .trim()
        .to_string()
}

/// Writes rows one transaction each until `acknowledged` of them are, kills ssefs while the next are under
/// way, and gives the number of the last row that SQLite said was committed.
fn kill_during_transactions(m: &mut Mount, first: u64, acknowledged: u64) -> u64 {
    let mut db = Command::new("sqlite3")
        .args(["-batch", "-bail"])
        .arg(m.at("data.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = db.stdin.take().unwrap();
    let more = if plain() { 0 } else { 3000 };
    // EXTRA: with FULL, SQLite does not sync the removal of a rollback journal, which is what commits in DELETE mode.
    let writer = std::thread::spawn(move || {
        let _ = writeln!(input, "PRAGMA synchronous=EXTRA; PRAGMA wal_autocheckpoint=50;");
        for n in first..first + acknowledged + more {
            // Fails when sqlite3 has ended, which is what is waited for.
            if writeln!(input, "INSERT INTO t VALUES ({n}, randomblob({})); SELECT 'ack {n}';", 100 + n % 3000).is_err()
            {
                return;
            }
        }
    });
    let mut last = first.wrapping_sub(1);
    let mut lines = BufReader::new(db.stdout.take().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if let Some(n) = line.strip_prefix("ack ") {
            last = n.parse().unwrap();
            if last == first + acknowledged - 1 && !plain() {
                m.kill9();
            }
        }
    }
    let _ = db.kill();
    let _ = db.wait();
    writer.join().unwrap();
    last
}

#[test]
fn sqlite_keeps_every_acknowledged_transaction_when_ssefs_is_killed() {
    for journal in ["WAL", "DELETE"] {
        let mut m = Mount::new("AES256");
        assert_eq!(
            sqlite(&m, &format!("PRAGMA journal_mode={journal}; CREATE TABLE t(n INTEGER PRIMARY KEY, b BLOB);")),
            journal.to_lowercase()
        );
        let mut next = 1;
        for acknowledged in [3, 40, 200] {
            let last = kill_during_transactions(&mut m, next, acknowledged);
            assert!(last >= next + acknowledged - 1, "{journal}: ended at {last}");
            if !plain() {
                m.mount();
            }
            assert_eq!(sqlite(&m, "PRAGMA integrity_check;"), "ok", "{journal}");
            let rows = sqlite(&m, "SELECT count(*), max(n), sum(length(b) <> 100 + n % 3000) FROM t;");
            let rows: Vec<u64> = rows.split('|').map(|n| n.parse().unwrap()).collect();
            assert!(rows[1] >= last, "{journal}: row {last} was acknowledged, but {} is the last", rows[1]);
            assert_eq!((rows[0], rows[2]), (rows[1], 0), "{journal}: rows are missing or changed");
            next = rows[1] + 1;
        }
    }
}

#[test]
fn two_sqlite_processes_write_one_database() {
    let mut m = Mount::new("AES256");
    sqlite(&m, "PRAGMA journal_mode=WAL; CREATE TABLE t(n INTEGER PRIMARY KEY AUTOINCREMENT, who INT);");
    std::thread::scope(|s| {
        for who in 0..2 {
            let (m, sql) = (&m, format!("INSERT INTO t(who) VALUES({who});\n").repeat(150));
            s.spawn(move || sqlite(m, &sql));
        }
    });
    assert_eq!(sqlite(&m, "SELECT count(*), sum(who), max(n) FROM t;"), "300|150|300");
    m.remount();
    assert_eq!(
        sqlite(&m, "PRAGMA integrity_check; SELECT count(*) FROM t; VACUUM; PRAGMA integrity_check;"),
        "ok\n300\nok"
    );
}

const MODULES: usize = 40;

/// A library of many files, a program and a test of it, with dependencies made by the compiler.
fn c_project(root: &Path) {
    fs::create_dir_all(root.join("src")).unwrap();
    let mut all =
        String::from("#include <stdio.h>\n#include <string.h>\n#include \"all.h\"\nint main(void) {\n  int bad = 0;\n");
    let mut header = String::new();
    for i in 0..MODULES {
        fs::write(
            root.join(format!("src/m{i}.c")),
            format!(
                "#include \"all.h\"\n#include <stdlib.h>\n#include <string.h>\nstatic int cmp(const void *a, const void *b) {{ return *(const int *)a - *(const int *)b; }}\n\
                 int m{i}(int n) {{\n  int *v = malloc(n * sizeof *v), s = 0;\n  for (int i = 0; i < n; i++) v[i] = (i * 7919 + {i}) % 1009;\n\
                 \x20 qsort(v, n, sizeof *v, cmp);\n  for (int i = 0; i < n; i++) s += v[i] * (i % 3);\n  free(v);\n  return s + {i};\n}}\n"
            ),
        )
        .unwrap();
        header += &format!("int m{i}(int n);\n");
        all += &format!("  if (m{i}(100) - m{i}(100) != 0 || m{i}(0) != {i}) {{ printf(\"m{i}\\n\"); bad = 1; }}\n");
    }
    all += "  puts(bad ? \"FAILED\" : \"passed\");\n  return bad;\n}\n";
    fs::write(root.join("src/all.h"), header).unwrap();
    fs::write(root.join("src/check.c"), all).unwrap();
    let objects: Vec<_> = (0..MODULES).map(|i| format!("build/m{i}.o")).collect();
    let makefile = format!(
        "CFLAGS = -O1 -g -fPIC -Wall -Werror -MMD\nOBJ = {}\n\
         all: build/libm.so build/check\n\
         build/%.o: src/%.c | build\n\t$(CC) $(CFLAGS) -c -o $@ $<\n\
         build:\n\tmkdir -p build\n\
         build/libm.a: $(OBJ)\n\trm -f $@\n\tar rcs $@ $^\n\
         build/libm.so.1: $(OBJ)\n\t$(CC) -shared -Wl,-soname,libm.so.1 -o $@ $^\n\
         build/libm.so: build/libm.so.1\n\tln -sf libm.so.1 $@\n\
         build/check: build/check.o build/libm.so build/libm.a\n\t$(CC) -o $@ $< build/libm.so.1\n\
         test: all\n\tLD_LIBRARY_PATH=build ./build/check\n\
         clean:\n\trm -rf build\n\
         -include build/*.d\n",
        objects.join(" ")
    );
    fs::write(root.join("Makefile"), makefile).unwrap();
}

#[test]
fn a_c_project_unpacks_compiles_and_passes_its_tests() {
    let mut m = Mount::new("AES256");
    c_project(&m.beside("project"));
    sh(&m.beside(""), "tar -czf project.tar.gz project && tar -C mnt -xzf project.tar.gz");
    let dir = m.at("project");
    sh(&dir, "make -j2 all");
    assert!(sh(&dir, "make test").contains("passed"));
    assert!(sh(&dir, "make all").contains("Nothing to be done"), "make takes new files for old ones");
    m.remount();
    assert!(sh(&dir, "make all").contains("Nothing to be done"), "times have changed by a remount");
    // One module edited: exactly that one is compiled, and what depends on it linked.
    sh(&dir, "echo '/* edited */' >> src/m7.c");
    let again = sh(&dir, "make all");
    assert_eq!(again.matches(" -c -o ").count(), 1, "{again}");
    assert!(again.contains("build/m7.o") && again.contains("-shared"), "{again}");
    assert!(sh(&dir, "make test").contains("passed"));
    sh(&dir, "touch src/all.h");
    assert_eq!(sh(&dir, "make -j2 all").matches(" -c -o ").count(), MODULES + 1);
    sh(&dir, "make clean && test ! -e build");
}
