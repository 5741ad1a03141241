//! What the command line says before any bucket is involved: help, wrong usage, stores that are not there,
//! mountpoints that cannot be used. Exit codes are those of ssefs(1).

mod cli_support;

use cli_support::Sandbox;

#[test]
fn help_is_there_for_every_command_and_shows_how_to_begin() {
    let s = Sandbox::new();
    let top = s.ssefs(&["--help"]).ok();
    assert!(top.contains("ssefs mount photos ~/photos --create --rule AES256"), "{top}");
    for path in [
        &["mount"][..],
        &["umount"],
        &["bucket", "create"],
        &["bucket", "list"],
        &["bucket", "show"],
        &["bucket", "delete"],
        &["bucket", "grant"],
        &["encryption", "put"],
        &["encryption", "get"],
        &["encryption", "delete"],
        &["key", "list"],
        &["key", "show"],
        &["key", "create"],
        &["key", "rotate"],
        &["key", "rewrap"],
        &["object", "show"],
        &["check"],
        &["completions"],
    ] {
        let help = s.ssefs(&[path, &["--help"]].concat()).ok();
        assert!(help.contains("Usage: ssefs "), "{path:?}: {help}");
    }
    assert_eq!(s.ssefs(&["--version"]).ok(), format!("ssefs {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_exit_status_2_and_prints_nothing_on_standard_output() {
    let s = Sandbox::new();
    for args in [
        &[][..],
        &["frobnicate"],
        &["mount", "photos"],
        &["mount", "a/b", "/mnt"],
        &["mount", "..", "/mnt"],
        &["mount", "photos", "/mnt", "--chunk-size", "3K"],
        &["mount", "photos", "/mnt", "--dialect", "azure"],
        &["encryption", "put", "photos"],
        &["encryption", "put", "photos", "AES256", "--xml", "x"],
        &["encryption", "get", "photos", "--xml", "--json"],
    ] {
        let o = s.ssefs(args);
        assert_eq!((o.code, o.out.as_str()), (2, ""), "{args:?}: {}", o.err);
        assert!(!o.err.is_empty());
    }
    s.ssefs(&["mount", "photos", ".", "-o", "fast"]).fails(2, &["\"fast\"", "hint: known: ro,"]);
    s.ssefs(&["mount", "photos", ".", "--rule", "AES256"]).fails(2, &["add --create", "ssefs encryption put photos"]);
    assert!(!s.path("store").exists() && !s.path("config").exists(), "nothing was made");
}

#[test]
fn a_store_that_is_not_there_is_said_and_not_made_by_reading() {
    let s = Sandbox::new();
    for args in [
        &["bucket", "show", "photos"][..],
        &["encryption", "get", "photos"],
        &["check", "photos"],
        &["object", "show", "photos:a"],
        &["bucket", "delete", "photos"],
    ] {
        s.ssefs(args).fails(3, &["there is no store in", "hint: make the first bucket: ssefs mount NAME DIR --create"]);
    }
    assert_eq!(s.ssefs(&["bucket", "list"]).ok(), "BUCKET  MOUNTED AT\n");
    assert_eq!(s.ssefs(&["bucket", "list", "--json"]).ok(), "[]\n");
    assert!(!s.path("store").exists());
}

#[test]
fn a_mountpoint_that_cannot_be_used_is_named_with_what_to_do() {
    let s = Sandbox::new();
    s.ssefs(&["mount", "photos", "nowhere", "--create"])
        .fails(9, &["mountpoint nowhere does not exist", "mkdir -p nowhere"]);
    std::fs::write(s.path("file"), "").unwrap();
    s.ssefs(&["mount", "photos", "file", "--create"]).fails(9, &["mountpoint file is not a directory"]);
    s.ssefs(&["mount", "photos", ".", "--create"]).fails(9, &["is not empty", "-o nonempty"]);
    assert!(!s.path("store").exists(), "nothing is made before the mountpoint is known to be good");
}

#[test]
fn unmounting_what_is_not_a_mounted_bucket_is_refused() {
    let s = Sandbox::new();
    s.ssefs(&["umount", "."]).fails(3, &["nothing is mounted at ."]);
    s.ssefs(&["umount", "nowhere"]).fails(3, &["cannot find"]);
    s.ssefs(&["umount", "/proc"]).fails(8, &["what is mounted at /proc is proc, no bucket"]);
}

#[test]
fn a_directory_with_other_things_is_not_made_a_store() {
    let s = Sandbox::new();
    let dir = s.mkdir("store");
    std::fs::write(s.path("store/thesis.tex"), "x").unwrap();
    s.ssefs(&["bucket", "create", "photos"]).fails(8, &["is not a store and not empty", "thesis.tex", "--store"]);
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
}

#[test]
fn completions_come_for_every_shell_and_name_the_commands() {
    let s = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = s.ssefs(&["completions", shell]).ok();
        assert!(script.contains("encryption") && script.contains("umount"), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let s = Sandbox::new();
    let line = format!("{} completions zsh | head -n 1; echo ${{PIPESTATUS[0]}}", cli_support::SSEFS);
    let o: cli_support::Outcome = s.command("bash").arg("-c").arg(line).output().unwrap().into();
    assert!(o.out.ends_with("\n0\n"), "{o:?}");
    assert_eq!(o.err, "");
}

#[test]
fn the_mount_helper_understands_mount_8_and_refuses_what_it_does_not_know() {
    let s = Sandbox::new();
    let helper = s.path("mount.ssefs");
    std::os::unix::fs::symlink(cli_support::SSEFS, &helper).unwrap();
    let run = |args: &[&str]| -> cli_support::Outcome { s.command(&helper).args(args).output().unwrap().into() };
    run(&["photos"]).fails(2, &["usage: mount.ssefs BUCKET DIR"]);
    run(&["photos", ".", "-o", "rw,fast"]).fails(2, &["\"fast\""]);
    assert_eq!(run(&["photos", ".", "-f", "-o", "rw"]).code, 0, "--fake");
    run(&["photos", "nowhere", "-o", "rw,nofail,create"]).fails(9, &["does not exist"]);
}
