//! `ssefs key kit`: recovery kits made, tested, restored and listed.

use std::path::Path;

use serde_json::json;

use super::args::{KitCmd, KitSecret};
use super::place::{Place, absolute};
use super::{print, secrets};
use crate::crypto::passphrase::KDF_MEMORY_KIB_DEFAULT;
use crate::keys::{Kit, KitContents, KitHas, KitSeal};
use crate::ops::{ErrorCode, OpError};

pub fn run(place: &Place, command: &KitCmd) -> Result<(), OpError> {
    match command {
        KitCmd::Create { file, with_passphrase, secret, kdf_memory, output } => {
            let keys = place.keyring()?;
            let seal = if *with_passphrase || secrets::kit_secret_is_given(secret) {
                KitSeal::Passphrase(secrets::new_kit_passphrase(secret)?)
            } else {
                KitSeal::Code
            };
            let memory_kib = kdf_memory.unwrap_or(KDF_MEMORY_KIB_DEFAULT);
            if matches!(seal, KitSeal::Code) {
                print::can_be_kept()?;
            }
            let path = absolute(file)?;
            let (number, code) = keys.create_kit(&path, seal, memory_kib)?;
            let shown = |text: &str| match code {
                None => print::answer(text),
                // A kit whose code nobody has seen is none.
                Some(_) => print::only_once(text).inspect_err(|_| {
                    let _ = std::fs::remove_file(&path);
                    let _ = keys.forget_kit(number);
                }),
            };
            let code = code.as_ref().map(|c| String::from_utf8_lossy(c.expose()));
            if output.json {
                return shown(&format!("{}\n", json!({ "number": number, "file": file, "code": code })));
            }
            let mut text = format!("recovery kit {number} is in {}\n", file.display());
            if let Some(code) = code {
                text.push_str(&format!("\nits code, shown this once:\n\n    {code}\n\n"));
                text.push_str(
                    "Write it down and keep it away from the file: each is worth nothing without the other.\n",
                );
            }
            shown(&text)
        }
        KitCmd::Test { file, secret, output } => test(place, file, secret, output.json),
        KitCmd::Restore { file, secret, output } => {
            let (kit, contents) = open(file, secret)?;
            let restored = contents.restore(&place.config)?;
            let (keys, versions) = contents.counts();
            let shown = json!({
                "number": kit.number,
                "config": place.config,
                "root": contents.root_id(),
                "keys": keys,
                "versions": versions,
                "keyring_left_as_it_is": restored.keyring_was_there,
                "set_aside": restored.set_aside,
            });
            if output.json {
                print::json(&shown)?
            } else {
                print::fields(&shown)?
            }
            print::note(&format!(
                "the root key is in {}: ssefs key root change moves it",
                place.config.join("root.key").display()
            ));
            Ok(())
        }
        KitCmd::List(output) => {
            let kits = place.keyring()?.list_kits()?;
            if output.json {
                let all = kits.iter().map(|k| {
                    json!({ "number": k.number, "created": print::time(k.created), "keys": k.keys, "missing": k.missing })
                });
                return print::json(&all.collect());
            }
            let rows: Vec<Vec<String>> = kits
                .iter()
                .map(|k| vec![k.number.to_string(), print::time(k.created), k.keys.to_string(), k.missing.join(", ")])
                .collect();
            print::table(&["KIT", "CREATED", "KEYS", "MADE SINCE"], &rows)
        }
    }
}

fn open(file: &Path, secret: &KitSecret) -> Result<(Kit, KitContents), OpError> {
    let kit = Kit::read(file)?;
    let contents = kit.open(secrets::kit_secret(secret, kit.number, kit.by_code)?)?;
    Ok((kit, contents))
}

fn test(place: &Place, file: &Path, secret: &KitSecret, as_json: bool) -> Result<(), OpError> {
    let (kit, contents) = open(file, secret)?;
    let (keys, versions) = contents.counts();
    let lines = if place.has_keyring() { contents.compare(&place.keyring()?)? } else { Vec::new() };
    let missed = lines.iter().filter(|l| l.has == KitHas::Misses).count();
    let word = |has| match has {
        KitHas::Opens => "opens",
        KitHas::Misses => "misses",
        KitHas::Nobody => "no kit has it",
    };
    if as_json {
        let lines: Vec<_> =
            lines.iter().map(|l| json!({ "what": l.what, "has": word(l.has), "note": l.note })).collect();
        print::json(&json!({
            "number": kit.number, "created": print::time(kit.created), "root": contents.root_id(),
            "keys": keys, "versions": versions, "compared": lines, "misses": missed,
        }))?;
    } else {
        print::answer(&format!(
            "recovery kit {} of {} opens: {keys} keys in {versions} versions\n",
            kit.number,
            print::time(kit.created)
        ))?;
        let rows: Vec<Vec<String>> =
            lines.iter().map(|l| vec![l.what.clone(), word(l.has).into(), l.note.clone()]).collect();
        if !rows.is_empty() {
            print::table(&["WHAT", "KIT", "WHY"], &rows)?;
        }
    }
    if !place.has_keyring() {
        print::note("there is no keyring here to hold it against");
    }
    if missed > 0 {
        return Err(OpError::new(
            ErrorCode::Key,
            format!("recovery kit {} misses {missed} of {}", kit.number, lines.len()),
        )
        .hint("make a new one: ssefs key kit create FILE"));
    }
    Ok(())
}
