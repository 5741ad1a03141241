//! SIGTERM, SIGINT and SIGHUP in the middle of writes: commit, unmount, exit 0; all that was acknowledged is there.

use crate::mount::{Mount, is_mounted, skip_without_ssefs};
use crate::tree::Dice;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn a_signal_during_writes_ends_the_mount_cleanly() {
    if skip_without_ssefs() {
        return;
    }
    // A writer that does not stop is cut off after a while; one that does is waited for.
    let signals = [(libc::SIGTERM, "SIGTERM", true), (libc::SIGINT, "SIGINT", false), (libc::SIGHUP, "SIGHUP", false)];
    for (signal, name, stubborn) in signals {
        let mut m = Mount::builder().rule("AES256").foreground().mount();
        let content = |i: usize| Dice::new(i as u64 + 1).bytes(500 + i * 997 % 60_000);
        let (done, signalled) = (AtomicUsize::new(0), AtomicBool::new(false));
        // By a handle on the mount's root: behind the unmounted path a plain directory would take the files.
        let root = File::open(m.path()).unwrap();
        let before = std::thread::scope(|s| {
            let (done, signalled, content) = (&done, &signalled, &content);
            s.spawn(move || {
                let at = format!("/proc/self/fd/{}", root.as_raw_fd());
                let mut more = 50;
                for i in 0.. {
                    let written = File::create(format!("{at}/f{i}")).and_then(|mut f| f.write_all(&content(i)));
                    if written.is_err() {
                        return;
                    }
                    done.store(i + 1, Ordering::Release);
                    if signalled.load(Ordering::Acquire) {
                        more -= 1;
                        match stubborn {
                            // Not as fast as it can: everything written is read in the end.
                            true => std::thread::sleep(Duration::from_millis(5)),
                            false if more == 0 => return,
                            false => {}
                        }
                    }
                }
            });
            while done.load(Ordering::Acquire) < 100 {
                std::thread::yield_now();
            }
            let before = done.load(Ordering::Acquire);
            m.signal(signal);
            signalled.store(true, Ordering::Release);
            assert_eq!(m.exit_code(), Some(0), "{name}: {}", m.log());
            before
        });
        assert!(!is_mounted(&m.path()), "{name}: still mounted");
        m.mount();
        for i in 0..before {
            assert!(
                fs::read(m.at(format!("f{i}"))).unwrap() == content(i),
                "{name}: f{i} was written and closed before the signal"
            );
        }
        // A file begun later is there as far as it was written: a beginning of its content.
        for i in before..done.load(Ordering::Acquire) + 1 {
            if let Ok(got) = fs::read(m.at(format!("f{i}"))) {
                assert!(content(i).starts_with(&got), "{name}: f{i} is torn");
            }
        }
    }
}

#[test]
fn a_background_mount_ends_by_sigterm_as_well() {
    let Some(mut m) = Mount::real("AES256") else { return };
    fs::write(m.at("f"), "written and closed").unwrap();
    let pid = m.pid().unwrap();
    m.signal(libc::SIGTERM);
    let gone = crate::mount::eventually(|| {
        !is_mounted(&m.path()) && fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z"))
    });
    assert!(gone, "ssefs goes on after SIGTERM");
    m.mount();
    assert_eq!(fs::read(m.at("f")).unwrap(), b"written and closed");
}
