//! The command line: parses, dispatches, prints, and turns errors into exit codes. The only place that prints.

pub mod args;
mod bucket;
mod check;
mod coverage;
mod customer;
mod daemon;
mod encryption;
mod erase;
mod key;
mod key_delete;
mod key_service;
mod key_show;
mod kit;
mod logging;
mod material;
mod mount;
mod mountpoint;
mod object;
mod object_args;
mod options;
mod place;
mod print;
mod remount;
mod root;
mod secrets;
mod speed;
mod terminal;
mod umount;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::keys::provider::note_given_descriptors;
use crate::ops::OpError;
use args::{Cli, Cmd};
use options::Helper;
use place::Place;

/// Runs the program with its arguments, the program's name first; called as `mount.ssefs` or `mount.fuse.ssefs` it is
/// the helper of mount(8).
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = argv.into_iter().collect();
    note_given_descriptors();
    logging::start();
    let name = argv.first().and_then(|a| Path::new(a).file_name()?.to_str());
    let result = match name {
        Some("mount.ssefs" | "mount.fuse.ssefs") => helper(argv),
        _ => match Cli::try_parse_from(argv) {
            Ok(cli) => run(cli),
            Err(e) => {
                // Help and version are asked for and go to standard output; clap decides, and prints both.
                let _ = e.print();
                return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
            }
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            print::error(&e);
            ExitCode::from(e.code.exit_status())
        }
    }
}

fn helper(argv: Vec<OsString>) -> Result<(), OpError> {
    match options::parse_helper(argv)? {
        Helper::Mount { place, mount, sloppy } => mount::run(&place, mount, sloppy),
        Helper::Remount(r) => remount::run(&r),
        Helper::Fake => Ok(()),
    }
}

fn run(cli: Cli) -> Result<(), OpError> {
    let at = || Place::resolve(&cli.place);
    match cli.command {
        Cmd::Mount(args) => mount::run(&cli.place, args, false),
        Cmd::Umount(args) => umount::run(&args),
        Cmd::Bucket(command) => bucket::run(&at()?, &command),
        Cmd::Encryption(command) => encryption::run(&at()?, &command),
        Cmd::Key(command) => key::run(&at()?, &command),
        Cmd::Object(command) => object::run(&at()?, &command),
        Cmd::Coverage(args) => coverage::run(&at()?, &args),
        Cmd::Speed(args) => speed::run(&at()?, &args),
        Cmd::Check(args) => check::run(&at()?, &args),
        Cmd::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ssefs", &mut script);
            print::answer(&String::from_utf8_lossy(&script))
        }
    }
}
