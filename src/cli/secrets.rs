//! Where a passphrase comes from: a file, a descriptor, a program, or whoever sits at the terminal; never the command
//! line. What was read is in locked memory until it was used.

use std::fs::File;
use std::io::{self, Read};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd};
use std::path::PathBuf;
use std::time::Instant;

use super::args::{KitSecret, NewPassphrase, RootArgs};
use super::terminal;
use crate::crypto::passphrase::{PASSPHRASE_BYTES_MIN, Passphrase, SecretText};
use crate::keys::KeyError;
use crate::keys::root::{Ask, CommandLine, read_secret_file, time_limit, wait_readable};
use crate::ops::OpError;

/// Where one passphrase comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    File(PathBuf),
    Descriptor(i32),
    Command(CommandLine),
    Terminal,
}

impl Input {
    fn new(file: Option<&PathBuf>, fd: Option<i32>, command: Option<&str>) -> Result<Input, OpError> {
        Ok(match (file, fd, command) {
            (None, None, None) => Input::Terminal,
            (Some(file), None, None) => Input::File(file.clone()),
            (None, Some(fd), None) => Input::Descriptor(fd),
            (None, None, Some(command)) => Input::Command(command_line(command)?),
            _ => {
                return Err(OpError::usage(
                    "a passphrase comes from one place: name one of file, descriptor and command",
                ));
            }
        })
    }

    fn read(&self, what: &str, prompt: &str) -> Result<Passphrase, KeyError> {
        let (text, from) = match self {
            Input::File(path) => (read_secret_file(path)?, path.display().to_string()),
            Input::Descriptor(fd) => {
                let from = format!("descriptor {fd}");
                let bad = |e: io::Error| KeyError::BadPassphrase { from: from.clone(), why: e.to_string() };
                (read_descriptor(*fd).map_err(bad)?, from)
            }
            Input::Command(command) => (command.run()?, format!("the program {}", command.program())),
            Input::Terminal => {
                let from = "the terminal".to_owned();
                let bad = |e: io::Error| KeyError::BadPassphrase { from: from.clone(), why: e.to_string() };
                let nobody = || KeyError::NoPassphrase {
                    what: what.to_owned(),
                    why: "there is no terminal to ask at: name a file, a descriptor or a program that gives it".into(),
                };
                (terminal::ask(prompt).map_err(bad)?.ok_or_else(nobody)?, from)
            }
        };
        Passphrase::from_line(text).map_err(|why| KeyError::BadPassphrase { from, why: why.into() })
    }
}

/// A program that gives a secret.
pub fn command_line(text: &str) -> Result<CommandLine, OpError> {
    CommandLine::parse(text).map_err(|why| {
        OpError::usage(format!("the command makes no sense: {why}"))
            .hint("write an absolute path and arguments, for example: /usr/bin/pass show ssefs")
    })
}

/// The first line, or all there is. Another program may hold the other end, so there is a limit in time as well.
fn read_descriptor(fd: i32) -> io::Result<SecretText> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: whoever names a descriptor of this process lends it to us; it is not closed here. One that is not open
    // makes the first call fail.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let end = Instant::now() + time_limit();
    let mut text = SecretText::new();
    loop {
        wait_readable(file.as_fd(), end)?;
        let room = text.room();
        if room.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match (&*file).read(room) {
            Ok(0) => return Ok(text),
            Ok(n) => text.add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if text.expose().ends_with(b"\n") {
            return Ok(text);
        }
    }
}

/// How this invocation comes to the root key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    root_command: Option<CommandLine>,
    passphrase: Input,
}

impl Secrets {
    pub fn new(args: &RootArgs) -> Result<Secrets, OpError> {
        let command = args.passphrase_command.as_deref();
        Ok(Secrets {
            root_command: args.root_key_command.as_deref().map(command_line).transpose()?,
            passphrase: Input::new(args.passphrase_file.as_ref(), args.passphrase_fd, command)?,
        })
    }

    /// The program that gives the root key, asked for in this invocation.
    pub fn root_command(&self) -> Option<&CommandLine> {
        self.root_command.as_ref()
    }
}

impl Ask for Secrets {
    fn passphrase(&self, what: &str) -> Result<Passphrase, KeyError> {
        self.passphrase.read(what, &format!("Passphrase of {what}: "))
    }

    fn again(&self) -> bool {
        self.passphrase == Input::Terminal
    }
}

/// A passphrase for something new: long enough, and at the terminal typed twice.
pub fn new_passphrase(args: &NewPassphrase, what: &str) -> Result<Passphrase, OpError> {
    let command = args.new_passphrase_command.as_deref();
    twice(&Input::new(args.new_passphrase_file.as_ref(), args.new_passphrase_fd, command)?, what)
}

/// The passphrase for a new recovery kit.
pub fn new_kit_passphrase(args: &KitSecret) -> Result<Passphrase, OpError> {
    twice(&kit_input(args)?, "the recovery kit")
}

/// Whether somebody said where the kit's passphrase is.
pub fn kit_secret_is_given(args: &KitSecret) -> bool {
    args.kit_passphrase_file.is_some() || args.kit_passphrase_fd.is_some() || args.kit_passphrase_command.is_some()
}

/// The passphrase or code of a kit that is there.
pub fn kit_secret(args: &KitSecret, number: u32, by_code: bool) -> Result<Passphrase, OpError> {
    let what = format!("recovery kit {number}");
    let word = if by_code { "Code" } else { "Passphrase" };
    Ok(kit_input(args)?.read(&what, &format!("{word} of {what}: "))?)
}

fn kit_input(args: &KitSecret) -> Result<Input, OpError> {
    let command = args.kit_passphrase_command.as_deref();
    Input::new(args.kit_passphrase_file.as_ref(), args.kit_passphrase_fd, command)
}

fn twice(input: &Input, what: &str) -> Result<Passphrase, OpError> {
    let first = input.read(what, &format!("New passphrase for {what}: "))?;
    if first.expose().len() < PASSPHRASE_BYTES_MIN {
        return Err(OpError::usage(format!("the passphrase for {what} is too short"))
            .hint("take at least 8 characters; a few random words are better"));
    }
    if *input == Input::Terminal {
        let second = input.read(what, "Once more: ")?;
        if first.expose() != second.expose() {
            return Err(OpError::usage("the two passphrases differ: nothing was changed"));
        }
    }
    Ok(first)
}
