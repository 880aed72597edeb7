//! The document that describes the API, kept beside the code so that a change of the contract is seen in review.

use crate::harness::Server;

#[tokio::test]
async fn every_operation_says_what_its_answers_mean() {
    let document = Server::start().await.acme.get("/openapi.json").await.is(200).json();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            let responses = operation["responses"].as_object().unwrap();
            for (status, response) in responses {
                let description = response["description"].as_str().unwrap_or_default();
                assert!(!description.is_empty(), "{method} {path} {status}");
                let error = &response["content"]["application/json"]["schema"]["$ref"];
                let is_error = matches!(status.as_bytes()[0], b'4' | b'5' | b'd') && method != "head";
                assert!(!is_error || error == "#/components/schemas/ErrorBody", "{method} {path} {status}");
            }
            let is_guarded = operation["security"].as_array().is_some_and(|security| !security.is_empty());
            assert!(responses.contains_key("401") || !is_guarded, "{method} {path}");
            assert!(responses.contains_key("default"), "{method} {path}");
        }
    }
    assert!(operations > 80 && document["paths"]["/api/sandboxes/{id}/files"]["head"].is_object());
}

#[tokio::test]
async fn the_document_is_the_one_in_the_repository() {
    let served = Server::start().await.acme.get("/openapi.json").await.is(200).text + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &served).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == served,
        "openapi.json is not what the handlers say; run this test with UPDATE_OPENAPI=1 and look at the difference"
    );
}
