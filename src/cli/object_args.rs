//! The part of the command line that is about objects: `ssefs object` and `ssefs coverage`. Nothing in this file does anything.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::args::Output;
use crate::types::BucketName;

#[derive(Debug, Subcommand)]
pub enum ObjectCmd {
    /// Show how an object is encrypted
    Show {
        /// A path on a mount, or BUCKET:PATH
        path: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Say how the next PUT of a file, or of a new file in a directory, would be encrypted, and why
    Effective {
        /// A path on a mount, or BUCKET:PATH
        path: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Seal objects anew: by the rule in force, or by the one given
    #[command(after_help = "It can be stopped at any moment and goes on with --resume; what is done stays done.\n\
        Exit status 13: some objects could not be converted, or it was stopped; they are named.\n\
        Examples: ssefs object convert photos:               the whole bucket, by its rules\n          \
        ssefs object convert --new-keys ~/photos/2024  a directory of a mount, with new data keys")]
    Convert {
        /// Files or directories on a mount, or BUCKET:PATH; BUCKET: is the whole bucket
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Convert to this rule, whatever is in force
        #[arg(long, value_name = "RULE")]
        rule: Option<String>,
        /// Give new data keys also to what is under the rule already, as after a key was stolen
        #[arg(long)]
        new_keys: bool,
        /// Go on with the conversion of this bucket that was stopped
        #[arg(long, conflicts_with_all = ["rule", "new_keys", "status", "abandon"])]
        resume: bool,
        /// Say how far the conversion of this bucket that was stopped is
        #[arg(long, conflicts_with_all = ["rule", "new_keys", "abandon"])]
        status: bool,
        /// Give it up
        #[arg(long, conflicts_with_all = ["rule", "new_keys"])]
        abandon: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Destroy the keys of objects, so that nobody can read them again, and print a receipt
    #[command(after_help = "The names stay and say that the object was erased; there is no way back.\n\
        Exit status 13: it is not complete; go on with --resume.\n\
        Examples: ssefs object erase ~/photos/secret.jpg\n          \
        ssefs object erase -r photos:2019 --json > receipt.json")]
    Erase {
        /// Files on a mount, or BUCKET:PATH
        #[arg(required_unless_present = "bucket")]
        paths: Vec<PathBuf>,
        /// Also all below directories
        #[arg(short = 'r', long)]
        recursive: bool,
        /// Erase this whole bucket, which is not mounted, and delete it
        #[arg(long, value_name = "BUCKET", conflicts_with_all = ["paths", "recursive", "resume"])]
        bucket: Option<BucketName>,
        /// Go on with the erasure in this bucket (BUCKET:) that was cut off
        #[arg(long, conflicts_with = "recursive")]
        resume: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Give the customer key (SSE-C) of a file, or of all below a directory, for yourself and as long as it is mounted
    #[command(after_help = "The key is 32 raw bytes, or 44 characters of base64. It is never stored.\n\
        Examples: ssefs object unlock /mnt/photos/a.jpg --key-file ~/photos.key\n          \
        pass show photos | ssefs object unlock /mnt/photos --key-fd 0")]
    #[command(group(clap::ArgGroup::new("key").required(true)))]
    Unlock {
        /// A file or directory on a mount
        path: PathBuf,
        /// Read the key from this file, which only you may be able to read (mode 0600)
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, group = "key")]
        key_file: Option<PathBuf>,
        /// Read the key from this open file descriptor
        #[arg(long, value_name = "N", group = "key")]
        key_fd: Option<i32>,
    },
    /// Encrypt a file, or new files below a directory, with a customer key (SSE-C), which is read and never an argument
    #[command(
        after_help = "A file with content is converted; one that has another customer key, which must be unlocked, gets its\n\
        data key wrapped anew. For you it is unlocked by that. A lost customer key is a lost object.\n\
        Examples: openssl rand 32 > ~/photos.key && chmod 600 ~/photos.key\n          \
        ssefs object set-key /mnt/photos/private --key-file ~/photos.key"
    )]
    #[command(group(clap::ArgGroup::new("key").required(true)))]
    SetKey {
        /// A file or directory on a mount
        path: PathBuf,
        /// Read the key from this file, which only you may be able to read (mode 0600)
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, group = "key")]
        key_file: Option<PathBuf>,
        /// Read the key from this open file descriptor
        #[arg(long, value_name = "N", group = "key")]
        key_fd: Option<i32>,
    },
    /// Take it back: what was opened by it is written down, and cut off also where it is open
    Lock {
        /// A file or directory on a mount
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status 0 when every object with content is encrypted as the rules want it now, 13 when not.\n\
    Plain objects count as under the rule only where a directory's rule is none."
)]
pub struct CoverageArgs {
    pub bucket: BucketName,
    /// Name the plain objects
    #[arg(long, conflicts_with = "outside")]
    pub plain: bool,
    /// Name the objects that are not as the rules want them now, with the reason
    #[arg(long)]
    pub outside: bool,
    /// Name so many at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    #[command(flatten)]
    pub output: Output,
}
