//! `ssefs key root`: where the root key is kept, and changing that. Mounts that hold the old key are told the new one
//! before the keyring needs it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{RootCmd, RootTo};
use super::place::{Place, make_config_dir};
use super::{print, secrets};
use crate::bucket::Bucket;
use crate::control::{self, Request};
use crate::crypto::passphrase::KDF_MEMORY_KIB_DEFAULT;
use crate::keys::root::{self, NewRoot, Steps};
use crate::keys::{self, Keyring, RootSource};
use crate::ops::{Command, OpError};
use crate::types::to_hex;

/// How long a mount may take to answer when it is told of a new root key.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(place: &Place, command: &RootCmd) -> Result<(), OpError> {
    match command {
        RootCmd::Show { test, output } => {
            let needed = keys::needed_root(&place.config)?;
            let found = root::find(&place.config, needed.as_ref())?;
            let mut shown = describe(&found.source, &place.config);
            shown["id"] = json!(needed.map(|id| to_hex(&id)));
            shown["keyring"] = json!(keys::keyring_path(&place.config));
            if *test {
                place.keyring()?;
                shown["opens_the_keyring"] = json!(true);
            }
            if output.json { print::json(&shown) } else { print::fields(&shown) }
        }
        RootCmd::Create { to, output } => {
            if place.has_keyring() {
                return Err(OpError::usage("there is a keyring already, which has its root key")
                    .hint("to change that: ssefs key root change --to WHERE"));
            }
            make_config_dir(&place.config)?;
            let key = root::create(&place.config, target(to)?)?;
            Keyring::create_empty(&place.config, &key)?;
            let keys = Keyring::open_with(&place.config, key, "the new root key")?;
            let mut shown = describe(&root::find(&place.config, None)?.source, &place.config);
            shown["id"] = json!(keys.root_id());
            if output.json { print::json(&shown) } else { print::fields(&shown) }
        }
        RootCmd::Change { to, keep, output } => {
            let keys = place.keyring()?;
            let changed = keys.change_root(target(to)?, *keep, &mut Tell { keys: &keys })?;
            let mut shown = describe(&changed.source, &place.config);
            shown["id"] = json!(changed.after);
            shown["id_before"] = json!(changed.before);
            shown["removed"] = json!(changed.retired);
            if output.json {
                print::json(&shown)?
            } else {
                print::fields(&shown)?
            }
            if changed.before != changed.after {
                print::note(&format!(
                    "copies of the root key {} open this keyring no more; older copies of the keyring need it still",
                    changed.before
                ));
                if !keys.list_kits()?.is_empty() {
                    print::note("recovery kits hold the old root key and still open what they held: make a new one");
                }
            }
            Ok(())
        }
    }
}

/// Where a person wants the root key.
fn target(to: &RootTo) -> Result<NewRoot, OpError> {
    let (kind, rest) = match to.to.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest).filter(|r| !r.is_empty())),
        None => (to.to.as_str(), None),
    };
    if to.key_file.is_some() && kind != "credential" {
        return Err(OpError::usage("--key-file is for --to credential:NAME"));
    }
    match (kind, rest) {
        ("file", None) => Ok(NewRoot::File(None)),
        ("file", Some(path)) => Ok(NewRoot::File(Some(super::place::absolute(Path::new(path))?))),
        ("passphrase", None) => Ok(NewRoot::Passphrase {
            passphrase: secrets::new_passphrase(&to.new, "the new root key")?,
            memory_kib: to.new.kdf_memory.unwrap_or(KDF_MEMORY_KIB_DEFAULT),
        }),
        ("command", Some(command)) => Ok(NewRoot::Command(secrets::command_line(command)?)),
        ("credential", Some(name)) => {
            let key = to.key_file.as_deref().map(root::load_given).transpose()?;
            Ok(NewRoot::Credential { name: name.to_owned(), key })
        }
        _ => Err(OpError::usage(format!("--to {:?} makes no sense", to.to))
            .hint("say file, file:PATH, passphrase, command:COMMAND or credential:NAME")),
    }
}

fn describe(source: &RootSource, config_dir: &Path) -> Value {
    let mut shown = json!({ "source": source.kind() });
    match source {
        RootSource::File(path) => shown["file"] = json!(path),
        RootSource::Passphrase(sealed) => {
            shown["file"] = json!(root::source_path(config_dir));
            shown["argon2id_memory_bytes"] = json!(u64::from(sealed.kdf.memory_kib()) * 1024);
        }
        RootSource::Command(command) => shown["command"] = json!(command.to_string()),
        RootSource::Credential(name) => shown["credential"] = json!(name),
    }
    shown
}

/// Tells every mount of the stores that the keyring knows.
struct Tell<'a> {
    keys: &'a Keyring,
}

impl Steps for Tell<'_> {
    fn tell(&mut self, id: &[u8; 8], sealed: &[u8]) {
        let request = Request::Run(Command::NextRoot { id: to_hex(id), sealed: to_hex(sealed) });
        for (_, store) in self.keys.list_stores().unwrap_or_default() {
            for bucket in Bucket::list(&store).unwrap_or_default() {
                let Some(holder) = Bucket::who_has(&store, &bucket) else { continue };
                let told = match &holder.socket {
                    Some(socket) => control::ask_within(socket, &request, TELL_TIMEOUT).map_err(|e| e.to_string()),
                    None => Err("it has no control socket".into()),
                };
                if let Err(why) = told {
                    print::note(&format!(
                        "bucket {bucket} is in use by process {}, which could not be told of the new root key ({why}): \
                         mount it again after this",
                        holder.pid
                    ));
                }
            }
        }
    }
}
