//! Where log lines go: the terminal in the foreground, the system log in the background, or a file. The place can
//! change once, when a mount goes into the background; levels below `info` are shown with SSEFS_LOG=debug.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use super::print::{self, printable};
use crate::ops::OpError;

/// Where lines go.
pub enum Target {
    Stderr,
    File(File),
    Syslog,
}

static LOGGER: Logger = Logger(Mutex::new(Target::Stderr));

struct Logger(Mutex<Target>);

/// Begins to log to standard error: from `info` up, or what `SSEFS_LOG` says.
pub fn start() {
    let level = std::env::var("SSEFS_LOG").ok().and_then(|l| l.parse().ok());
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level.unwrap_or(LevelFilter::Info));
    }
}

/// Logs to `target` from now on.
pub fn switch(target: Target) {
    if matches!(target, Target::Syslog) {
        // SAFETY: the name is static, as openlog(3) asks for, which keeps the pointer.
        unsafe { libc::openlog(c"ssefs".as_ptr(), libc::LOG_PID, libc::LOG_DAEMON) };
    }
    *LOGGER.0.lock() = target;
}

/// Opens a log file for appending, readable by its owner only: it names objects.
pub fn open(path: &Path) -> Result<Target, OpError> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| OpError::io(format_args!("open the log file {}", path.display()), &e))?;
    Ok(Target::File(file))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target().starts_with("ssefs") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = printable(&record.args().to_string());
        let level = record.level().as_str().to_ascii_lowercase();
        match &mut *self.0.lock() {
            Target::Stderr => drop(writeln!(io::stderr(), "ssefs: {level}: {text}")),
            Target::File(file) => {
                let line = format!("{} {level}: {text}\n", now());
                drop(file.write_all(line.as_bytes()));
            }
            Target::Syslog => syslog(record.level(), &text),
        }
    }

    fn flush(&self) {}
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    print::time(since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0)))
}

fn syslog(level: Level, text: &str) {
    let priority = match level {
        Level::Error => libc::LOG_ERR,
        Level::Warn => libc::LOG_WARNING,
        Level::Info => libc::LOG_INFO,
        Level::Debug | Level::Trace => libc::LOG_DEBUG,
    };
    let Ok(text) = CString::new(text) else { return };
    // SAFETY: both strings are NUL-terminated and outlive the call; "%s" takes exactly the one argument.
    unsafe { libc::syslog(libc::LOG_DAEMON | priority, c"%s".as_ptr(), text.as_ptr()) };
}
