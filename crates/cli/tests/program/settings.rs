//! Where the address and the key come from.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::harness::{Home, KEY, Ran};
use crate::server::Server;

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_default() {
    let home = Home::new();
    let shown = |home: &Home, args: &[&str]| {
        let ran = home.run(&[args, &["config", "show", "-q"]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        ran.stdout
    };
    assert_eq!(
        shown(&home, &[]),
        "SETTING  VALUE                  FROM\n\
         api-url  http://127.0.0.1:7070  the default\n\
         api-key  -                      not set\n"
    );
    for (name, value) in [("api-url", "http://file:1"), ("api_key", KEY)] {
        assert_eq!(home.run(&["config", "set", name, value]).code, 0);
    }
    let file = home.path().join(".config/warren/config.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        shown(&home, &[]),
        "SETTING  VALUE          FROM\n\
         api-url  http://file:1  the configuration file\n\
         api-key  osb_0123…      the configuration file\n"
    );
    let home = home.with("OPENCOMPUTER_API_URL", "http://env:2").with("OPENCOMPUTER_API_KEY", "env-key");
    assert_eq!(
        shown(&home, &["--api-key", "flag-key-long-enough"]),
        "SETTING  VALUE         FROM\n\
         api-url  http://env:2  OPENCOMPUTER_API_URL\n\
         api-key  flag-key…     the command line\n"
    );
}

#[test]
fn a_key_can_come_from_stdin_and_reaches_the_server_only() {
    let server = Server::start();
    server.answer("GET /api/sandboxes", 200, &json!([]));
    let home = Home::new();
    assert_eq!(
        home.run_with_input(&["config", "set", "api-key", "-"], format!("{KEY}\n").as_bytes()).code,
        0
    );
    // An address that already ends in /api is left as it is.
    let ran = home.run(&["ls", "--json", "--api-url", &format!("{}/api/", server.url())]);
    assert_eq!(ran, Ran { code: 0, stdout: "[]\n".to_owned(), stderr: String::new() });
    assert_eq!(server.asked()[0].headers["x-api-key"], KEY);
}

#[test]
fn a_file_with_faults_is_told_without_telling_the_key() {
    let home = Home::new();
    let folder = home.path().join(".config/warren");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("config.toml");
    std::fs::write(&file, "api_url = \"http://file:1\"\napi_kye = \"oops\"\n").unwrap();
    let ran = home.run(&["config", "show", "-q"]);
    assert_eq!(ran.code, 0);
    assert_eq!(ran.stderr, format!("warning: {}: unknown key \"api_kye\" is ignored\n", file.display()));

    std::fs::write(&file, format!("api_key = {KEY}\n")).unwrap();
    let ran = home.run(&["ls"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("is not valid TOML"), "{}", ran.stderr);
    assert!(ran.stderr.contains("\nhint: ") && !ran.stderr.contains("0123456789"), "{}", ran.stderr);

    let ran = home.run(&["ls", "--api-url", "ftp://nowhere"]);
    assert_eq!(ran.code, 1);
}

#[test]
fn an_address_that_is_none_is_refused_before_anything_is_asked() {
    for url in ["not a url", "ftp://host", "http://user:secret@host"] {
        let ran = Home::new().run(&["ls", "--api-url", url]);
        assert_eq!(ran.code, 1, "{url}");
        assert!(
            ran.stderr.contains("the API URL from the command line cannot be used")
                && ran.stderr.contains("\nhint: ")
        );
        assert!(!ran.stderr.contains("secret"), "{}", ran.stderr);
    }
}
