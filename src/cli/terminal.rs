//! Asking for a secret at the terminal, without showing what is typed. Where there is nobody to ask, nothing is asked.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::crypto::passphrase::SecretText;

/// A signal that came while the echo was off.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
const SIGNALS: [libc::c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP];

extern "C" fn note(signal: libc::c_int) {
    SIGNAL.store(signal, Ordering::SeqCst);
}

/// One line typed at the terminal. None when there is no terminal to ask at: a service, a script, mount(8) at boot.
pub fn ask(prompt: &str) -> io::Result<Option<SecretText>> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let Ok(mut terminal) = File::options().read(true).write(true).open("/dev/tty") else { return Ok(None) };
    terminal.write_all(prompt.as_bytes())?;
    let typed = Silent::new(&terminal)?.read_line();
    terminal.write_all(b"\n")?;
    let signal = SIGNAL.swap(0, Ordering::SeqCst);
    if signal != 0 {
        // The echo is on again and the handlers are as they were: what was meant to happen happens now.
        // SAFETY: no memory is involved.
        unsafe { libc::raise(signal) };
        return Err(io::ErrorKind::Interrupted.into());
    }
    typed.map(Some)
}

/// A terminal that shows nothing of what is typed, until dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: libc::termios,
    handlers: Vec<(libc::c_int, libc::sigaction)>,
}

impl Silent<'_> {
    fn new(terminal: &File) -> io::Result<Silent<'_>> {
        // SAFETY: all zeroes are a termios and a sigaction; the calls below write or read exactly one of them.
        let (mut before, mut action) =
            unsafe { (std::mem::zeroed::<libc::termios>(), std::mem::zeroed::<libc::sigaction>()) };
        // SAFETY: the descriptor is open and before is writable.
        if unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut silent = Silent { terminal, before, handlers: Vec::new() };
        // Without SA_RESTART, so that a read that waits ends.
        action.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
        for signal in SIGNALS {
            // SAFETY: as above.
            let mut old = unsafe { std::mem::zeroed::<libc::sigaction>() };
            // SAFETY: the handler does nothing but store a number; both pointers are to one sigaction.
            if unsafe { libc::sigaction(signal, &raw const action, &raw mut old) } == 0 {
                silent.handlers.push((signal, old));
            }
        }
        let mut mode = before;
        mode.c_lflag &= !libc::ECHO;
        mode.c_lflag |= libc::ICANON;
        // SAFETY: the descriptor is open and mode is a termios. TCSAFLUSH drops what was typed too early.
        if unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSAFLUSH, &raw const mode) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(silent)
    }

    fn read_line(&self) -> io::Result<SecretText> {
        let mut text = SecretText::new();
        loop {
            let room = text.room();
            if room.is_empty() {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            match (&mut &*self.terminal).read(room) {
                Ok(0) => return Ok(text),
                Ok(n) => text.add(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted && SIGNAL.load(Ordering::SeqCst) == 0 => {}
                Err(e) => return Err(e),
            }
            if text.expose().ends_with(b"\n") {
                return Ok(text);
            }
        }
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // SAFETY: what is written is what was read from the same terminal and the same signals.
        unsafe {
            libc::tcsetattr(self.terminal.as_raw_fd(), libc::TCSAFLUSH, &raw const self.before);
            for (signal, old) in &self.handlers {
                libc::sigaction(*signal, old, std::ptr::null_mut());
            }
        }
    }
}
