use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{self, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use serde_json::json;
use tokio::sync::Semaphore;
use warren_images::Reference;
use warren_node_api::TemplateLine;
use warren_types::ErrorKind;

use super::import::Wanted;
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP: mounting an image needs root");
    }
    root
}

/// An image with one layer, by the digests of its parts.
struct Image {
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", warren_types::hex(&Sha256::digest(bytes)))
}

impl Image {
    /// With those files, whose commands are those of `user`.
    fn new(files: &[(&str, &str)], user: &str) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_uid(5);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        let layer = tar.into_inner().unwrap();
        let config = json!({
            "os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "config": {"User": user, "WorkingDir": "/srv", "Env": ["A=1"], "Cmd": ["serve"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let part = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": part("config.v1+json", &config), "layers": [part("layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let name = digest(&manifest);
        let blobs = [layer, config, manifest].map(|blob| (digest(&blob), blob));
        Self { blobs: blobs.into(), manifest: name }
    }

    /// As an OCI layout in a tar stream.
    fn archive(&self) -> Body {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes).unwrap();
        };
        let manifest = &self.blobs[&self.manifest];
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.manifest, "size": manifest.len(),
        }]});
        add("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#);
        add("index.json", index.to_string().as_bytes());
        for (name, blob) in &self.blobs {
            add(&format!("blobs/{}", name.replace(':', "/")), blob);
        }
        tar.into_inner().unwrap().into()
    }
}

/// A registry that has one image.
struct Registry {
    image: Image,
    /// How often a layer was asked for.
    layers: AtomicUsize,
    /// Layers that may be sent.
    permits: Semaphore,
}

impl Registry {
    async fn start(image: Image, permits: usize) -> (Arc<Self>, Reference) {
        let registry =
            Arc::new(Self { image, layers: AtomicUsize::new(0), permits: Semaphore::new(permits) });
        let router = Router::new()
            .route("/v2/", get(|| async {}))
            .route("/v2/test/manifests/{name}", get(manifest))
            .route("/v2/test/blobs/{name}", get(blob))
            .with_state(registry.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reference = format!("{}/test:latest", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (registry, reference.parse().unwrap())
    }

    fn wanted(&self, reference: &Reference) -> Wanted {
        let digest = self.image.manifest.clone();
        Wanted::Registry { reference: reference.clone(), digest, login: None }
    }

    fn asked(&self) -> usize {
        self.layers.load(Ordering::SeqCst)
    }
}

async fn manifest(
    State(registry): State<Arc<Registry>>,
    extract::Path(name): extract::Path<String>,
) -> Response {
    if name != registry.image.manifest && name != "latest" {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    }
    let body = Body::from(registry.image.blobs[&registry.image.manifest].clone());
    let head = Response::builder().header("content-type", "application/vnd.oci.image.manifest.v1+json");
    head.header("docker-content-digest", &registry.image.manifest).body(body).unwrap()
}

async fn blob(State(registry): State<Arc<Registry>>, extract::Path(name): extract::Path<String>) -> Response {
    let Some(blob) = registry.image.blobs.get(&name) else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    if !blob.starts_with(b"{") {
        registry.layers.fetch_add(1, Ordering::SeqCst);
        registry.permits.acquire().await.unwrap().forget();
    }
    Response::new(Body::from(blob.clone()))
}

/// Templates in `folder`, with an authority of that text.
fn open(folder: &Path, authority: &str, insecure: &[&Reference]) -> Arc<Templates> {
    std::fs::write(folder.join("base-digest.img"), "").unwrap();
    let hosts = insecure.iter().map(|reference| reference.registry().to_owned()).collect();
    let registries = Registries::new(Arc::new(|_| true), hosts, None).unwrap();
    let trusted = Trusted { authority: ("Test", authority.to_owned()), of_host: Vec::new() };
    Arc::new(Templates::open(folder.to_owned(), "base-digest", Means { registries, trusted }).unwrap())
}

async fn end(lines: impl Stream<Item = TemplateLine>) -> Result<TemplateReport, Error> {
    let mut lines = std::pin::pin!(lines);
    loop {
        let line = tokio::time::timeout(PATIENCE, lines.next()).await.unwrap();
        match line.expect("the last line says how it ended") {
            TemplateLine::Progress(_) => {}
            TemplateLine::Template(report) => return Ok(*report),
            TemplateLine::Error(error) => return Err(error),
        }
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Names in a folder, apart from that of `base`.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "base-digest.img").collect();
    names.sort();
    names
}

fn debugfs(image: &Path, command: &str) -> String {
    let output = std::process::Command::new("debugfs").args(["-R", command]).arg(image).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn an_archive_becomes_a_template_that_is_found_again() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let templates = open(folder.path(), "-----A-----\n", &[]);
    let image = Image::new(&[("etc/passwd", "root:x:0:0::/root:/bin/sh\n"), ("hello", "world")], "");
    let report = end(templates.import(Wanted::Archive(image.archive()))).await.unwrap();
    assert_eq!(report.name, name_of(&image.manifest));
    assert_eq!(report.digest, image.manifest);
    assert_eq!(report.settings.workdir.as_deref(), Some("/srv"));
    assert_eq!(report.settings.user.as_ref().unwrap().home, "/root");
    assert_eq!((report.envs["A"].as_str(), report.cmd.as_slice()), ("1", &["serve".to_owned()][..]));
    let file_system = templates.find(&report.name).unwrap();
    let on_volume = templates.image(&file_system);
    assert_eq!(debugfs(&on_volume, "cat /hello"), "world");
    assert!(debugfs(&on_volume, "stat /hello").contains("User:     5"));
    assert!(debugfs(&on_volume, "stat /proc").contains("Type: directory"));
    let check = std::process::Command::new("e2fsck").arg("-fn").arg(&on_volume).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    until("nothing else is left", || names(folder.path()).len() == 2).await;

    let again = end(templates.import(Wanted::Archive(image.archive()))).await.unwrap();
    assert_eq!(again, report);
    let reopened = open(folder.path(), "-----A-----\n", &[]);
    assert_eq!(reopened.list()[1..], *std::slice::from_ref(&report));
    assert_eq!(reopened.names(), ["base", &report.name]);
    assert_eq!(reopened.find(&report.name), Some(file_system));
}

#[tokio::test]
async fn identical_imports_are_one() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (registry, reference) = Registry::start(Image::new(&[("a", "b")], "7"), 0).await;
    let templates = open(folder.path(), "", &[&reference]);
    let import = || templates.import(registry.wanted(&reference));
    let (first, second, third) = (tokio::spawn(end(import())), tokio::spawn(end(import())), import());
    let mut third = Box::pin(third);
    third.next().await.unwrap();
    until("a layer is asked for", || registry.asked() == 1).await;
    // Who leaves takes nothing from those who stay.
    drop(third);
    registry.permits.add_permits(1);
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!(first, second);
    assert_eq!(first.reference, Some(reference.to_string()));
    let later = end(import()).await.unwrap();
    assert_eq!((later, registry.asked()), (first.clone(), 1));
    // What is here is found by its digest, whatever becomes of the registry.
    let gone: Reference = "127.0.0.1:1/test:latest".parse().unwrap();
    assert_eq!(end(templates.import(registry.wanted(&gone))).await.unwrap(), first);
    let moved = Wanted::Registry { reference, digest: format!("sha256:{}", "0".repeat(64)), login: None };
    let error = end(templates.import(moved)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "what was not asked for is not taken for it: {error:?}");
}

#[tokio::test]
async fn an_import_that_nobody_waits_for_is_called_off_and_can_be_begun_again() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (registry, reference) = Registry::start(Image::new(&[("a", "b")], "7"), 0).await;
    let templates = open(folder.path(), "", &[&reference]);
    let import = || templates.import(registry.wanted(&reference));
    let waiting = tokio::spawn(end(import()));
    until("a layer is asked for", || registry.asked() == 1).await;
    waiting.abort();
    until("nothing is left", || names(folder.path()).is_empty()).await;
    assert_eq!(templates.names(), ["base"]);
    registry.permits.add_permits(2);
    assert!(end(import()).await.is_ok());
}

#[tokio::test]
async fn an_image_that_is_refused_leaves_nothing() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let templates = open(folder.path(), "", &[]);
    let refused = async |image: Body| end(templates.import(Wanted::Archive(image))).await.unwrap_err();
    let nobody = Image::new(&[("a", "b")], "nobody");
    let error = refused(nobody.archive()).await;
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("nobody"), "{error:?}");
    let mut changed = Image::new(&[("a", "b")], "");
    for blob in changed.blobs.values_mut().filter(|blob| !blob.starts_with(b"{")) {
        blob[600] ^= 1;
    }
    assert_eq!(refused(changed.archive()).await.kind, ErrorKind::Invalid);
    assert_eq!(refused(Body::from("no archive")).await.kind, ErrorKind::Invalid);
    let in_the_way = Image::new(&[("etc/hosts/file", "")], "");
    let error = refused(in_the_way.archive()).await;
    assert!(
        error.kind == ErrorKind::Invalid && error.message.contains("/etc/hosts is to be a file"),
        "{error:?}"
    );
    // The folder its commands start in.
    let is_a_file = Image::new(&[("srv", "kept")], "");
    let error = refused(is_a_file.archive()).await;
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("/srv"), "{error:?}");
    until("nothing is left", || names(folder.path()).is_empty()).await;
}

#[tokio::test]
async fn what_was_cut_off_or_is_prepared_otherwise_now_is_swept() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let templates = open(folder.path(), "old", &[]);
    let image = Image::new(&[("a", "b")], "");
    let report = end(templates.import(Wanted::Archive(image.archive()))).await.unwrap();
    let file_system = templates.find(&report.name).unwrap();
    until("nothing else is left", || names(folder.path()).len() == 2).await;
    let kept = names(folder.path());
    std::fs::create_dir_all(folder.path().join("oci-1.unfinished-3/layers")).unwrap();
    std::fs::write(folder.path().join("x.unfinished.json"), "{").unwrap();
    std::fs::copy(templates.folder.join(format!("{file_system}.json")), folder.path().join("f.json"))
        .unwrap();

    let changed = open(folder.path(), "new", &[]);
    assert_eq!(changed.names(), ["base"], "nobody is to start from it any more");
    let known = changed.file_systems();
    assert!(known[&file_system].starts_with(&report.name), "but who has does: {known:?}");
    changed.remove_outdated(&BTreeSet::from([file_system.clone()]));
    std::fs::remove_file(folder.path().join("f.json")).unwrap();
    assert_eq!(names(folder.path()), kept);
    changed.remove_outdated(&BTreeSet::new());
    assert!(names(folder.path()).is_empty());
}

#[tokio::test]
async fn a_removal_that_does_not_come_to_its_end_is_taken_back() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let templates = open(folder.path(), "", &[]);
    let image = Image::new(&[("a", "b")], "");
    let report = end(templates.import(Wanted::Archive(image.archive()))).await.unwrap();
    let file_system = templates.find(&report.name).unwrap();
    let mut changing = templates.change().await;
    changing.forget(&report.name);
    assert_eq!(templates.find(&report.name), None);
    drop(changing);
    assert!(templates.find(&report.name).is_some());
    let mut changing = templates.change().await;
    changing.forget(&report.name);
    changing.remove(&file_system).await.unwrap();
    assert_eq!(templates.names(), ["base"]);
    until("nothing is left", || names(folder.path()).is_empty()).await;
}
