//! `man/ssefs.1` is made from the command line's definitions and from the table of exit codes; this test says when it
//! is behind them. `make man` writes it anew.

use std::fs;

use clap::CommandFactory;
use clap_mangen::Man;
use ssefs::cli::args::Cli;
use ssefs::ops::EXIT_CODES;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/man/ssefs.1");

fn render() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut page = Vec::new();
    let man = Man::new(cli.clone())
        .section("1")
        .manual("User commands")
        .source(format!("ssefs {}", env!("CARGO_PKG_VERSION")));
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    let mut text = String::from_utf8(page).unwrap();
    text.push_str(".SH COMMANDS\n");
    for command in cli.get_subcommands() {
        commands(command, &mut text);
    }
    text.push_str(".SH EXIT STATUS\n.TP\n.B 0\nsuccess\n");
    for (status, _, words) in EXIT_CODES {
        text.push_str(&format!(".TP\n.B {status}\n{words}\n"));
    }
    text.push_str(
        ".SH FILES\n.TP\n.I root.key\nin the configuration directory: the root key. Whoever loses it loses the data.\n\
         .TP\n.I root.source\nbeside it: where else the root key is kept, or the root key sealed by a passphrase.\n\
         .TP\n.I keyring.db\nbeside it: the master keys, wrapped by the root key.\n\
         .SH ENVIRONMENT\n.TP\n.B SSEFS_STORE\nthe store, where \\-\\-store is not given\n\
         .TP\n.B SSEFS_CONFIG\nthe configuration directory, where \\-\\-config is not given\n\
         .TP\n.B SSEFS_LOG\nhow much is logged: error, warn, info (if not given), debug, trace\n\
         .TP\n.B SSEFS_COMMAND_SECONDS\nhow long a program that gives a key or a passphrase may take: 1 to 3600, 60 if not given\n\
         .TP\n.B CREDENTIALS_DIRECTORY\nwhere systemd puts the credentials of a unit\n\
         .SH SEE ALSO\n.BR ssefs (5),\n.BR mount.ssefs (8)\n",
    );
    text
}

/// Every command that does something, as a subsection.
fn commands(command: &clap::Command, text: &mut String) {
    if command.get_name() == "help" {
        return;
    }
    if command.has_subcommands() {
        command.get_subcommands().for_each(|c| commands(c, text));
        return;
    }
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    text.push_str(&format!(".SS {}\n", name.replace('-', "\\-")));
    let mut own = command.clone();
    // The options that every command has stand once, at the top.
    for global in ["store", "config", "help"] {
        if own.get_arguments().any(|a| a.get_id() == global) {
            own = own.mut_arg(global, |a| a.hide(true));
        }
    }
    let mut part = Vec::new();
    let man = Man::new(own.clone());
    man.render_synopsis_section(&mut part).unwrap();
    man.render_description_section(&mut part).unwrap();
    if own.get_arguments().any(|a| !a.is_hide_set()) {
        man.render_options_section(&mut part).unwrap();
    }
    for line in String::from_utf8(part).unwrap().lines() {
        match line {
            ".SH SYNOPSIS" | ".SH DESCRIPTION" | ".SH OPTIONS" => text.push_str(".PP\n"),
            // Said once at the top of the page is enough.
            _ if line.starts_with(".ie \\n(.g .ds Aq") || line.starts_with(".el .ds Aq") => {}
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    if let Some(more) = own.get_after_help() {
        text.push_str(&format!(".PP\n.EX\n{}\n.EE\n", more.to_string().replace('\\', "\\e").replace('-', "\\-")));
    }
}

#[test]
fn the_manual_is_what_the_command_line_defines() {
    let page = render();
    if std::env::var_os("SSEFS_BLESS").is_some() {
        fs::write(FILE, &page).unwrap();
    }
    let kept = fs::read_to_string(FILE).unwrap_or_default();
    assert!(kept == page, "man/ssefs.1 is behind the command line: run make man");
}

#[test]
fn the_manual_names_every_command_and_every_exit_code() {
    let page = render();
    for heading in ["ssefs mount", "ssefs umount", "ssefs encryption put", "ssefs key rewrap", "ssefs object show"] {
        assert!(page.contains(&format!(".SS {heading}\n")), "{heading}");
    }
    assert_eq!(page.matches("\n.TP\n.B ").count(), 1 + EXIT_CODES.len() + 5, "statuses and variables");
}
