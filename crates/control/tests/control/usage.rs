//! Usage: what follows from states, what is sampled, sums, groups, pages, restarts.

use std::time::Duration;

use serde_json::{Value, json};
use warren_control::Config;

use crate::harness::{Api, Server, eventually};
use crate::sim::SimNode;

const LOOK: Duration = Duration::from_millis(20);

async fn start() -> Server {
    Server::start_with(SimNode::new(), tempfile::TempDir::new().unwrap(), |config| config.usage_every = LOOK)
        .await
}

async fn of(api: &Api, query: &str) -> Value {
    api.get(&format!("/api/usage?{query}")).await.is(200).json()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

/// The points of a sandbox's last hour; their sums are its totals.
async fn totals(api: &Api, id: &str) -> Value {
    let usage = api.get(&format!("/api/sandboxes/{id}/usage")).await.is(200).json();
    let points = usage["points"].as_array().unwrap();
    let totals = &usage["totals"];
    for name in ["memoryAllocatedGbSeconds", "memoryUsedGbSeconds", "uptimeSeconds"] {
        let sum: f64 = points.iter().map(|point| number(&point[name])).sum();
        assert!((sum - number(&totals[name])).abs() < 1e-9, "{name}: {usage}");
    }
    assert!(totals["uptimeSeconds"].is_i64() && points.iter().all(|point| point["uptimeSeconds"].is_i64()));
    totals.clone()
}

async fn allocated(api: &Api, id: &str) -> f64 {
    number(&totals(api, id).await["memoryAllocatedGbSeconds"])
}

/// Waits until more has come together, and says how much.
async fn grows(api: &Api, id: &str) -> f64 {
    let before = allocated(api, id).await;
    eventually("it counts", async || Some(allocated(api, id).await).filter(|now| *now > before)).await
}

/// Asserts that nothing comes together any more.
async fn stands(api: &Api, id: &str) -> f64 {
    let before = allocated(api, id).await;
    tokio::time::sleep(2 * LOOK).await;
    assert!((allocated(api, id).await - before).abs() < 1e-12, "it does not count");
    before
}

#[tokio::test]
async fn memory_counts_while_a_sandbox_runs_and_stays_when_it_has_ended() {
    let server = start().await;
    let acme = &server.acme;
    let id = acme.create(json!({"memoryMB": 1024, "alias": "mine"})).await["sandboxID"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/api/sandboxes/{id}");
    server.node.state().usage.insert(id.parse().unwrap(), 512 << 20);
    grows(acme, &id).await;
    let seen = eventually("a look was taken", async || {
        Some(totals(acme, &id).await).filter(|totals| totals["memoryUsedPeakMb"] == 512)
    })
    .await;
    let half = number(&seen["memoryAllocatedGbSeconds"]) / 2.0;
    assert!((number(&seen["memoryUsedGbSeconds"]) - half).abs() < 1e-6, "half of it is used: {seen}");
    assert_eq!(seen["memoryAllocatedPeakMb"], 1024);

    acme.post(&format!("{path}/hibernate"), json!({})).await.is(200);
    let slept = stands(acme, &id).await;
    acme.post(&format!("{path}/wake"), json!({})).await.is(200);
    assert!(grows(acme, &id).await > slept);
    acme.post(&format!("{path}/scale"), json!({"memoryMB": 8192})).await.is(200);
    grows(acme, &id).await;
    assert_eq!(totals(acme, &id).await["memoryAllocatedPeakMb"], 8192);

    acme.delete(&path).await.is(204);
    let whole = stands(acme, &id).await;
    let usage = acme.get(&format!("{path}/usage")).await.json();
    assert_eq!((&usage["sandboxId"], &usage["alias"]), (&json!(id), &json!("mine")));
    let all = of(acme, "groupBy=sandbox").await;
    let item = &all["items"][0];
    assert_eq!(
        (&item["sandboxId"], &item["alias"], &item["status"]),
        (&json!(id), &json!("mine"), &json!("stopped"))
    );
    assert_eq!(item["tagsLastUpdatedAt"], Value::Null);
    for counted in [item, &all["total"]] {
        assert!((number(&counted["memoryGbSeconds"]) - whole).abs() < 0.01, "{all} {whole}");
        assert!(number(&counted["diskOverageGbSeconds"]) == 0.0);
    }
    assert!(all.get("untagged").is_none() && all["nextCursor"].is_null());

    server.rival.get(&format!("{path}/usage")).await.is(404);
    acme.get("/api/sandboxes/sb-00000000/usage").await.is(404);
    acme.sandbox().await;
    let future = of(acme, "groupBy=sandbox&from=2199-01-01&to=2199-01-31").await;
    assert_eq!((&future["items"], &future["total"]["memoryGbSeconds"]), (&json!([]), &json!(0.0)));
    assert_eq!(of(&server.rival, "groupBy=sandbox").await["items"], json!([]));
}

#[tokio::test]
async fn disk_beyond_what_everybody_has_counts_also_while_it_sleeps() {
    let server = start().await;
    let acme = &server.acme;
    let id = acme.create(json!({"memoryMB": 1024, "diskMB": 40960})).await["sandboxID"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/api/sandboxes/{id}");
    let over = async || number(&of(acme, "groupBy=sandbox").await["total"]["diskOverageGbSeconds"]);
    acme.post(&format!("{path}/hibernate"), json!({})).await.is(200);
    let asleep = over().await;
    eventually("it counts", async || (over().await > asleep).then_some(())).await;
    let memory = stands(acme, &id).await;
    acme.delete(&path).await.is(204);
    let all = of(acme, "groupBy=sandbox&sort=-diskOverageGbSeconds").await;
    assert!(
        number(&all["total"]["diskOverageGbSeconds"]) > 20.0 * memory,
        "20 GB, for longer than memory: {all}"
    );
}

#[tokio::test]
async fn tags_group_filter_and_leave_a_rest() {
    let server = start().await;
    let acme = &server.acme;
    let mut ids = Vec::new();
    for tags in [
        json!({"team": "a", "env": "prod"}),
        json!({"team": "a"}),
        json!({"team": "b", "env": "dev"}),
        json!({}),
    ] {
        let made = acme.create(json!({"memoryMB": 1024, "tags": tags})).await;
        ids.push(made["sandboxID"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    }
    let all = of(acme, "groupBy=tag:team").await;
    let memory = |value: &Value| number(&value["memoryGbSeconds"]);
    let groups: Vec<_> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["tagValue"].as_str().unwrap(), &item["sandboxCount"]))
        .collect();
    assert_eq!(groups.len(), 2);
    assert!(groups.contains(&("a", &json!(2))) && groups.contains(&("b", &json!(1))), "{all}");
    assert!(all["items"].as_array().unwrap().iter().all(|item| item["tagKey"] == "team"));
    assert_eq!(all["untagged"]["sandboxCount"], 1);
    let sum: f64 =
        all["items"].as_array().unwrap().iter().map(memory).sum::<f64>() + memory(&all["untagged"]);
    assert!((sum - memory(&all["total"])).abs() < 1e-9, "{all}");

    for (filter, expected) in [
        ("filter[tag:team]=a", vec![0, 1]),
        ("filter[tag:team]=a,b", vec![0, 1, 2]),
        ("filter[tag:team]=a&filter[tag:env]=prod", vec![0]),
        ("filter%5Btag%3Ateam%5D=a&filter[tag:env]=", vec![1]),
        ("filter[tag:env]=prod,", vec![0, 1, 3]),
        ("filter[tag:team]=", vec![3]),
        ("filter[tag:team]=none", vec![]),
    ] {
        let found = of(acme, &format!("groupBy=sandbox&{filter}")).await;
        let mut got: Vec<_> = found["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["sandboxId"].as_str().unwrap())
            .collect();
        got.sort_unstable();
        let mut expected: Vec<_> = expected.into_iter().map(|at: usize| ids[at].as_str()).collect();
        expected.sort_unstable();
        assert_eq!(got, expected, "{filter}");
    }
    for bad in [
        "",
        "groupBy=team",
        "groupBy=sandbox&filter[tag:a]=x&filter[tag:a]=y",
        "groupBy=sandbox&limit=501",
        "groupBy=sandbox&from=2026-01-01&to=2026-06-01",
        "groupBy=sandbox&cursor=x",
        "groupBy=sandbox&sort=name",
    ] {
        acme.get(&format!("/api/usage?{bad}")).await.is(400);
    }
    acme.get(&format!("/api/sandboxes/{}/usage?from=2026-01-01&to=2026-03-01", ids[0])).await.is(400);
}

#[tokio::test]
async fn pages_have_everything_once_while_it_goes_on_counting() {
    let server = start().await;
    let acme = &server.acme;
    let mut made = Vec::new();
    for number in 0..7 {
        let memory = [1024, 4096, 8192][number % 3];
        let body = json!({"memoryMB": memory, "tags": {"n": format!("ü,{number}")}});
        made.push(acme.create(body).await["sandboxID"].as_str().unwrap().to_owned());
    }
    for (group, name) in [("sandbox", "sandboxId"), ("tag:n", "tagValue")] {
        let (mut seen, mut cursor, mut first) = (Vec::new(), String::new(), None::<Value>);
        loop {
            let page = of(acme, &format!("groupBy={group}&limit=3{cursor}")).await;
            let first = first.get_or_insert_with(|| page.clone());
            assert_eq!(
                (&page["from"], &page["to"], &page["total"]),
                (&first["from"], &first["to"], &first["total"])
            );
            seen.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let mut names: Vec<_> = seen.iter().map(|item| item[name].as_str().unwrap()).collect();
        let amounts: Vec<_> = seen.iter().map(|item| number(&item["memoryGbSeconds"])).collect();
        assert!(amounts.is_sorted_by(|a, b| a >= b), "largest first: {amounts:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), seen.len()), (made.len(), made.len()), "{group}");
    }
}

#[tokio::test]
async fn what_ran_through_a_restart_counts_and_what_did_not_ends_when_it_was_last_seen() {
    let server = start().await;
    let (through, ended) = (server.acme.sandbox().await, server.acme.sandbox().await);
    grows(&server.acme, &ended).await;
    let key = server.acme.key.clone();
    let (node, dir) = server.stop().await;
    let mark = std::time::Instant::now();
    node.state().sandboxes.remove(&ended.parse().unwrap());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let server = Server::start_with(node, dir, |config| config.usage_every = LOOK).await;
    let acme = Api { key, ..server.acme.clone() };
    assert_eq!(acme.status(&ended).await, "error");
    let (up, last) = (grows(&acme, &through).await, stands(&acme, &ended).await);
    let away = mark.elapsed().as_secs_f64() * 4.0;
    assert!(up > 0.3 * 4.0, "the time without a server counts: {up}");
    assert!(up - last > 0.25 * 4.0 && up - last < away + 4.0, "and not for what ended in it: {up} {last}");
}

#[tokio::test]
async fn what_begins_to_run_is_looked_at_soon_and_what_is_known_is_not_looked_at_again() {
    let hour = |config: &mut Config| config.usage_every = Duration::from_secs(3600);
    let server = Server::start_with(SimNode::new(), tempfile::TempDir::new().unwrap(), hour).await;
    let looked_at = async |id: &str, mb: u64| {
        server.node.state().usage.insert(id.parse().unwrap(), mb << 20);
        eventually("a look was taken", async || {
            (totals(&server.acme, id).await["memoryUsedPeakMb"] == mb).then_some(())
        })
        .await;
    };
    let known = server.acme.sandbox().await;
    looked_at(&known, 100).await;
    server.node.state().usage.insert(known.parse().unwrap(), 300 << 20);
    let new = server.acme.sandbox().await;
    looked_at(&new, 200).await;
    assert_eq!(totals(&server.acme, &known).await["memoryUsedPeakMb"], 100, "it waits for the look at all");
}
