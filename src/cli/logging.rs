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

use super::print::printable;
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
                let line = format!("{} {level}: {text}\n", utc(SystemTime::now()));
                drop(file.write_all(line.as_bytes()));
            }
            Target::Syslog => syslog(record.level(), &text),
        }
    }

    fn flush(&self) {}
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

/// A time as `2026-01-31T23:59:59Z` (civil-from-days of the proleptic Gregorian calendar).
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of year 0, so that the leap day ends a year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn log_lines_carry_the_right_date() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
