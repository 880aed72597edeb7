//! Lists: complete, owned, newest first, in pages, filtered.

use serde_json::{Value, json};

use crate::harness::{Api, Server};

fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|row| row["sandboxID"].as_str().unwrap().to_owned()).collect()
}

async fn pages(api: &Api, limit: usize) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut cursor = String::new();
    loop {
        let answer = api.get(&format!("/api/sandboxes?limit={limit}{cursor}")).await.is(200);
        pages.push(ids(&answer.json()));
        match answer.headers.get("x-next-cursor") {
            Some(next) => cursor = format!("&cursor={}", next.to_str().unwrap()),
            None => return pages,
        }
    }
}

#[tokio::test]
async fn pages_hold_everything_once_newest_first() {
    let server = Server::start().await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(server.acme.sandbox().await);
    }
    server.rival.sandbox().await;
    made.reverse();
    assert_eq!(ids(&server.acme.get("/api/sandboxes").await.json()), made);
    for limit in [1, 2, 3, 7, 200] {
        let pages = pages(&server.acme, limit).await;
        assert!(pages.iter().all(|page| page.len() <= limit), "{pages:?}");
        assert_eq!(pages.len(), made.len().div_ceil(limit), "the last page has no cursor");
        assert_eq!(pages.concat(), made);
    }
    for bad in ["limit=0", "limit=201", "limit=x", "cursor=x", "status=happy", "status=%ff"] {
        server.acme.get(&format!("/api/sandboxes?{bad}")).await.is(400).error();
    }
}

#[tokio::test]
async fn filters_narrow_and_combine() {
    let server = Server::start().await;
    let make = async |metadata: Value, tags: Value| {
        server.acme.create(json!({"metadata": metadata, "tags": tags})).await["sandboxID"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let a = make(json!({"team": "x", "k=&": "ü"}), json!({"env": "dev"})).await;
    let b = make(json!({"team": "x"}), json!({"env": "prod"})).await;
    let c = make(json!({"team": "y"}), json!({})).await;
    server.acme.delete(&format!("/api/sandboxes/{c}")).await.is(204);
    server.acme.post(&format!("/api/sandboxes/{b}/hibernate"), json!({})).await.is(200);
    server.acme.get("/api/sandboxes?unknown=1").await.is(400).error();
    for (query, found) in [
        ("", vec![&c, &b, &a]),
        ("status=running", vec![&a]),
        ("status=running,hibernated", vec![&b, &a]),
        ("metadata.team=x", vec![&b, &a]),
        ("metadata.team=x&tag.env=prod", vec![&b]),
        ("metadata.team=y&status=running", vec![]),
        ("metadata.k%3D%26=%C3%BC", vec![&a]),
        ("tag.team=x", vec![]),
        ("tag.env=dev' OR '1'='1", vec![]),
    ] {
        let list = server.acme.get(&format!("/api/sandboxes?{query}")).await.is(200).json();
        assert_eq!(ids(&list).iter().collect::<Vec<_>>(), found, "{query}");
        assert!(
            list.as_array().unwrap().iter().all(|row| row.get("token").is_none()),
            "lists hold no credentials"
        );
    }
}
