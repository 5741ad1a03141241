//! `ssefs object`: single objects, named by a path on a mount or as BUCKET:PATH.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::args::ObjectCmd;
use super::customer;
use super::encryption::inside;
use super::place::{self, Place, absolute};
use super::print::{self, Bar};
use crate::control::{self, Request};
use crate::fuse::mount_table::{self, MountEntry};
use crate::ops::{Command, ErrorCode, OpError, Progress, Quiet, WirePath};
use crate::types::BucketName;
use serde_json::Value;

/// What a path on the command line names.
enum Named {
    OnMount { socket: PathBuf, path: WirePath },
    InBucket { bucket: BucketName, path: WirePath },
}

/// Where something is asked of.
#[derive(PartialEq)]
enum Target {
    Mount(PathBuf),
    Bucket(BucketName),
}

impl Named {
    fn split(self) -> (Target, WirePath) {
        match self {
            Named::OnMount { socket, path } => (Target::Mount(socket), path),
            Named::InBucket { bucket, path } => (Target::Bucket(bucket), path),
        }
    }
}

fn ask(place: &Place, at: &Target, command: &Command, progress: &dyn Progress) -> Result<Value, OpError> {
    match at {
        Target::Mount(socket) => control::ask(socket, &Request::Run(command.clone()), progress),
        Target::Bucket(bucket) => place::run(place, bucket, command, progress),
    }
}

pub fn run(place: &Place, command: &ObjectCmd) -> Result<(), OpError> {
    match command {
        ObjectCmd::Show { path, output } => {
            let (at, path) = find(path)?.split();
            let shown = ask(place, &at, &Command::ObjectShow { path }, &Quiet)?;
            if output.json { print::json(&shown) } else { print::fields(&shown) }
        }
        ObjectCmd::SetKey { path, key_file, key_fd } => {
            customer::set(path, &customer::read(key_file.as_deref(), *key_fd)?)
        }
        ObjectCmd::Unlock { path, key_file, key_fd } => {
            customer::unlock(path, &customer::read(key_file.as_deref(), *key_fd)?)
        }
        ObjectCmd::Lock { path } => customer::lock(path),
        ObjectCmd::Effective { path, output } => {
            let (at, path) = find(path)?.split();
            let shown = ask(place, &at, &Command::ObjectShow { path }, &Quiet)?;
            let effective = shown.get("effective").cloned().ok_or_else(|| print::unexpected("effective"))?;
            let request = shown.get("request").cloned().unwrap_or(Value::Null);
            match output.json {
                true => print::json(&serde_json::json!({ "effective": effective, "request": request })),
                false => print::answer(&format!("{}\n", print::printable(&print::cell(&effective)))),
            }
        }
        ObjectCmd::Convert { paths, rule, new_keys, resume, status, abandon, output } => {
            let mut left = false;
            for path in paths {
                let (at, path) = find(path)?.split();
                let command = match (resume, status, abandon) {
                    (true, ..) => Command::ConvertResume,
                    (_, true, _) => Command::ConvertStatus,
                    (.., true) => Command::ConvertAbandon,
                    _ => Command::Convert { path, rule: rule.clone(), new_keys: *new_keys },
                };
                let bar = Bar::new();
                let report = ask(place, &at, &command, &bar)?;
                drop(bar);
                left |= converted(&report, &command, output.json)?;
            }
            match left {
                true => Err(OpError::new(ErrorCode::Incomplete, "not everything was converted")
                    .hint("what was left is named above; a conversion that was stopped goes on with --resume")),
                false => Ok(()),
            }
        }
        ObjectCmd::Erase { paths, recursive, bucket, resume, output } => {
            super::erase::run(place, paths, *recursive, bucket.as_ref(), *resume, output.json)
        }
    }
}

/// Print what a conversion did; true if something is left to do.
fn converted(report: &Value, command: &Command, as_json: bool) -> Result<bool, OpError> {
    if as_json {
        print::json(report)?;
    } else if report.is_null() {
        if *command == Command::ConvertStatus {
            print::answer("no conversion is to be gone on with\n")?;
        }
    } else if *command == Command::ConvertStatus {
        let mut shown = report["job"].clone();
        shown["path"] = report["path"].clone();
        print::fields(&shown)?;
    } else {
        for l in report["left"].as_array().into_iter().flatten() {
            let line = format!("left  {}: {}", print::cell(&l["path"]), print::cell(&l["why"]));
            print::answer(&format!("{}\n", print::printable(&line)))?;
        }
        let mut counts = report.clone();
        if let Some(map) = counts.as_object_mut() {
            map.remove("left");
        }
        print::fields(&counts)?;
    }
    let unfinished = report.get("finished").is_some_and(|f| *f == Value::Bool(false));
    Ok(unfinished || report["left_objects"].as_u64().unwrap_or(0) > 0)
}

/// Several paths of one command, which lie in one bucket.
pub fn find_together(paths: &[PathBuf]) -> Result<(TargetOf, Vec<WirePath>), OpError> {
    let (mut at, mut inside) = (None, Vec::new());
    for path in paths {
        let (here, path) = find(path)?.split();
        if at.as_ref().is_some_and(|at| *at != here) {
            return Err(OpError::usage("the objects lie in several buckets: name those of one at a time"));
        }
        at = Some(here);
        inside.push(path);
    }
    let at = at.ok_or_else(|| OpError::usage("no object is named"))?;
    Ok((TargetOf(at), inside))
}

/// Which bucket, for other commands on objects.
pub struct TargetOf(Target);

impl TargetOf {
    pub fn ask(&self, place: &Place, command: &Command, progress: &dyn Progress) -> Result<Value, OpError> {
        ask(place, &self.0, command, progress)
    }
}

/// A path that exists is one; else what stands before a colon may be a bucket.
fn find(path: &Path) -> Result<Named, OpError> {
    let missing = match absolute(path)?.canonicalize() {
        Ok(resolved) => return on_mount(path, &resolved),
        Err(e) => OpError::io(format_args!("find {}", path.display()), &e),
    };
    match in_bucket(path)? {
        Some(named) => Ok(named),
        None => Err(missing.hint("name a path on a mount, or an object of a bucket: BUCKET:PATH")),
    }
}

fn on_mount(path: &Path, resolved: &Path) -> Result<Named, OpError> {
    let mount = mount_table::mount_of(resolved).map_err(|e| OpError::io("read the mount table", &e))?;
    let Some(mount) = mount.filter(MountEntry::is_fuse) else {
        return Err(OpError::new(ErrorCode::NotFound, format!("{} is not on a mounted bucket", path.display()))
            .hint("name an object of a bucket that is not mounted as BUCKET:PATH"));
    };
    let Some(identity) = control::find_mount(&mount.mountpoint) else {
        return Err(OpError::new(
            ErrorCode::Permission,
            format!("the mount at {} does not answer this user", mount.mountpoint.display()),
        )
        .hint(
            "it belongs to another user or is no ssefs mount; getfattr -n user.sse.state FILE asks the file itself",
        ));
    };
    let relative = resolved.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
    Ok(Named::OnMount { socket: identity.socket, path: relative.to_owned().into() })
}

/// `BUCKET:PATH`, where BUCKET is a legal name; None where it is not of this form.
fn in_bucket(path: &Path) -> Result<Option<Named>, OpError> {
    let bytes = path.as_os_str().as_bytes();
    let Some(colon) = bytes.iter().position(|b| *b == b':') else { return Ok(None) };
    let (before, after) = (&bytes[..colon], &bytes[colon + 1..]);
    let Some(bucket) = std::str::from_utf8(before).ok().and_then(|b| b.parse().ok()) else { return Ok(None) };
    let path = inside(Path::new(std::ffi::OsStr::from_bytes(after)))?;
    Ok(Some(Named::InBucket { bucket, path }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_an_unmounted_bucket_are_named_with_a_colon() {
        match find(Path::new("photos:2024/a:b.jpg")).unwrap() {
            Named::InBucket { bucket, path } => {
                assert_eq!((bucket.as_str(), path.as_path()), ("photos", Path::new("2024/a:b.jpg")));
            }
            Named::OnMount { .. } => panic!("there is no such file"),
        }
        for (bad, code) in [
            ("no/such/file", ErrorCode::NotFound),
            ("a/b:c", ErrorCode::NotFound),
            ("photos:../x", ErrorCode::Usage),
            ("/proc/self", ErrorCode::NotFound),
        ] {
            assert_eq!(find(Path::new(bad)).err().map(|e| e.code), Some(code), "{bad}");
        }
    }
}
