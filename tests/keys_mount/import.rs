//! Key material of one's own and recovery files by command; two processes at one keyring.

use crate::mount::{Mount, set_xattr};
use crate::run::{run, sh};
use crate::{RULE, key, make_key, put, refused_by_command};
use std::fs;
use std::process::Command;

#[test]
fn key_material_is_taken_from_a_file_a_pipe_or_a_descriptor_in_three_forms() {
    let Some(m) = Mount::real("") else { return };
    let raw: Vec<u8> = (100..132).collect();
    let hex: String = raw.iter().map(|b| format!("{b:02x}")).collect();
    let at = |name: &str, bytes: &[u8]| {
        let path = m.beside(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    };
    let (raw_file, hex_file) = (at("raw", &raw), at("hex", format!("{hex}\n").as_bytes()));
    let made = m.ssefs(&["key", "import", "--alias", "raw", "--material-file", &raw_file, "--json"]).json();
    assert_eq!((made["origin"].as_str(), made["rotate_days"].as_u64()), (Some("imported"), Some(0)));
    let ssefs = env!("CARGO_BIN_EXE_ssefs");
    let shell = |script: String| {
        run(Command::new("sh").arg("-c").arg(script).env("SSEFS_CONFIG", m.config()).env("SSEFS_STORE", m.store()))
    };
    shell(format!("{ssefs} key import --alias fd --description of-mine --material-fd 7 7<{hex_file}")).ok();
    let base64 = sh(&m.beside(""), "base64 raw");
    let base64 = at("base64", base64.as_bytes());
    shell(format!("cat {base64} | {ssefs} key import --alias stdin --material-file -")).ok();
    // The same material in each: what is deleted from one is told again in another form.
    for (alias, file) in [("raw", &hex_file), ("fd", &base64), ("stdin", &raw_file)] {
        m.ssefs(&["key", "delete-material", alias]).ok();
        assert_eq!(key(&m, alias)["state"].as_str(), Some("pending-import"));
        m.ssefs(&["key", "import", alias, "--material-file", file]).ok();
        let shown = key(&m, alias);
        assert_eq!((shown["state"].as_str(), shown["version"].as_u64()), (Some("enabled"), Some(1)));
    }
    assert_eq!(key(&m, "fd")["description"].as_str(), Some("of-mine"));

    let before = m.ssefs(&["key", "list", "--json"]).ok();
    let bad = |name: &str, bytes: &[u8], why: &str| {
        let file = at(name, bytes);
        for what in [&["--alias", "bad"][..], &["raw"]] {
            let ran = m.ssefs(&[&["key", "import"], what, &["--material-file", &file]].concat());
            assert_eq!(ran.code, Some(6), "{ran:?}");
            ran.fails_saying(&[name, why]);
            assert!(!ran.stderr.contains(&hex[..16]), "no key in a message");
        }
    };
    bad("empty", b"", "empty");
    bad("short", &raw[1..], "too short: 31 bytes");
    bad("long", &[&raw[..], b"x"].concat(), "too long");
    bad("short-hex", &hex.as_bytes()[..62], "too short: 62 hexadecimal digits");
    bad("long-hex", format!("{hex}00").as_bytes(), "too long");
    bad("no-hex", format!("{}zz", &hex[..62]).as_bytes(), "not all are hexadecimal");
    bad("no-base64", format!("{}-=", &"QUJD".repeat(11)[..42]).as_bytes(), "not base64");
    bad("zero", &[0; 32], "no key");
    bad("huge", &vec![b'x'; 1 << 20], "too long");
    m.ssefs(&["key", "import", "--alias", "bad", "--material-file", "no/such"]).fails_saying(&["no/such"]);
    m.ssefs(&["key", "import", "--alias", "bad", "--material-fd", "777"]).fails_saying(&["descriptor 777"]);
    for args in [
        &["key", "import"][..],
        &["key", "import", "--alias", "x"],
        &["key", "import", "raw", "--alias", "x", "--material-file", &raw_file],
        &["key", "import", "--recovery-file", &raw_file],
        &["key", "import", "--recovery-file", &raw_file, "--alias", "x", "--seal-key-file", &raw_file],
    ] {
        assert_eq!(m.ssefs(args).code, Some(2), "{args:?}");
    }
    assert_eq!(m.ssefs(&["key", "list", "--json"]).ok(), before, "nothing changed");
}

#[test]
fn a_recovery_file_is_written_once_and_opens_with_its_own_key_only() {
    let Some(m) = Mount::real("") else { return };
    let id = make_key(&m, "mine");
    let at = |name: &str| m.beside(name).to_str().unwrap().to_string();
    for (name, first) in [("seal", 1u8), ("wrong", 2)] {
        fs::write(m.beside(name), (first..first + 32).collect::<Vec<u8>>()).unwrap();
    }
    let export = ["key", "export", "mine", "--to", &at("mine.key"), "--seal-key-file", &at("seal")];
    m.ssefs(&export).ok();
    let again = m.ssefs(&export);
    assert_eq!(again.code, Some(12), "{again:?}");
    m.ssefs(&["key", "export", "mine", "--to", &at("x.key")]).fails_saying(&["--seal-key-file"]);
    m.ssefs(&["key", "export", "nobody", "--to", &at("x.key"), "--seal-key-file", &at("seal")])
        .fails_saying(&["KMS.NotFoundException"]);
    assert!(!m.beside("x.key").exists());
    let import = |seal: &str| {
        ["key".into(), "import".into(), "--recovery-file".into(), at("mine.key"), "--seal-key-file".into(), at(seal)]
    };
    let run = |args: [String; 6]| m.ssefs(&args.each_ref().map(String::as_str));
    assert_eq!(run(import("seal")).code, Some(12), "it is there");
    m.ssefs(&["key", "delete", "mine", "--unsafe-seconds", "0"]).ok();
    assert_eq!(key(&m, &id)["state"].as_str(), Some("destroyed"));
    refused_by_command(
        &m,
        &["key", "enable", &id],
        6,
        &format!("KMS.NotFoundException: key \"{id}\" was destroyed {}", key(&m, &id)["destroyed"].as_str().unwrap()),
    );
    let wrong = run(import("wrong"));
    assert_eq!(wrong.code, Some(6), "{wrong:?}");
    wrong.fails_saying(&["sealed under another key"]);
    run(import("seal")).ok();
    assert_eq!(key(&m, "mine")["state"].as_str(), Some("enabled"));
}

#[test]
fn a_mount_and_the_command_line_change_one_keyring_at_once() {
    let Some(m) = Mount::real("") else { return };
    make_key(&m, "mine");
    set_xattr(m.path(), RULE, "KMS:mine").unwrap();
    put(&m, "first");
    std::thread::scope(|s| {
        let commands = s.spawn(|| {
            for i in 0..12 {
                m.ssefs(&["key", "rotate", "mine"]).ok();
                m.ssefs(&["key", "rewrap", "b"]).ok();
                make_key(&m, &format!("other-{i}"));
            }
        });
        // Rules that name ever other keys register the bucket with each, from the mount's process.
        let mut named = 0;
        while !commands.is_finished() {
            let Ok(()) = set_xattr(m.path(), RULE, format!("KMS:other-{named}")) else {
                std::thread::sleep(std::time::Duration::from_millis(5));
                continue;
            };
            put(&m, &format!("f{named}"));
            named = (named + 1).min(11);
        }
        commands.join().unwrap();
    });
    for i in 0..12 {
        set_xattr(m.path(), RULE, format!("KMS:other-{i}")).unwrap();
        put(&m, &format!("f{i}"));
        assert_eq!(key(&m, &format!("other-{i}"))["used_by"][0]["bucket"].as_str(), Some("b"));
    }
    assert_eq!(key(&m, "mine")["version"].as_u64(), Some(13));
    assert_eq!(fs::read(m.at("first")).unwrap(), b"content of first");
}
