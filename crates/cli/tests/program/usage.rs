//! `warren usage`.

use serde_json::{Value, json};

use crate::harness::{Home, ID};
use crate::server::Server;

const SORT: &str = "sort=-memoryGbSeconds";

fn of_all(group: &str, items: &Value, next: Option<&str>) -> Value {
    json!({
        "from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z", "groupBy": group, "items": items,
        "total": {"memoryGbSeconds": 12.5, "diskOverageGbSeconds": 0.0}, "nextCursor": next, "fromTheFuture": 1,
    })
}

fn sandbox(id: &str, memory: f64) -> Value {
    json!({
        "sandboxId": id, "alias": "mine\u{1b}[2J", "status": "stopped", "tags": {"team": "a"}, "tagsLastUpdatedAt": null,
        "memoryGbSeconds": memory, "diskOverageGbSeconds": 0.0,
    })
}

#[test]
fn usage_of_all_sandboxes_is_a_table_with_a_total() {
    let server = Server::start();
    let home = Home::of(&server);
    let first = of_all("sandbox", &json!([sandbox(ID, 10.0)]), Some("more"));
    let line = format!("GET /api/usage?groupBy=sandbox&{SORT}");
    server.answer(&line, 200, &first);
    let ran = home.run(&["usage"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("SANDBOX      ALIAS") && lines[0].ends_with("GB S"), "{lines:?}");
    assert!(lines[1].contains("mine\\u{1b}[2J") && lines[1].contains("team=a  10.00"), "{lines:?}");
    assert!(lines[2].starts_with("(total)") && lines[2].contains("12.50"), "{lines:?}");
    assert!(ran.stderr.contains("--all"), "{}", ran.stderr);
    let ran = home.run(&["usage", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), first, "as it was sent");

    let second = of_all("sandbox", &json!([sandbox("sb-0123abce", 2.5)]), None);
    server.answer(&format!("{line}&cursor=more"), 200, &second);
    let ran = home.run(&["usage", "--all", "--json"]);
    let all: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((all["items"].as_array().unwrap().len(), &all["nextCursor"]), (2, &Value::Null));
    assert_eq!(ran.stderr, "");
}

#[test]
fn usage_is_grouped_by_a_tag_and_filtered() {
    let server = Server::start();
    let home = Home::of(&server);
    let mut usage = of_all(
        "tag:team",
        &json!([{"tagKey": "team", "tagValue": "a", "memoryGbSeconds": 10.0, "diskOverageGbSeconds": 1.0, "sandboxCount": 3}]),
        None,
    );
    usage["untagged"] = json!({"memoryGbSeconds": 2.5, "diskOverageGbSeconds": 0.0, "sandboxCount": 1});
    let asked = "GET /api/usage?groupBy=tag%3Ateam&from=2026-01-01T00%3A00%3A00Z&to=2026-01-31T12%3A00%3A00Z\
                 &filter%5Btag%3Aenv%5D=prod%2Cdev&sort=-diskOverageGbSeconds&limit=5";
    server.answer(asked, 200, &usage);
    let window = ["--since", "2026-01-01", "--until", "2026-01-31T12:00:00Z"];
    let rest = ["-t", "env=prod", "-t", "env=dev", "--sort", "disk", "--limit", "5"];
    let ran = home.run(&[&["usage", "--by", "tag:team"][..], &window[..], &rest[..]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let words: Vec<Vec<&str>> = ran.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[1], ["a", "3", "10.00", "1.00"]);
    assert_eq!(words[2], ["(without", "it)", "1", "2.50", "0.00"]);
    assert_eq!(words[3], ["(total)", "-", "12.50", "0.00"]);
    assert_eq!(home.run(&["usage", "--since", "yesterday"]).code, 2);
}

#[test]
fn usage_of_one_sandbox_has_totals_and_minutes() {
    let server = Server::start();
    let home = Home::of(&server);
    let usage = json!({
        "sandboxId": ID, "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T01:00:00Z",
        "totals": {"memoryAllocatedGbSeconds": 240.0, "memoryUsedGbSeconds": 1.234, "uptimeSeconds": 60,
                   "memoryAllocatedPeakMb": 4096, "memoryUsedPeakMb": 77},
        "points": [{"ts": "2026-01-01T00:10:00Z", "memoryAllocatedGbSeconds": 240.0, "memoryUsedGbSeconds": 1.234,
                    "uptimeSeconds": 60, "allocatedMemoryMb": 4096, "usedMemoryMbAvg": 21, "usedMemoryMbPeak": 77}],
    });
    server.answer(&format!("GET /api/sandboxes/{ID}/usage"), 200, &usage);
    let ran = home.run(&["usage", ID]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for row in
        ["ran           60 s", "memory given  240.00 GB s", "memory used   1.23 GB s", "most used     77 MB"]
    {
        assert!(ran.stdout.lines().any(|line| line == row), "{row} is not in:\n{}", ran.stdout);
    }
    let ran = home.run(&["usage", ID, "--minutes"]);
    let words: Vec<&str> = ran.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words, ["2026-01-01T00:10:00Z", "60", "4096", "21", "77"]);
    let ran = home.run(&["usage", ID, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), usage);
}
