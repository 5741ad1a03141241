//! How the event threads share the work. A request costs two wake-ups, and waking a sleeping processor takes longer than
//! most requests do. So when one program alone asks for one small thing after another, one event thread, the **follower**,
//! serves it on the very processor it runs on, and the others stay away: a wake-up is then only a switch. This module
//! decides who follows whom and when that ends. It must never keep a request waiting for longer than two [`TICK`]s.
//!
//! The follower runs under SCHED_IDLE, because the kernel wakes a program on the processor it slept on only if nothing
//! but idle work runs there, and on another one otherwise. Such a thread can starve. So one of the threads that stay away
//! looks at the follower every tick, and ends the arrangement when it has not got on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// When a follower is looked at for the first time; each look comes twice as late as the one before, up to [`TICK`], since
/// a look makes the kernel move the program once, which costs some slow requests.
const FIRST_TICK: Duration = Duration::from_millis(2);
const TICK: Duration = Duration::from_millis(10);
/// Requests a millisecond below which following does not pay: the program has other things to do, or the disk is slow, or
/// somebody else needs the processor and the follower starves.
const PACE_MIN: u64 = 2;
/// Small requests by one thread in a row before it is followed.
const STREAK: u32 = 24;
/// Requests between two looks at where the program runs.
const LOOK_EVERY: u64 = 16;
/// A transfer from this size on gains more from two processors than from one.
const STREAM_BYTES: usize = 256 << 10;
/// How long nobody is followed after a follower was too slow; doubled each time that it starved before [`LASTING`].
const HOLD_OFF: Duration = Duration::from_millis(20);
const HOLD_OFF_MAX: Duration = Duration::from_millis(1280);
const LASTING: Duration = Duration::from_millis(200);

/// What one request moves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    Small,
    /// So many bytes of content.
    Bytes(usize),
}

struct Followed {
    /// The thread that is served, and its stat file in /proc.
    pid: u32,
    stat: File,
    cpu: usize,
    since: Instant,
    /// Where event threads are allowed to run otherwise.
    allowed: libc::cpu_set_t,
}

impl Followed {
    /// The follower goes where the program is, and who looks at it goes elsewhere: were it awake there when the program
    /// is woken, the kernel would find the processor too busy for the program, and move it.
    fn take_places(&self, follower: i32, watcher: i32) -> bool {
        // SAFETY: the index is checked first.
        if self.cpu >= libc::CPU_SETSIZE as usize || !unsafe { libc::CPU_ISSET(self.cpu, &self.allowed) } {
            // The program runs where event threads may not.
            return false;
        }
        if watcher != 0 {
            set_allowed(watcher, &without(&self.allowed, self.cpu));
        }
        set_allowed(follower, &only(self.cpu))
    }
}

#[derive(Default)]
struct Shared {
    followed: Option<Followed>,
    /// Which of the threads that stay away looks at the follower, 0 without one.
    watcher: i32,
    hold_off: Duration,
    not_before: Option<Instant>,
}

/// See the module.
pub struct Crew {
    able: bool,
    /// Thread id of the follower, 0 without one.
    follower: AtomicI32,
    /// Requests it has begun.
    begun: AtomicU64,
    last_pid: AtomicU32,
    streak: AtomicU32,
    shared: Mutex<Shared>,
    ended: Condvar,
}

fn own_tid() -> i32 {
    thread_local!(static TID: i32 = {
        // SAFETY: gettid(2) takes nothing and cannot fail.
        unsafe { libc::gettid() }
    });
    TID.with(|t| *t)
}

fn set_policy(tid: i32, policy: i32) -> bool {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: param lives through the call.
    unsafe { libc::sched_setscheduler(tid, policy, &raw const param) == 0 }
}

fn allowed_cpus(tid: i32) -> Option<libc::cpu_set_t> {
    // SAFETY: cpu_set_t is plain bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: set is writable and of the size that is told.
    (unsafe { libc::sched_getaffinity(tid, size_of_val(&set), &raw mut set) } == 0).then_some(set)
}

fn set_allowed(tid: i32, set: &libc::cpu_set_t) -> bool {
    // SAFETY: set lives through the call and is of the size that is told.
    unsafe { libc::sched_setaffinity(tid, size_of_val(set), set) == 0 }
}

fn only(cpu: usize) -> libc::cpu_set_t {
    // SAFETY: cpu_set_t is plain bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu < libc::CPU_SETSIZE as usize {
        // SAFETY: cpu is within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    set
}

fn without(set: &libc::cpu_set_t, cpu: usize) -> libc::cpu_set_t {
    let mut set = *set;
    if cpu < libc::CPU_SETSIZE as usize {
        // SAFETY: cpu is within the set.
        unsafe { libc::CPU_CLR(cpu, &mut set) };
    }
    set
}

/// The processor on which a thread last ran: field 39 of /proc/PID/stat, proc_pid_stat(5).
fn cpu_of(stat: &File) -> Option<usize> {
    let mut b = [0u8; 1024];
    let n = stat.read_at(&mut b, 0).ok()?;
    let text = &b[..n];
    // The name in parentheses may hold anything; field 3 follows it.
    let after = text.iter().rposition(|c| *c == b')')? + 1;
    std::str::from_utf8(text.get(after..)?).ok()?.split_ascii_whitespace().nth(36)?.parse().ok()
}

/// Whether a thread of ours could run and does not sleep: field 3 of its stat file.
fn is_runnable(tid: i32) -> bool {
    let Ok(text) = std::fs::read(format!("/proc/self/task/{tid}/stat")) else { return false };
    let state = text.iter().rposition(|c| *c == b')').and_then(|i| text.get(i + 2));
    state == Some(&b'R')
}

impl Crew {
    /// For `threads` event threads. Needs more than one of them, and the right to come back from SCHED_IDLE.
    pub fn new(threads: usize) -> Crew {
        let there_and_back = || set_policy(0, libc::SCHED_IDLE) && set_policy(0, libc::SCHED_OTHER);
        // On a thread of its own, which may stay at the lowest priority and ends.
        let able = threads > 1 && std::thread::spawn(there_and_back).join().unwrap_or(false);
        Crew {
            able,
            follower: AtomicI32::new(0),
            begun: AtomicU64::new(0),
            last_pid: AtomicU32::new(0),
            streak: AtomicU32::new(0),
            shared: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// Run the handler of a request of thread `pid` (0: the kernel's own), on an event thread. Whoever is to stay away is
    /// kept here afterwards.
    pub fn serve(&self, pid: u32, size: Size, handler: impl FnOnce()) {
        if !self.able {
            return handler();
        }
        let me = own_tid();
        match self.follower.load(Ordering::Acquire) {
            0 => self.count(me, pid, size),
            f if f == me => {
                let n = self.begun.fetch_add(1, Ordering::AcqRel);
                if pid != 0 {
                    self.go_on(me, pid, size, n);
                }
            }
            _ => self.notice_other(pid, size),
        }
        handler();
        let follower = self.follower.load(Ordering::Acquire);
        if follower != 0 && follower != me {
            self.stay_away();
        }
    }

    /// The calling thread is about to start another, which would keep the priority and the one processor of a follower.
    pub fn leave(&self) {
        if self.able && self.follower.load(Ordering::Acquire) == own_tid() {
            self.end(&mut self.shared.lock(), false);
        }
    }

    /// Nobody is followed: is this the next of many small requests by the same thread?
    fn count(&self, me: i32, pid: u32, size: Size) {
        let bytes = match size {
            Size::Small => 0,
            Size::Bytes(n) => n,
        };
        if pid == 0 {
            return;
        }
        if self.last_pid.swap(pid, Ordering::Relaxed) != pid || bytes >= STREAM_BYTES {
            self.streak.store(0, Ordering::Relaxed);
            return;
        }
        if self.streak.fetch_add(1, Ordering::Relaxed) + 1 >= STREAK {
            self.streak.store(0, Ordering::Relaxed);
            self.follow(me, pid);
        }
    }

    fn follow(&self, me: i32, pid: u32) {
        let Some(mut s) = self.shared.try_lock() else { return };
        if s.followed.is_some() || s.not_before.is_some_and(|t| Instant::now() < t) {
            return;
        }
        let Ok(stat) = File::open(format!("/proc/{pid}/stat")) else { return };
        let (Some(cpu), Some(allowed)) = (cpu_of(&stat), allowed_cpus(me)) else { return };
        if !set_policy(0, libc::SCHED_IDLE) {
            return;
        }
        let f = Followed { pid, stat, cpu, since: Instant::now(), allowed };
        if !f.take_places(me, s.watcher) {
            set_policy(0, libc::SCHED_OTHER);
            return;
        }
        s.followed = Some(f);
        self.follower.store(me, Ordering::Release);
    }

    /// The follower is asked again.
    fn go_on(&self, me: i32, pid: u32, size: Size, n: u64) {
        let streams = matches!(size, Size::Bytes(b) if b >= STREAM_BYTES);
        if pid == self.last_pid.load(Ordering::Relaxed) && !streams && !n.is_multiple_of(LOOK_EVERY) {
            return;
        }
        let mut s = self.shared.lock();
        let watcher = s.watcher;
        let Some(f) = &mut s.followed else { return };
        if pid != f.pid || streams {
            return self.end(&mut s, false);
        }
        match cpu_of(&f.stat) {
            Some(cpu) if cpu == f.cpu => {}
            Some(cpu) => {
                f.cpu = cpu;
                if !f.take_places(me, watcher) {
                    self.end(&mut s, false);
                }
            }
            None => self.end(&mut s, false),
        }
    }

    /// Another thread was given a request while there is a follower: the first few times that is as it must be.
    fn notice_other(&self, pid: u32, size: Size) {
        let streams = matches!(size, Size::Bytes(b) if b >= STREAM_BYTES);
        if pid != 0 && (streams || pid != self.last_pid.load(Ordering::Relaxed)) {
            self.end(&mut self.shared.lock(), false);
        }
    }

    /// The follower is an event thread like the others again.
    fn end(&self, s: &mut Shared, slow: bool) {
        let Some(f) = s.followed.take() else { return };
        let tid = self.follower.swap(0, Ordering::AcqRel);
        if slow {
            // Asleep, it waits for the disk or for a commit, which passes; else somebody has taken its processor.
            let passes = f.since.elapsed() >= LASTING || !is_runnable(tid);
            s.hold_off = if passes { HOLD_OFF } else { (s.hold_off * 2).clamp(HOLD_OFF, HOLD_OFF_MAX) };
            s.not_before = Some(Instant::now() + s.hold_off);
        }
        set_policy(tid, libc::SCHED_OTHER);
        set_allowed(tid, &f.allowed);
        self.ended.notify_all();
    }

    /// Wait until nobody is followed any more. The first to come looks at the follower meanwhile.
    fn stay_away(&self) {
        let mut s = self.shared.lock();
        while s.followed.is_some() && s.watcher != 0 {
            self.ended.wait(&mut s);
        }
        // Also when the one who looked has left, and somebody is followed again before this thread woke: without anybody
        // who looks, it would stay for ever once the event threads that read have ended.
        let me = own_tid();
        let Some(f) = &s.followed else { return };
        let all = f.allowed;
        set_allowed(me, &without(&all, f.cpu));
        s.watcher = me;
        let (mut seen, mut tick) = (self.begun.load(Ordering::Acquire), FIRST_TICK);
        while s.followed.is_some() {
            if !self.ended.wait_for(&mut s, tick).timed_out() {
                continue;
            }
            let begun = self.begun.load(Ordering::Acquire);
            if begun - seen < PACE_MIN * tick.as_millis() as u64 {
                self.end(&mut s, true);
            }
            (seen, tick) = (begun, (tick * 2).min(TICK));
        }
        s.watcher = 0;
        set_allowed(me, &all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;

    #[test]
    fn the_processor_is_read_past_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        let fields: Vec<String> = (3..=52).map(|i| i.to_string()).collect();
        std::fs::write(&path, format!("4 (a) 7 (b) {}\n", fields.join(" "))).unwrap();
        assert_eq!(cpu_of(&File::open(&path).unwrap()), Some(39));
        std::fs::write(&path, "4 (a").unwrap();
        assert_eq!(cpu_of(&File::open(&path).unwrap()), None);
    }

    /// Let a thread of the crew follow the calling one. It keeps its role after it has ended, as one that starves would.
    fn follow_me(crew: &Arc<Crew>) {
        let (crew, pid) = (Arc::clone(crew), own_tid() as u32);
        let ask = move || (0..STREAK + 2).for_each(|_| crew.serve(pid, Size::Small, || {}));
        std::thread::spawn(ask).join().unwrap();
    }

    #[test]
    fn who_stays_away_comes_back_when_the_follower_does_not_get_on() {
        let crew = Arc::new(Crew::new(2));
        if !crew.able {
            return;
        }
        follow_me(&crew);
        assert_ne!(crew.follower.load(Ordering::Acquire), 0);
        // Returns, because the watcher ends what does not move.
        crew.serve(own_tid() as u32, Size::Small, || {});
        assert_eq!(crew.follower.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_follower_that_does_not_come_to_run_is_not_followed_again_at_once() {
        let crew = Arc::new(Crew::new(2));
        if !crew.able {
            return;
        }
        let (pid, done) = (own_tid() as u32, Arc::new(AtomicBool::new(false)));
        let (theirs, ended, (tx, rx)) = (Arc::clone(&crew), Arc::clone(&done), channel());
        let follower = std::thread::spawn(move || {
            (0..STREAK + 2).for_each(|_| theirs.serve(pid, Size::Small, || {}));
            tx.send(()).unwrap();
            // Runnable, and at no request.
            while !ended.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        rx.recv().unwrap();
        crew.serve(pid, Size::Small, || {});
        done.store(true, Ordering::Relaxed);
        follower.join().unwrap();
        assert!(crew.shared.lock().not_before.is_some(), "it was taken for idle, and would be followed again at once");
    }

    #[test]
    fn who_stays_away_takes_over_looking_when_the_one_who_looked_has_left() {
        let crew = Arc::new(Crew::new(3));
        if !crew.able {
            return;
        }
        follow_me(&crew);
        // As if another one looked.
        crew.shared.lock().watcher = own_tid();
        let away = Arc::clone(&crew);
        let pid = own_tid() as u32;
        let (tx, rx) = channel();
        std::thread::spawn(move || {
            away.serve(pid, Size::Small, || {});
            tx.send(()).unwrap();
        });
        assert!(rx.recv_timeout(Duration::from_millis(200)).is_err(), "it stays away");
        // It leaves, and somebody is followed again at once.
        let mut s = crew.shared.lock();
        s.watcher = 0;
        crew.ended.notify_all();
        drop(s);
        rx.recv_timeout(Duration::from_secs(60)).expect("looks at the follower itself, and comes back");
    }

    #[test]
    fn a_thread_that_a_follower_starts_is_like_any_other() {
        let crew = Arc::new(Crew::new(2));
        if !crew.able {
            return;
        }
        let pid = own_tid() as u32;
        // SAFETY: 0 is the calling thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let there = std::thread::spawn(move || {
            let all = allowed_cpus(0).unwrap();
            (0..STREAK + 2).for_each(|_| crew.serve(pid, Size::Small, || {}));
            let followed = crew.follower.load(Ordering::Acquire) == own_tid();
            crew.leave();
            let child = std::thread::spawn(move || (policy(), allowed_cpus(0).unwrap())).join().unwrap();
            // SAFETY: both are of the size that CPU_EQUAL takes.
            (followed, child.0, unsafe { libc::CPU_EQUAL(&child.1, &all) }, crew.follower.load(Ordering::Acquire))
        });
        assert_eq!(there.join().unwrap(), (true, libc::SCHED_OTHER, true, 0));
    }

    #[test]
    fn another_program_or_a_stream_ends_it_at_once() {
        let crew = Arc::new(Crew::new(2));
        if !crew.able {
            return;
        }
        for (pid, size) in [(1, Size::Small), (own_tid() as u32, Size::Bytes(STREAM_BYTES))] {
            follow_me(&crew);
            let (tx, rx) = channel();
            crew.serve(pid, size, || tx.send(crew.follower.load(Ordering::Acquire)).unwrap());
            assert_eq!(rx.recv().unwrap(), 0);
        }
    }
}
