//! Mount options: the `-o` list of `ssefs mount` and of fstab, and the command line that mount(8) gives to
//! `mount.ssefs`. An option that would be ignored although it promises something is refused instead.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::args::{self, MountArgs, NewBucket, RootArgs};
use super::remount::{self, Remount};
use crate::ops::OpError;

/// What the `-o` lists of one mount say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub read_only: bool,
    pub allow_other: bool,
    pub list_sse: bool,
    pub direct_rdwr: bool,
    pub nonempty: bool,
    pub create: bool,
    pub foreground: bool,
    pub log: Option<PathBuf>,
    pub rule: Option<String>,
    pub dialect: Option<String>,
    pub chunk_size: Option<u32>,
    pub store: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub root: RootArgs,
    pub commit_interval: Option<Duration>,
    pub threads: Option<usize>,
    /// A file with a customer key that unlocks what it opens, for everybody when root mounts.
    pub customer_key_file: Option<PathBuf>,
    pub key_check: Option<Duration>,
    pub key_grace: Option<Duration>,
    pub service_check: Option<Duration>,
    /// MS_* flags for the kernel, set after the mount (root only).
    pub kernel_flags: libc::c_ulong,
}

/// Words of fstab that are for other programs, or ask for what is so anyway.
const FOR_OTHERS: [&str; 16] = [
    "defaults", "rw", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "exec",
    "dev", "suid", "atime", "relatime",
];

pub const KERNEL: [(&str, libc::c_ulong); 5] = [
    ("nosuid", libc::MS_NOSUID),
    ("nodev", libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC),
    ("noatime", libc::MS_NOATIME),
    ("nodiratime", libc::MS_NODIRATIME),
];

const KNOWN: &str = "ro, rw, allow_other, list_sse, direct_rdwr, nonempty, create, foreground, log=FILE, rule=RULE, dialect=NAME, \
                     chunk_size=SIZE, store=DIR, config=DIR, passphrase_file=FILE, passphrase_fd=N, commit_interval=SECONDS, threads=N, customer_key_file=FILE, key_check=SECONDS, key_grace=SECONDS, service_check=SECONDS, nosuid, nodev, \
                     noexec, noatime";

/// Reads `-o` lists. With `sloppy` (mount -s) unknown options are passed over.
pub fn parse(lists: &[String], sloppy: bool) -> Result<Options, OpError> {
    let mut o = Options::default();
    for word in lists.iter().flat_map(|l| l.split(',')).filter(|w| !w.is_empty()) {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let bad = |why: &str| OpError::usage(format!("mount option {word:?} {why}"));
        match (name, value) {
            ("ro", None) => o.read_only = true,
            ("rw", None) => o.read_only = false,
            ("allow_other", None) => o.allow_other = true,
            ("list_sse", None) => o.list_sse = true,
            ("direct_rdwr", None) => o.direct_rdwr = true,
            ("nonempty", None) => o.nonempty = true,
            ("create", None) => o.create = true,
            ("foreground", None) => o.foreground = true,
            ("log", Some(v)) if !v.is_empty() => o.log = Some(v.into()),
            ("rule", Some(v)) if !v.is_empty() => o.rule = Some(v.into()),
            ("dialect", Some(v)) if !v.is_empty() => o.dialect = Some(v.into()),
            ("store", Some(v)) if !v.is_empty() => o.store = Some(v.into()),
            ("config", Some(v)) if !v.is_empty() => o.config = Some(v.into()),
            ("passphrase_file", Some(v)) if !v.is_empty() => o.root.passphrase_file = Some(v.into()),
            ("passphrase_fd", Some(v)) => {
                o.root.passphrase_fd = Some(v.parse().map_err(|_| bad("must be a number"))?);
            }
            ("chunk_size", Some(v)) => o.chunk_size = Some(args::chunk_size(v).map_err(|e| bad(&format!(": {e}")))?),
            ("commit_interval", Some(v)) => {
                let seconds = v.parse::<f64>().ok().filter(|s| (0.01..=3600.0).contains(s));
                o.commit_interval =
                    Some(Duration::from_secs_f64(seconds.ok_or_else(|| bad("must be 0.01 to 3600 seconds"))?));
            }
            ("threads", Some(v)) => {
                let threads = v.parse::<usize>().ok().filter(|n| (1..=256).contains(n));
                o.threads = Some(threads.ok_or_else(|| bad("must be 1 to 256"))?);
            }
            ("customer_key_file", Some(v)) if !v.is_empty() => o.customer_key_file = Some(v.into()),
            ("key_check", Some(v)) => {
                let seconds = v.parse::<f64>().ok().filter(|s| (0.1..=3600.0).contains(s));
                o.key_check = Some(Duration::from_secs_f64(seconds.ok_or_else(|| bad("must be 0.1 to 3600 seconds"))?));
            }
            ("service_check", Some(v)) => {
                let seconds = v.parse::<f64>().ok().filter(|s| (0.1..=86_400.0).contains(s));
                let seconds = seconds.ok_or_else(|| bad("must be 0.1 to 86400 seconds"))?;
                o.service_check = Some(Duration::from_secs_f64(seconds));
            }
            ("key_grace", Some(v)) => {
                let seconds = v.parse::<f64>().ok().filter(|s| (0.0..=86_400.0).contains(s));
                o.key_grace = Some(Duration::from_secs_f64(seconds.ok_or_else(|| bad("must be 0 to 86400 seconds"))?));
            }
            (_, None) if KERNEL.iter().any(|(k, _)| *k == name) => {
                o.kernel_flags |= KERNEL.iter().filter(|(k, _)| *k == name).fold(0, |flags, (_, f)| flags | f);
            }
            (_, None) if FOR_OTHERS.contains(&name) => {}
            ("comment", _) => {}
            ("remount", None) => {
                return Err(bad("is for mount(8)").hint("use: mount -o remount,ro DIR (or rw), as root"));
            }
            _ if name.starts_with("x-") || name.starts_with("X-") || sloppy => {}
            _ => {
                return Err(bad("is not known or has the wrong form").hint(format!("known: {KNOWN}")));
            }
        }
    }
    Ok(o)
}

/// What `mount.ssefs` was asked.
#[derive(Debug)]
pub enum Helper {
    Mount {
        place: Box<args::Place>,
        mount: MountArgs,
        sloppy: bool,
    },
    Remount(Remount),
    /// `mount --fake`: everything but the mount itself.
    Fake,
}

/// Reads the command line that mount(8) gives its helpers: `mount.ssefs SPEC DIR [-sfnv] [-N ns] [-o options]
/// [-t type]` (mount(8), EXTERNAL HELPERS).
pub fn parse_helper(argv: impl IntoIterator<Item = OsString>) -> Result<Helper, OpError> {
    let usage = || OpError::usage("usage: mount.ssefs BUCKET DIR [-sfnv] [-o OPTIONS]");
    let mut names: Vec<OsString> = Vec::new();
    let mut lists = Vec::new();
    let (mut sloppy, mut fake) = (false, false);
    let mut argv = argv.into_iter().skip(1);
    while let Some(arg) = argv.next() {
        match arg.to_str() {
            Some("-o") => lists.push(text(&argv.next().ok_or_else(usage)?)?),
            Some("-t" | "-N") => drop(argv.next().ok_or_else(usage)?),
            Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                for flag in flags.chars().skip(1) {
                    match flag {
                        's' => sloppy = true,
                        'f' => fake = true,
                        'r' => lists.push("ro".into()),
                        'n' | 'v' | 'w' => {}
                        _ => return Err(usage()),
                    }
                }
            }
            _ => names.push(arg),
        }
    }
    let [spec, dir] = &names[..] else { return Err(usage()) };
    let bucket = text(spec)?.parse().map_err(|e: crate::types::NameError| OpError::usage(e.to_string()))?;
    if let Some(flags) = remount::flags(&lists) {
        return Ok(if fake { Helper::Fake } else { Helper::Remount(Remount { bucket, dir: dir.into(), flags }) });
    }
    let o = parse(&lists, sloppy)?;
    if fake {
        return Ok(Helper::Fake);
    }
    let place = Box::new(args::Place { store: o.store, config: o.config, root: o.root });
    let mount = MountArgs {
        bucket,
        mountpoint: dir.into(),
        create: false,
        new: NewBucket::default(),
        foreground: false,
        options: lists,
        log: None,
    };
    Ok(Helper::Mount { place, mount, sloppy })
}

fn text(arg: &OsStr) -> Result<String, OpError> {
    arg.to_str().map(str::to_owned).ok_or_else(|| OpError::usage(format!("{arg:?} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &str) -> Result<Options, OpError> {
        parse(&[list.to_owned()], false)
    }

    #[test]
    fn fstab_lines_are_understood() {
        let o = of("rw,noauto,user,nofail,x-systemd.automount,_netdev,nosuid,noexec,rule=KMS:k:SM4,log=/l=1").unwrap();
        assert_eq!(o.rule.as_deref(), Some("KMS:k:SM4"));
        assert_eq!(o.log, Some("/l=1".into()));
        assert_eq!(o.kernel_flags, libc::MS_NOSUID | libc::MS_NOEXEC);
        assert!(!o.read_only);
        let o =
            of("ro,allow_other,list_sse,direct_rdwr,nonempty,commit_interval=0.5,threads=2,chunk_size=64K").unwrap();
        assert!(o.read_only && o.allow_other && o.list_sse && o.direct_rdwr && o.nonempty);
        assert_eq!(o.commit_interval, Some(Duration::from_millis(500)));
        assert_eq!((o.threads, o.chunk_size), (Some(2), Some(65536)));
        assert_eq!(of(""), Ok(Options::default()));
    }

    #[test]
    fn options_that_are_unknown_or_out_of_range_are_refused_by_name() {
        for bad in [
            "sync=1",
            "default_permission",
            "threads=0",
            "threads=x",
            "commit_interval=NaN",
            "rule=",
            "commit_interval=-1",
            "chunk_size=3K",
            "ro=yes",
            "store",
            "remount",
        ] {
            let e = of(bad).unwrap_err();
            assert!(e.message.contains(bad), "{bad}: {e}");
        }
        assert!(parse(&["whatever=1".into()], true).is_ok(), "mount -s");
    }

    #[test]
    fn the_helpers_command_line_is_that_of_mount_8() {
        let argv = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let line = "mount.ssefs photos /mnt -sn -v -o rw,store=/s -t fuse.ssefs -o create,rule=AES256";
        let Helper::Mount { place, mount, sloppy } = parse_helper(argv(line)).unwrap() else { panic!("not fake") };
        assert_eq!(place.store, Some("/s".into()));
        assert_eq!((mount.bucket.as_str(), sloppy), ("photos", true));
        assert_eq!(mount.options, ["rw,store=/s", "create,rule=AES256"]);
        assert!(matches!(parse_helper(argv("mount.ssefs photos /mnt -f")), Ok(Helper::Fake)));
        let again = parse_helper(argv("mount.fuse.ssefs photos /mnt -o ro,remount,user_id=0")).unwrap();
        let Helper::Remount(r) = again else { panic!("not a mount") };
        assert_eq!((r.bucket.as_str(), r.flags), ("photos", libc::MS_RDONLY));
        for bad in [
            "mount.ssefs photos",
            "mount.ssefs a b c",
            "mount.ssefs a/b /mnt",
            "mount.ssefs p /mnt -o",
            "mount.ssefs p /mnt -o nonsense",
            "mount.ssefs p /mnt -z",
        ] {
            assert!(parse_helper(argv(bad)).is_err(), "{bad}");
        }
    }
}
