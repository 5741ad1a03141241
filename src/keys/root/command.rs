//! A program that gives a root key or a passphrase: run directly, never through a shell, for a bounded time, for a
//! bounded output, which goes into locked memory and nowhere else.

use super::super::KeyError;
use crate::crypto::passphrase::SecretText;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take unless `SSEFS_COMMAND_SECONDS` says otherwise: somebody may have to touch a token.
const SECONDS_DEFAULT: u64 = 60;
const SECONDS_MAX: u64 = 3600;
/// What means something to a shell and would mean nothing here.
const FOR_A_SHELL: &str = "|&;<>()$`*?[]{}~#!\n";

/// A program and its arguments, as a person wrote them. Blanks separate; quotes and backslash keep together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    text: String,
    words: Vec<String>,
}

impl CommandLine {
    /// # Errors
    /// Why it is none: quotes left open, the program's path not absolute, or words that only a shell would understand.
    pub fn parse(text: &str) -> Result<CommandLine, String> {
        let words = split(text)?;
        let Some(program) = words.first() else { return Err("it is empty".into()) };
        if !program.starts_with('/') {
            return Err(format!("{program:?} is not an absolute path: a mount at boot has another PATH than you"));
        }
        Ok(CommandLine { text: text.trim().to_owned(), words })
    }

    /// The program's path: what messages name. Arguments are not for a log.
    pub fn program(&self) -> &str {
        &self.words[0]
    }

    /// Runs it and gives its output.
    ///
    /// # Errors
    /// `Command`: it cannot be run, failed, printed too much, or took too long. What it printed is never told.
    pub fn run(&self) -> Result<SecretText, KeyError> {
        let failed = |why: String| KeyError::Command { program: self.program().to_owned(), why };
        let limit = time_limit();
        let end = Instant::now() + limit;
        let mut child = Command::new(self.program())
            .args(&self.words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // A group of its own, so that what it starts ends with it.
            .process_group(0)
            .spawn()
            .map_err(|e| failed(format!("it cannot be run: {e}")))?;
        let read = read_all(&mut child, end);
        let text = match read {
            Ok(text) => text,
            Err(e) => {
                kill(&mut child);
                return Err(failed(match e.kind() {
                    io::ErrorKind::TimedOut => format!("it took longer than {} s and was killed", limit.as_secs()),
                    io::ErrorKind::FileTooLarge => "it printed more than a key or a passphrase".into(),
                    _ => format!("its output cannot be read: {e}"),
                }));
            }
        };
        let mut pause = Duration::from_millis(1);
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < end => std::thread::sleep(pause),
                Ok(None) => {
                    kill(&mut child);
                    return Err(failed(format!("it took longer than {} s and was killed", limit.as_secs())));
                }
                Err(e) => return Err(failed(format!("waiting for it failed: {e}"))),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        if !status.success() {
            return Err(failed(format!("it failed: {status}")));
        }
        Ok(text)
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How long a program or a descriptor may take to give a secret.
pub fn time_limit() -> Duration {
    let asked = std::env::var("SSEFS_COMMAND_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(asked.unwrap_or(SECONDS_DEFAULT).clamp(1, SECONDS_MAX))
}

fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // SAFETY: no memory is involved. The child is not waited for yet, so its number, and its group's, is still its own.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn read_all(child: &mut Child, end: Instant) -> io::Result<SecretText> {
    let mut out = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut text = SecretText::new();
    loop {
        // SAFETY: `out` keeps the descriptor open.
        wait_readable(unsafe { BorrowedFd::borrow_raw(out.as_raw_fd()) }, end)?;
        let room = text.room();
        if room.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match out.read(room) {
            Ok(0) => return Ok(text),
            Ok(n) => text.add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits until `fd` has something or has ended; `TimedOut` at `end`.
pub fn wait_readable(fd: BorrowedFd<'_>, end: Instant) -> io::Result<()> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // At most an hour in milliseconds, and at least one of them.
        let ms = left.as_millis().clamp(1, 3_600_000) as libc::c_int;
        // SAFETY: poll is one writable pollfd.
        match unsafe { libc::poll(&raw mut poll, 1, ms) } {
            0 => {}
            n if n > 0 => return Ok(()),
            _ => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
}

/// Words by blanks; '...' as it is, "..." with backslash before a character that is meant as it is, backslash outside.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.trim().chars();
    let open = || "a quote is left open".to_owned();
    let meaningless = |c| format!("no shell runs it, so {c:?} has no meaning: put it in '...', or into a script");
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(open)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(open)? {
                        '"' => break,
                        '\\' => word.push(chars.next().ok_or_else(open)?),
                        c @ ('$' | '`') => return Err(meaningless(c)),
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("it ends with a backslash")?),
            c if FOR_A_SHELL.contains(c) => return Err(meaningless(c)),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.iter().any(|w| w.contains(['\0', '\n'])) {
        return Err("it holds a control character".into());
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_a_shell_would_make_of_them_and_what_only_a_shell_understands_is_refused() {
        let of = |t: &str| CommandLine::parse(t).map(|c| c.words);
        assert_eq!(of("/bin/pass show ssefs"), Ok(vec!["/bin/pass".into(), "show".into(), "ssefs".into()]));
        assert_eq!(
            of(r#" /bin/x 'a b' "c \" \$d" e\ f '' "#),
            Ok(["/bin/x", "a b", "c \" $d", "e f", ""].map(String::from).to_vec())
        );
        for bad in [
            "",
            "  ",
            "pass show",
            "./pass",
            "/bin/a | /bin/b",
            "/bin/a; /bin/b",
            "/bin/a $HOME",
            "/bin/a \"$HOME\"",
            "/bin/a `b`",
            "/bin/a > f",
            "/bin/a *",
            "/bin/a 'b",
            "/bin/a \"b",
            "/bin/a \\",
            "/bin/a\n/bin/b",
            "/bin/a 'b\nc'",
        ] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn its_output_comes_whole_and_its_failures_are_told_without_it() {
        let of = |t: &str| CommandLine::parse(t).unwrap().run();
        assert_eq!(of("/bin/echo a secret").unwrap().expose(), b"a secret\n");
        for (command, word) in [
            ("/bin/sh -c 'echo hush; exit 3'", "exit status: 3"),
            ("/bin/sh -c 'echo hush; kill -9 $$'", "signal: 9"),
            ("/bin/sh -c 'while echo hush; do :; done'", "more than a key"),
            ("/no/such/program hush", "cannot be run"),
        ] {
            let error = of(command).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("hush"), "{command}: {error}");
        }
    }
}
