//! Keys, made and revoked in a data directory of a server that is not running.

use serde_json::Value;

use crate::harness::{Home, Ran};

#[test]
fn a_key_is_printed_alone_listed_without_itself_and_revoked() {
    let home = Home::new();
    let data = home.path().join("data");
    let at = ["--data-dir", data.to_str().unwrap()];
    let run = |args: &[&str]| home.run(&[args, &at].concat());

    let made = run(&["keys", "create", "--org", "acme", "--label", "laptop", "-q"]);
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    let key = made.stdout.trim_end();
    assert_eq!(made.stdout, format!("{key}\n"));
    assert!(
        key.strip_prefix("osb_")
            .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    );

    let listed = run(&["keys", "list", "--json"]);
    let object: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(
        (&object[0]["org"], &object[0]["label"], &object[0]["revokedAt"]),
        (&"acme".into(), &"laptop".into(), &Value::Null)
    );
    assert!(!listed.stdout.contains(key));

    let id = object[0]["id"].as_str().unwrap();
    assert_eq!(run(&["keys", "revoke", &key[..8]]).stderr, format!("revoked {id} ({} of acme)\n", &key[..8]));
    let table = run(&["keys", "list"]).stdout;
    assert!(
        table.starts_with("ID ") && table.contains(" revoked ") && !table.contains(" active "),
        "{table}"
    );
    assert_eq!(run(&["keys", "revoke", "osb_ffff"]).code, 1);
}

#[test]
fn looking_for_keys_makes_no_data_directory() {
    let home = Home::new();
    let ran = home.run(&["keys", "list", "--data-dir", "typo"]);
    let hint = "hint: name the server's with --data-dir; `warren keys create` makes a new one\n";
    assert_eq!(
        ran,
        Ran {
            code: 1,
            stdout: String::new(),
            stderr: format!("error: there is no data directory typo\n{hint}")
        }
    );
    assert!(!home.path().join("typo").exists());
}
