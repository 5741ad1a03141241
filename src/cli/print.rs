//! Everything ssefs prints goes through here: answers to standard output, notes, errors and progress to standard
//! error. Text from names and keys is shown without control characters, so that none of it can drive a terminal.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde_json::Value;

use crate::ops::{ErrorCode, OpError, Progress};

/// Writes an answer. A reader that went away (`| head`) is no error.
pub fn answer(text: &str) -> Result<(), OpError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(OpError::io("write to standard output", &e)),
        _ => Ok(()),
    }
}

/// What is shown once and must not get lost: an error also when nobody reads it.
pub fn only_once(text: &str) -> Result<(), OpError> {
    can_be_kept()?;
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| OpError::io("write to standard output", &e))
}

/// Err when standard output leads nowhere. What was closed when the program began is /dev/null by now.
pub fn can_be_kept() -> Result<(), OpError> {
    // SAFETY: stat is plain data that the call fills.
    let (out, null) = unsafe {
        let (mut out, mut null): (libc::stat, libc::stat) = (std::mem::zeroed(), std::mem::zeroed());
        if libc::fstat(libc::STDOUT_FILENO, &raw mut out) != 0 {
            return Err(OpError::io("write to standard output", &io::Error::last_os_error()));
        }
        libc::stat(c"/dev/null".as_ptr(), &raw mut null);
        (out, null)
    };
    if out.st_mode & libc::S_IFMT == libc::S_IFCHR && out.st_rdev == null.st_rdev {
        return Err(OpError::new(
            ErrorCode::Usage,
            "standard output is closed or /dev/null, and what is shown is shown once",
        )
        .hint("run it at a terminal, or send its output to a file that only you can read"));
    }
    Ok(())
}

/// One line for the person at the terminal, who may not be there.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "ssefs: {}", printable(text));
}

/// An error with its hint, in the form scripts know.
pub fn error(e: &OpError) {
    let mut text = format!("ssefs: error: {}\n", printable_lines(&e.message));
    if let Some(hint) = &e.hint {
        text.push_str(&format!("hint: {}\n", printable_lines(hint)));
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The text with control characters escaped.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// A value as one JSON line.
pub fn json(value: &Value) -> Result<(), OpError> {
    answer(&format!("{value}\n"))
}

/// Columns under headings, as wide as their content; numbers to the right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> Result<(), OpError> {
    answer(&lay_out(headings, rows, terminal_columns()))
}

/// A value's fields, one a line: `name  value`; what is empty is left out.
pub fn fields(value: &Value) -> Result<(), OpError> {
    answer(&field_lines(value))
}

fn terminal_columns() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which size is.
    let rc = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (rc == 0 && size.ws_col >= 40).then_some(size.ws_col.into())
}

/// The table as text. On a terminal of `columns` the widest column gives way until it fits.
fn lay_out(headings: &[&str], rows: &[Vec<String>], columns: Option<usize>) -> String {
    const GAP: usize = 2;
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|c| printable(c)).collect()).collect();
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if let Some(columns) = columns {
        let room = columns.saturating_sub(GAP * widths.len().saturating_sub(1));
        while widths.iter().sum::<usize>() > room {
            match widths.iter_mut().max() {
                Some(widest) if *widest > 8 => *widest -= 1,
                _ => break,
            }
        }
    }
    let right: Vec<bool> = (0..headings.len())
        .map(|i| {
            rows.iter().any(|r| !r[i].is_empty())
                && rows.iter().all(|r| r[i].is_empty() || r[i].starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect();
    let mut text = String::new();
    let mut line = |cells: &[&str]| {
        let mut out = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let cell = shorten(cell, widths[i]);
            let pad = " ".repeat(widths[i] - cell.chars().count());
            let (before, after) = if right[i] { (pad.as_str(), "") } else { ("", pad.as_str()) };
            out.push_str(&format!("{before}{cell}{after}{}", " ".repeat(GAP)));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(headings);
    for row in &rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

fn shorten(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn field_lines(value: &Value) -> String {
    let Some(map) = value.as_object() else { return format!("{}\n", cell(value)) };
    let shown: Vec<(String, String)> = map
        .iter()
        .filter(|(_, v)| !matches!(v, Value::Null) && !v.as_array().is_some_and(Vec::is_empty))
        .map(|(name, v)| {
            let is_size = name == "bytes" || name.ends_with("_bytes") || name == "size";
            let text = match v.as_u64() {
                Some(n) if is_size => size(n),
                _ => cell(v),
            };
            (name.replace('_', " "), text)
        })
        .collect();
    let width = shown.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    shown.iter().map(|(name, text)| format!("{}\n", format!("{name:width$}  {text}").trim_end())).collect()
}

/// A JSON value as a person reads it.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            map.iter().map(|(name, v)| format!("{} {}", name.replace('_', " "), cell(v))).collect::<Vec<_>>().join(", ")
        }
        Value::Number(n) => n.to_string(),
    }
}

/// Bytes for people: `1.5 GiB`; below a KiB to the byte.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

pub use crate::types::utc as time;

/// A progress bar on standard error when that is a terminal, nothing otherwise.
pub struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    pub fn new() -> Bar {
        Bar(Mutex::new(None))
    }
}

impl Progress for Bar {
    fn stage(&self, what: &str, total: Option<u64>) {
        let mut bar = self.0.lock();
        if let Some(old) = bar.take() {
            old.finish_and_clear();
        }
        if !io::stderr().is_terminal() {
            return;
        }
        let new = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
        let template = match total {
            Some(_) => "{msg} {wide_bar} {human_pos}/{human_len} {eta}",
            None => "{msg} {human_pos} {spinner}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            new.set_style(style);
        }
        new.set_message(printable(what));
        *bar = Some(new);
    }

    fn advance(&self, units: u64) {
        if let Some(bar) = &*self.0.lock() {
            bar.inc(units);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.0.lock().take() {
            bar.finish_and_clear();
        }
    }
}

/// An answer that has not the shape this command expects: the mount runs another version.
pub fn unexpected(what: &str) -> OpError {
    OpError::new(ErrorCode::General, format!("the answer has no {what}"))
        .hint("the mount may run another version of ssefs: unmount and mount again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_line_up_and_shrink_to_the_terminal() {
        let rows = [vec!["a".to_owned(), "10".into()], vec!["a-long-bucket-name".into(), "9".into()]];
        assert_eq!(
            lay_out(&["BUCKET", "OBJECTS"], &rows, None),
            "BUCKET              OBJECTS\na                        10\na-long-bucket-name        9\n"
        );
        let small = lay_out(&["BUCKET", "OBJECTS"], &rows, Some(20));
        assert!(small.lines().all(|l| l.chars().count() <= 20), "{small}");
        assert!(small.contains("a-long-buc…"), "{small}");
        assert_eq!(lay_out(&["A", "B"], &[], None), "A  B\n");
    }

    #[test]
    fn sizes_and_fields_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
        let value = json!({"name": "b", "log_bytes": 2048, "rule": null, "grants": [], "ok": true});
        assert_eq!(field_lines(&value), "log bytes  2.0 KiB\nname       b\nok         yes\n");
    }

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\nc"), "a\\u{1b}[31mb\\nc");
    }
}
