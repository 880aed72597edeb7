//! The document that describes the API, kept beside the code so that a change of the contract is seen in review.

use crate::harness::Server;

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
