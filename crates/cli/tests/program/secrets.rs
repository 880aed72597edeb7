//! Secret stores, secrets, and what sandboxes may reach.

use serde_json::{Value, json};

use crate::harness::{Home, ID, Ran};
use crate::server::Server;

const STORE: &str = "01234567-89ab-4def-8123-456789abcdef";

fn store() -> Value {
    json!({
        "id": STORE, "orgId": "o", "name": "keys", "egressAllowlist": ["a.com", "*.b.com"],
        "createdAt": "2100-01-01T00:00:00Z", "updatedAt": "2100-01-01T00:00:00Z", "fromTheFuture": 1,
    })
}

fn with_store(server: &Server) {
    server.answer("GET /api/secret-stores", 200, &json!([store()]));
}

#[test]
fn stores_are_made_listed_changed_and_deleted() {
    let server = Server::start();
    with_store(&server);
    server.answer("POST /api/secret-stores", 201, &store());
    let path = format!("/api/secret-stores/{STORE}");
    server.answer(&format!("GET {path}"), 200, &store());
    server.answer(&format!("PUT {path}"), 200, &store());
    server.answer(&format!("DELETE {path}"), 204, &Value::Null);
    let home = Home::of(&server);
    let ran =
        home.run(&["secret-store", "create", "keys", "--allow-host", "a.com", "--allow-host", "*.b.com"]);
    assert_eq!((ran.code, ran.stdout), (0, format!("{STORE}\n")));
    assert_eq!(
        server.body_of("POST /api/secret-stores"),
        json!({"name": "keys", "egressAllowlist": ["a.com", "*.b.com"]})
    );
    let table = format!(
        "ID                                    NAME  MAY REACH      AGE\n{STORE}  keys  a.com,*.b.com  0s\n"
    );
    assert_eq!(home.run(&["secret-store", "ls"]).stdout, table);
    assert_eq!(home.run(&["secret-store", "ls", "-q"]).stdout, format!("{STORE}\n"));
    assert_eq!(home.run(&["secret-store", "get", "keys"]).stdout, table);
    let ran = home.run(&["secret-store", "get", STORE, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), store());
    assert_eq!(home.run(&["secret-store", "update", "keys", "--allow-all"]).code, 0);
    assert_eq!(server.body_of(&format!("PUT {path}")), json!({"egressAllowlist": []}));
    let ran = home.run(&["secret-store", "rm", "keys"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "deleted keys and its secrets\n"));
    let ran = home.run(&["secret-store", "rm", "other"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("there is no secret store \"other\""), "{}", ran.stderr);
}

#[test]
fn a_value_comes_from_stdin_or_a_file_and_is_never_printed() {
    let server = Server::start();
    with_store(&server);
    let line = format!("PUT /api/secret-stores/{STORE}/secrets/KEY");
    server.answer(&line, 200, &json!({"name": "KEY", "status": "set", "refreshed": "2", "pending": "1"}));
    let home = Home::of(&server);
    let ran = home.run_with_input(&["secret", "set", "keys", "KEY", "--allow-host", "a.com"], b"hunter2\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_eq!(
        ran.stderr,
        "set KEY; sandboxes that have it now: 2\nwarning: 1 sandboxes do not have it yet; they are told soon\n"
    );
    let bodies = |server: &Server| -> Vec<Value> {
        let asked = server.asked().into_iter().filter(|asked| asked.line == line);
        asked.map(|asked| serde_json::from_slice(&asked.body).unwrap()).collect()
    };
    assert_eq!(bodies(&server)[0], json!({"value": "hunter2", "allowedHosts": ["a.com"]}));
    let file = home.path().join("value");
    std::fs::write(&file, "two\nlines\n").unwrap();
    let file = file.to_str().unwrap();
    let ran =
        home.run(&["secret", "set", STORE, "KEY", "--value-file", file, "--place", "query", "--allow-all"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(bodies(&server)[1], json!({"value": "two\nlines\n", "allowedHosts": [], "places": ["query"]}));
    let ran = home.run(&["secret", "set", "keys", "KEY=hunter3"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.stderr.contains("give the value on stdin") && !ran.stderr.contains("hunter3"),
        "{}",
        ran.stderr
    );
    assert_eq!(bodies(&server)[2], json!({"value": "hunter3"}));
    assert_eq!(home.run(&["secret", "set", "keys", "KEY=x", "--value-file", file]).code, 2);
    assert_eq!(home.run(&["secret", "set", "keys", "KEY", "--value-file", "absent"]).code, 1);
}

#[test]
fn secrets_are_listed_and_deleted_and_their_uses_shown() {
    let server = Server::start();
    with_store(&server);
    let path = format!("/api/secret-stores/{STORE}/secrets");
    let entry = |name: &str, hosts: Value| {
        json!({
            "id": "i", "storeId": STORE, "name": name, "allowedHosts": hosts, "places": ["header"],
            "createdAt": "2100-01-01T00:00:00Z", "updatedAt": "2100-01-01T00:00:00Z",
        })
    };
    let list = json!([entry("A", json!([])), entry("B", json!(["a.com"]))]);
    server.answer(&format!("GET {path}"), 200, &list);
    server.answer(&format!("DELETE {path}/A"), 204, &Value::Null);
    let uses = json!([{"at": "2100-01-01T00:00:00Z", "host": "a.com\u{1b}[2J", "sandboxID": ID, "count": 3}]);
    server.answer(&format!("GET {path}/A/uses"), 200, &uses);
    let home = Home::of(&server);
    assert_eq!(
        home.run(&["secret", "ls", "keys"]).stdout,
        "NAME  PUT IN FOR          INTO    UPDATED\n\
         A     every allowed host  header  0s ago\n\
         B     a.com               header  0s ago\n"
    );
    let ran = home.run(&["secret", "ls", "keys", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), list);
    assert_eq!(home.run(&["secret", "rm", "keys", "A"]).stderr, "deleted A\n");
    assert_eq!(
        home.run(&["secret", "uses", "keys", "A"]).stdout,
        format!("LAST    HOST            SANDBOX      REQUESTS\n0s ago  a.com\\u{{1b}}[2J  {ID}  3\n")
    );
}

#[test]
fn egress_is_shown_and_changed() {
    let server = Server::start();
    let rules = json!({"mode": "allowlist", "allow": [{"host": "a.com", "ports": [8443], "methods": ["GET"]}, {"host": "*.b.com"}]});
    server.answer(
        &format!("GET /api/sandboxes/{ID}/allowed-hosts"),
        200,
        &json!({
            "sandboxID": ID, "secretStore": "keys", "egressAllowlist": ["a.com", "*.b.com"],
            "perSecretAllowedHosts": {"KEY": ["a.com"]}, "policy": rules,
            "blocked": [{"host": "c.com", "port": 443, "reason": "it is not allowed", "count": 2, "at": "2100-01-01T00:00:00Z"}],
        }),
    );
    let line = format!("PUT /api/sandboxes/{ID}/egress");
    server.answer(&line, 200, &json!({"sandboxID": ID, "policy": rules, "effective": rules}));
    let home = Home::of(&server);
    let table =
        "HOST     PORTS   METHODS  PATHS\na.com    8443    GET      all\n*.b.com  80,443  all      all\n";
    assert_eq!(
        home.run(&["egress", "get", ID]),
        Ran {
            code: 0,
            stdout: format!(
                "{table}REFUSED  PORT  TIMES  LAST    WHY\nc.com    443   2      0s ago  it is not allowed\n"
            ),
            stderr: "it may reach what is listed\nsecret stores: keys\nKEY is put in for a.com\n".to_owned(),
        }
    );
    let ran = home.run(&["egress", "set", ID, "--allow-host", "a.com:8443", "--allow-host", "*.B.com"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, table));
    assert_eq!(
        server.body_of(&line),
        json!({"mode": "allowlist", "allow": [{"host": "a.com", "ports": [8443]}, {"host": "*.b.com"}]})
    );
    for args in [
        &["egress", "set", ID][..],
        &["egress", "set", ID, "--open", "--none"],
        &["egress", "set", ID, "--allow-host", "a b"],
        &["egress", "set", ID, "--allow-host", "a.com:x"],
        &["create", "--no-network", "--allow-host", "a.com"],
    ] {
        assert_eq!(home.run(args).code, 2, "{args:?}");
    }
    let before = server.lines().len();
    assert_eq!(home.run(&["egress", "set", ID, "--policy", "{\"mode\":\"some\"}"]).code, 1);
    assert_eq!(server.lines().len(), before);
}

#[test]
fn a_key_is_rotated_only_where_there_is_one() {
    let home = Home::new();
    let ran = home.run(&["secrets", "rotate-key", "--data-dir", "typo"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("typo/secrets.key is not there"), "{}", ran.stderr);
    assert!(!home.path().join("typo").exists());
    std::fs::write(home.path().join("keys"), format!("{}\n", "11".repeat(32))).unwrap();
    let ran =
        home.run(&["secrets", "rotate-key", "--data-dir", ".", "--secrets-key-file", "keys", "--json", "-q"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), json!({"secrets": 0}));
    let key = std::fs::read_to_string(home.path().join("keys")).unwrap();
    assert!(key.trim().len() == 64 && !key.starts_with("11"), "a new key in the place of the old");
}
