//! The command line, defined once: help, `ssefs.1`, completions and parsing all come from here. Words follow
//! SEMANTICS.md; nothing in this file does anything.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

pub use super::object_args::{CoverageArgs, ObjectCmd};
use crate::keys::{ROTATE_DAYS_MAX, WAIT_DAYS_DEFAULT};
use crate::rule::Dialect;
use crate::types::{BucketName, CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX};

/// Mount a bucket as a directory; everything written into it is sealed by the bucket's encryption rule.
#[derive(Debug, Parser)]
#[command(
    name = "ssefs",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Begin with:  ssefs mount photos ~/photos --create --rule AES256\n\
                  Manuals:     ssefs(1) commands, ssefs(5) attributes and rules, mount.ssefs(8) fstab"
)]
pub struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Cmd,
}

/// Where things lie.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// The directory that holds the buckets [default: $SSEFS_STORE, else /var/lib/ssefs for root,
    /// $XDG_DATA_HOME/ssefs or ~/.local/share/ssefs for others]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub store: Option<PathBuf>,
    /// The directory that holds root key and keyring [default: $SSEFS_CONFIG, else $XDG_CONFIG_HOME/ssefs,
    /// else /etc/ssefs for root, ~/.config/ssefs for others]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub root: RootArgs,
}

/// How the root key is found, where the configuration directory alone does not say all. A passphrase is never an
/// argument: others could see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct RootArgs {
    /// Read the passphrase of the root key from a file, one line that only you can read [default: ask at the terminal]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub passphrase_file: Option<PathBuf>,
    /// Read it from this file descriptor
    #[arg(long, global = true, value_name = "N")]
    pub passphrase_fd: Option<i32>,
    /// Read it from what a program prints; no shell runs it
    #[arg(long, global = true, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub passphrase_command: Option<String>,
    /// Read the root key itself from what a program prints, whatever the configuration directory says
    #[arg(long, global = true, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub root_key_command: Option<String>,
}

/// How the answer is printed.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Output {
    /// Print one JSON value instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Cmd {
    /// Mount a bucket as a directory
    Mount(MountArgs),
    /// Unmount, and wait until everything is on disk
    Umount(UmountArgs),
    /// Make, list, show and delete buckets
    #[command(subcommand)]
    Bucket(BucketCmd),
    /// The default encryption rule of a bucket, or of a directory in it
    #[command(subcommand)]
    Encryption(EncryptionCmd),
    /// Master keys
    #[command(subcommand)]
    Key(KeyCmd),
    /// Single objects
    #[command(subcommand)]
    Object(ObjectCmd),
    /// What is encrypted by which method, key and version, and whether everything is as the rules want it
    Coverage(CoverageArgs),
    /// Measure how fast this machine seals, opens, wraps and unwraps
    Speed(SpeedArgs),
    /// Verify a bucket: its structure, and with --read-data every byte
    Check(CheckArgs),
    /// Print a completion script, for example: ssefs completions bash > /etc/bash_completion.d/ssefs
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct SpeedArgs {
    /// Measure wrapping and unwrapping under this master key too, by id or alias: a few calls, which its service may bill
    #[arg(long, value_name = "KEY")]
    pub key: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "The command returns when the mount is live; -f stays in the foreground.\n\
    Example: ssefs mount backups /mnt/backups --create --rule KMS -o ro,log=/var/log/ssefs.log")]
pub struct MountArgs {
    pub bucket: BucketName,
    /// An empty directory
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// Make the bucket if it does not exist
    #[arg(long)]
    pub create: bool,
    #[command(flatten)]
    pub new: NewBucket,
    /// Stay in the foreground and log to the terminal
    #[arg(short = 'f', long)]
    pub foreground: bool,
    /// Mount options, separated by commas: ro, allow_other, list_sse, direct_rdwr, nonempty, log=FILE,
    /// commit_interval=SECONDS, threads=N, customer_key_file=FILE, key_check=SECONDS, key_grace=SECONDS, service_check=SECONDS, and those that mount(8) knows (see mount.ssefs(8))
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Log to this file instead of the system log
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub log: Option<PathBuf>,
}

/// What a bucket gets when it is made.
#[derive(Debug, Clone, Default, Args)]
pub struct NewBucket {
    /// Its encryption rule: AES256, KMS, KMS:KEY, KMS:KEY:SM4 or KMS::SM4 [default: none]
    #[arg(long, value_name = "RULE")]
    pub rule: Option<String>,
    /// Whose habits it follows: native, cos, oss, jd or aws [default: native]
    #[arg(long, value_name = "DIALECT", value_parser = dialect)]
    pub dialect: Option<Dialect>,
    /// Largest piece of a file that is sealed at once: 4K to 256K, a power of two [default: 16K]
    #[arg(long, value_name = "SIZE", value_parser = chunk_size)]
    pub chunk_size: Option<u32>,
    /// Refuse plain objects: what no rule or request encrypts cannot be written
    #[arg(long)]
    pub require_encryption: bool,
}

impl NewBucket {
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_size.unwrap_or(CHUNK_BYTES_DEFAULT)
    }
}

#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where the bucket is mounted
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
    /// Detach at once although files are open; wait until they are closed and all is on disk
    #[arg(short = 'l', long)]
    pub lazy: bool,
}

#[derive(Debug, Subcommand)]
pub enum BucketCmd {
    /// Make a bucket; you become its owner
    Create {
        bucket: BucketName,
        #[command(flatten)]
        new: NewBucket,
    },
    /// List the buckets of the store
    List(Output),
    /// Show a bucket: rule, owner, sizes, keys
    Show {
        bucket: BucketName,
        #[command(flatten)]
        output: Output,
    },
    /// Give back all room that can be given back, now; a mounted bucket does most of it by itself when it is idle
    Compact { bucket: BucketName },
    /// Delete a bucket that holds no objects
    Delete {
        bucket: BucketName,
        /// Delete it with all its objects; there is no way back
        #[arg(long)]
        force: bool,
    },
    /// Refuse plain objects from now on; not while the bucket holds some
    RequireEncryption {
        bucket: BucketName,
        /// Allow them again
        #[arg(long)]
        off: bool,
    },
    /// Let a user change the encryption rule, or take that back
    Grant {
        bucket: BucketName,
        /// The user's name or number
        user: String,
        /// Take the grant back
        #[arg(long)]
        revoke: bool,
    },
}

/// Which rule: that of a bucket, or of a directory in it.
#[derive(Debug, Clone, Args)]
pub struct RuleOf {
    pub bucket: BucketName,
    /// The rule of this directory of the bucket and all below it
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum EncryptionCmd {
    /// Set the rule: what is written from now on is encrypted by it
    #[command(after_help = "Objects that exist keep their encryption.\n\
        Examples: ssefs encryption put photos AES256\n          \
        ssefs encryption put photos --dir raw/2024 KMS:my-key\n          \
        ssefs encryption put photos --xml rule.xml")]
    Put {
        #[command(flatten)]
        of: RuleOf,
        /// The rule in its short form: AES256, KMS, KMS:KEY, KMS:KEY:SM4, KMS::SM4; for a directory also none
        #[arg(required_unless_present_any = ["xml", "json"])]
        rule: Option<String>,
        /// Read the rule as XML from a file, - for standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["rule", "json"])]
        xml: Option<PathBuf>,
        /// Read the rule as the JSON of `aws s3api put-bucket-encryption` from a file, - for standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "rule")]
        json: Option<PathBuf>,
    },
    /// Print the rule, in its short form unless asked otherwise; exit status 3 if there is none
    Get {
        #[command(flatten)]
        of: RuleOf,
        /// As XML in the bucket's dialect
        #[arg(long, conflicts_with = "json")]
        xml: bool,
        /// As the JSON of `aws s3api get-bucket-encryption`
        #[arg(long)]
        json: bool,
    },
    /// Delete the rule; succeeds also if there is none
    Delete {
        #[command(flatten)]
        of: RuleOf,
    },
}

/// What a key's owner says of it.
#[derive(Debug, Clone, Default, Args)]
pub struct AboutKey {
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Rotate by itself when the newest version is so many days old; 0 for never [default: 365]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(ROTATE_DAYS_MAX)))]
    pub rotate_days: Option<u32>,
}

/// The key that seals a recovery file.
#[derive(Debug, Clone, Default, Args)]
pub struct SealKey {
    /// Read the key that seals the recovery file from this file, - for standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "seal_key_fd")]
    pub seal_key_file: Option<PathBuf>,
    /// Read it from this file descriptor
    #[arg(long, value_name = "N")]
    pub seal_key_fd: Option<i32>,
}

#[derive(Debug, Subcommand)]
pub enum KeyCmd {
    /// List the master keys
    List(Output),
    /// Show one master key
    Show {
        /// Id or alias; bucket:NAME for the managed key of a bucket
        key: String,
        #[command(flatten)]
        output: Output,
    },
    /// Make a customer master key for rules such as KMS:KEY
    #[command(after_help = "Keys of other services:\n  \
        ssefs key create --alias hsm --provider 'pkcs11:token=T;object=K?module-path=/usr/lib/M.so&pin-source=file:/P'\n  \
        ssefs key create --alias aws --provider 'aws-kms:alias/photos?region=eu-central-1'\n\
        A PKCS#11 key that is not on the token is made there, and never leaves it. See ssefs(5), KEY SERVICES.")]
    Create {
        /// A second name by which rules may name it
        #[arg(long, value_name = "NAME")]
        alias: Option<String>,
        /// Use a key of another service: pkcs11:... (RFC 7512), or aws-kms:KEY with KEY an id, alias/NAME or ARN
        #[arg(long, value_name = "URI")]
        provider: Option<String>,
        #[command(flatten)]
        about: AboutKey,
        #[command(flatten)]
        output: Output,
    },
    /// Change a key's alias, description or period of rotation
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
        .args(["alias", "no_alias", "description", "rotate_days"]))]
    Set {
        /// Id or alias; bucket:NAME for the managed key of a bucket
        key: String,
        /// Another alias; rules that name the key keep naming it
        #[arg(long, value_name = "NAME", conflicts_with = "no_alias")]
        alias: Option<String>,
        /// Take the alias away
        #[arg(long)]
        no_alias: bool,
        #[command(flatten)]
        about: AboutKey,
        #[command(flatten)]
        output: Output,
    },
    /// Let a disabled key be used again
    Enable {
        /// Id or alias
        key: String,
    },
    /// Keep a key from being used until it is enabled again: what is under it can neither be read nor written
    Disable {
        /// Id or alias
        key: String,
    },
    /// Destroy a key when a waiting period is over; refused while anything depends on it
    #[command(after_help = "All buckets that may hang on the key are asked; those that are not attached count too.\n\
        Until the end of the period the deletion can be cancelled: ssefs key cancel-deletion KEY")]
    Delete {
        /// Id or alias
        key: String,
        /// Days to wait: 7 to 30
        #[arg(long, value_name = "N", default_value_t = WAIT_DAYS_DEFAULT)]
        days: u32,
        /// Seconds to wait, however few: for tests, and for those who know that nobody will need the key
        #[arg(long, value_name = "N", hide = true, conflicts_with = "days")]
        unsafe_seconds: Option<u32>,
        #[command(flatten)]
        output: Output,
    },
    /// End the waiting period of a deleted key; it is disabled then
    CancelDeletion {
        /// Id or alias
        key: String,
    },
    /// Bring key material of your own, as a new key, as a new version of an imported one, or where it was deleted from
    #[command(after_help = "The material is 32 raw bytes, 64 hexadecimal digits or 44 characters of base64.\n\
        Examples: ssefs key import --alias mine --material-file key.bin\n          \
        ssefs key import mine --material-fd 3 3<new-key.hex\n          \
        ssefs key import --recovery-file mine.key --seal-key-file seal.bin")]
    Import {
        /// Id or alias of an imported key; without it a new key is made
        #[arg(conflicts_with_all = ["alias", "recovery_file"])]
        key: Option<String>,
        /// The alias of the new key
        #[arg(long, value_name = "NAME", conflicts_with = "recovery_file")]
        alias: Option<String>,
        /// The description of the new key
        #[arg(long, value_name = "TEXT", conflicts_with_all = ["key", "recovery_file"])]
        description: Option<String>,
        /// Read the material from this file, - for standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["material_fd", "recovery_file"],
            required_unless_present_any = ["material_fd", "recovery_file"])]
        material_file: Option<PathBuf>,
        /// Read the material from this file descriptor
        #[arg(long, value_name = "N", conflicts_with = "recovery_file")]
        material_fd: Option<i32>,
        /// Bring a key back from its recovery file, under the id it had
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        recovery_file: Option<PathBuf>,
        #[command(flatten)]
        seal: SealKey,
        #[command(flatten)]
        output: Output,
    },
    /// Delete the material of an imported key: nothing under it opens until the same material is imported again
    DeleteMaterial {
        /// Id or alias
        key: String,
    },
    /// Write the recovery file of a key, sealed under a key of yours (32 bytes, as for import)
    Export {
        /// Id or alias
        key: String,
        /// A file that is not there yet
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        to: PathBuf,
        #[command(flatten)]
        seal: SealKey,
    },
    /// Let a user name a key in rules and requests, or take that back
    Grant {
        /// Id or alias
        key: String,
        /// The user's name or number
        user: String,
        /// Take the grant back
        #[arg(long)]
        revoke: bool,
    },
    /// Show the latest time the keyring has seen; periods are counted from it, not from a clock that is behind
    Clock {
        /// Take the clock's word against it: for after a clock that was ahead
        #[arg(long)]
        trust: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Make a new version of a master key; nothing is rewritten, old objects stay readable
    Rotate {
        /// Id or alias; bucket:NAME for the managed key of a bucket
        key: String,
        #[command(flatten)]
        output: Output,
    },
    /// The root key, which wraps all others: where it is kept
    #[command(subcommand)]
    Root(RootCmd),
    /// Recovery kits: a sealed file each that opens everything, but for customer keys and keys of other services
    #[command(subcommand)]
    Kit(KitCmd),
    /// Move the keys that wrap a bucket's data keys to the newest version of their master key
    Rewrap {
        bucket: BucketName,
        /// Make new ones as well, and wrap every data key under them; goes on where it was stopped
        #[arg(long)]
        renew: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// A passphrase that is new, or not that of the root key.
#[derive(Debug, Clone, Default, Args)]
pub struct NewPassphrase {
    /// Read the new passphrase from a file, one line that only you can read [default: ask twice at the terminal]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub new_passphrase_file: Option<PathBuf>,
    /// Read it from this file descriptor
    #[arg(long, value_name = "N", conflicts_with = "new_passphrase_file")]
    pub new_passphrase_fd: Option<i32>,
    /// Read it from what a program prints; no shell runs it
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["new_passphrase_file", "new_passphrase_fd"])]
    pub new_passphrase_command: Option<String>,
    /// Memory that Argon2id takes for one try at it: 1M to 4G [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = kdf_memory)]
    pub kdf_memory: Option<u32>,
}

/// Where the root key is to be kept.
#[derive(Debug, Clone, Args)]
pub struct RootTo {
    /// file or file:PATH, passphrase, command:COMMAND, credential:NAME
    #[arg(long, value_name = "WHERE")]
    pub to: String,
    /// With credential: the file of the key that the credential will hold [default: read it in this process's credentials]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,
    #[command(flatten)]
    pub new: NewPassphrase,
}

#[derive(Debug, Subcommand)]
pub enum RootCmd {
    /// Show where the root key is kept, and its id
    Show {
        /// Load it from there and open the keyring with it
        #[arg(long)]
        test: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Make the first root key somewhere else than in a plain file, before there is a keyring
    #[command(after_help = "Example: ssefs key root create --to passphrase")]
    Create {
        #[command(flatten)]
        to: RootTo,
        #[command(flatten)]
        output: Output,
    },
    /// Make a new root key, or with --keep move the present one, and wrap the keyring under it; no bucket is touched
    #[command(after_help = "Live mounts are told and go on. What opened the keyring before opens it no more.\n\
        Examples: ssefs key root change --to passphrase\n          \
        ssefs key root change --to file:/media/stick/root.key --keep\n          \
        ssefs key root change --to 'command:/usr/bin/pass show ssefs'\n          \
        ssefs key root change --to credential:ssefs-root --key-file new.key")]
    Change {
        #[command(flatten)]
        to: RootTo,
        /// Keep the key itself: only where it is kept changes
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// The passphrase or code of a recovery kit.
#[derive(Debug, Clone, Default, Args)]
pub struct KitSecret {
    /// Read the kit's passphrase or code from a file, one line that only you can read [default: ask at the terminal]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kit_passphrase_file: Option<PathBuf>,
    /// Read it from this file descriptor
    #[arg(long, value_name = "N", conflicts_with = "kit_passphrase_file")]
    pub kit_passphrase_fd: Option<i32>,
    /// Read it from what a program prints; no shell runs it
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["kit_passphrase_file", "kit_passphrase_fd"])]
    pub kit_passphrase_command: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum KitCmd {
    /// Make a recovery kit, sealed by a code that is shown once, or by a passphrase of yours
    #[command(after_help = "Keep the file away from the machine, and the code away from the file.\n\
        Example: ssefs key kit create /media/stick/ssefs-kit.txt")]
    Create {
        /// A new file
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Seal it by a passphrase instead of a code; asked for twice unless one of the options below says where it is
        #[arg(long)]
        with_passphrase: bool,
        #[command(flatten)]
        secret: KitSecret,
        /// Memory that Argon2id takes for one try at it: 1M to 4G [default: 256M]
        #[arg(long, value_name = "SIZE", value_parser = kdf_memory)]
        kdf_memory: Option<u32>,
        #[command(flatten)]
        output: Output,
    },
    /// Open a kit and hold it against the keyring: what it opens, what was made since; exit status 6 if it misses anything
    Test {
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        #[command(flatten)]
        secret: KitSecret,
        #[command(flatten)]
        output: Output,
    },
    /// Make root key and keyring from a kit; where the keyring is still there, the root key alone
    #[command(after_help = "Example: ssefs --config /etc/ssefs key kit restore /media/stick/ssefs-kit.txt")]
    Restore {
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        #[command(flatten)]
        secret: KitSecret,
        #[command(flatten)]
        output: Output,
    },
    /// List the kits that were made, and what was made since
    List(Output),
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    pub bucket: BucketName,
    /// Read and verify every chunk of every object as well
    #[arg(long)]
    pub read_data: bool,
    #[command(flatten)]
    pub output: Output,
}

fn dialect(text: &str) -> Result<Dialect, String> {
    text.parse().map_err(|e: crate::rule::RuleError| e.to_string())
}

/// Parses `16K`, `16384` or `16KiB`.
pub fn chunk_size(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1024,
        _ => 0,
    };
    match digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)) {
        Some(n) if n.is_power_of_two() && (4096..=CHUNK_BYTES_MAX).contains(&n) => Ok(n),
        _ => Err("a chunk size is 4K, 8K, 16K, 32K, 64K, 128K or 256K".into()),
    }
}

/// Parses `256M`, `1G` or a number of KiB into KiB.
pub fn kdf_memory(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let kib = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "k" | "kib" => 1,
        "m" | "mib" => 1024,
        "g" | "gib" => 1024 * 1024,
        _ => 0,
    };
    match digits.parse::<u32>().ok().and_then(|n| n.checked_mul(kib)) {
        Some(kib) if (1024..=4 * 1024 * 1024).contains(&kib) => Ok(kib),
        _ => Err("an amount of memory is 1M to 4G".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn amounts_of_memory_are_bounded() {
        assert_eq!(kdf_memory("256M"), Ok(256 * 1024));
        assert_eq!(kdf_memory("1GiB"), Ok(1024 * 1024));
        for bad in ["", "M", "1023K", "5G", "256", "-1M", "99999999999M"] {
            assert!(kdf_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn chunk_sizes_are_powers_of_two_in_range() {
        assert_eq!(chunk_size("4K"), Ok(4096));
        assert_eq!(chunk_size("16384"), Ok(16384));
        assert_eq!(chunk_size("256KiB"), Ok(262144));
        for bad in ["", "K", "3K", "512K", "2K", "16M", "-4K", "99999999999K", "4294967295K"] {
            assert!(chunk_size(bad).is_err(), "{bad}");
        }
    }
}
