//! The command line explains itself.

use crate::harness::Home;

const COMMANDS: [&str; 38] = [
    "create",
    "agent",
    "audit",
    "usage",
    "mcp",
    "ls",
    "get",
    "kill",
    "exec",
    "execs",
    "logs",
    "shell",
    "cp",
    "files",
    "preview",
    "timeout",
    "tags",
    "hibernate",
    "wake",
    "reboot",
    "scale",
    "checkpoint",
    "fork",
    "build",
    "images",
    "snapshots",
    "templates",
    "egress",
    "secret-store",
    "secret",
    "config",
    "serve",
    "keys",
    "secrets",
    "doctor",
    "completions",
    "version",
    "help",
];

#[test]
fn help_names_every_command_and_every_command_has_help() {
    let home = Home::new();
    let help = home.run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for command in COMMANDS.iter().filter(|command| **command != "help") {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command} is not in:\n{}", help.stdout);
        let ran = home.run(&[command, "--help"]);
        assert_eq!(ran.code, 0, "{command}");
        assert!(ran.stdout.contains(&format!("Usage: warren {command}")), "{}", ran.stdout);
    }
    let listed = help
        .stdout
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    for line in listed {
        let name = line.split_whitespace().next().unwrap();
        assert!(COMMANDS.contains(&name), "{name} is not in this test");
    }
    for word in ["OPENCOMPUTER_API_KEY", "OPENCOMPUTER_API_URL", "Exit codes:", "config.toml"] {
        assert!(help.stdout.contains(word), "{word}");
    }
    assert!(!help.stdout.contains("launcher"));
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let home = Home::new();
    let cases: [&[&str]; 20] = [
        &[],
        &["nonsense"],
        &["get", "sb-../../x"],
        &["get"],
        &["exec", "sb-0123abcd"],
        &["create", "--env", "=x"],
        &["create", "--cpu", "-1"],
        &["execs", "kill", "sb-0123abcd", "0123abcd", "--signal", "NOPE"],
        &["cp", "a", "b"],
        &["fork", "sb-0123abcd"],
        &["checkpoint", "rm", "sb-0123abcd"],
        &["scale", "sb-0123abcd", "1024", "--auto"],
        &["scale", "sb-0123abcd", "--min", "1024"],
        &["build"],
        &["build", "node:22", "--registry-user", "me"],
        &["build", "-", "--registry-user", "me", "--registry-password-stdin"],
        &["create", "--image", "node:22", "--snapshot", "x"],
        &["snapshots", "rm"],
        &["usage", "sb-0123abcd", "--all"],
        &["usage", "--minutes"],
    ];
    for args in cases {
        let ran = home.run(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}");
        assert!(!ran.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn completions_know_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = home.run(&["completions", shell]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains("hibernate"), "{shell}");
    }
    let ran = home.run(&["version"]);
    assert_eq!(ran.stdout, format!("warren {}\n", env!("CARGO_PKG_VERSION")));
}
