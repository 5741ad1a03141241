//! The program `ssefs`; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ssefs::cli::main(std::env::args_os())
}
