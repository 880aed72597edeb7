//! Archives: what tools write, and what nobody should.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use warren_images::{ImageError, Limits, read_archive};

use crate::layout::{INDEX, Image, MANIFEST, architecture, bytes, descriptor, digest, gzip, layout, read};
use crate::tars::{Item, tar};

fn image() -> Image {
    Image::new(&[tar(&[Item::file("a", "one")]), tar(&[Item::file("b", "two")])])
}

fn refused(archive: &[u8]) -> String {
    read(archive, &Limits::default()).expect_err("it is refused").to_string()
}

fn names(archive: &[u8]) -> (Vec<String>, Option<String>, String) {
    let (source, _folder) = read(archive, &Limits::default()).unwrap();
    let root = tempfile::tempdir().unwrap();
    source.unpack(root.path(), &Limits::default(), &AtomicBool::new(false), &|_| {}).unwrap();
    (crate::layout::paths(root.path()), source.reference, source.digest)
}

#[test]
fn a_layout_is_read_with_its_configuration() {
    let image = image();
    let (source, _folder) = read(&image.layout(), &Limits::default()).unwrap();
    assert_eq!(source.digest, image.blobs().1);
    let config = &source.config;
    assert_eq!((config.env["A"].as_str(), config.env.len()), ("b=c", 2));
    assert_eq!((config.user.as_str(), config.workdir.as_deref()), ("node", Some("/app")));
    assert_eq!((config.entrypoint[0].as_str(), config.cmd[0].as_str()), ("/init", "sh"));
    assert_eq!(names(&image.layout()).0, ["a", "b"]);
    // The whole of it compressed.
    assert_eq!(names(&gzip(&image.layout())).0, ["a", "b"]);
}

#[test]
fn both_forms_of_docker_save_are_read() {
    let mut image = image();
    image.layers.push(image.layers[0].clone());
    let ids = image.config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    ids.push(ids[0].clone());
    let (paths, reference, saved) = names(&image.saved(&["node:22", "node:lts"]));
    assert_eq!((paths.len(), reference.as_deref()), (2, Some("docker.io/library/node:22")));
    assert_eq!(saved, digest(&bytes(&image.config)), "there is no manifest to go by");
    let mut manifest = descriptor(MANIFEST, &bytes(&image.manifest()));
    manifest["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/node:22", "org.opencontainers.image.ref.name": "22" });
    let newer =
        layout(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] }), image.blobs().0);
    let (paths, reference, _) = names(&newer);
    assert_eq!((paths.len(), reference.as_deref()), (2, Some("docker.io/library/node:22")));
}

#[test]
fn the_image_for_this_host_is_chosen() {
    let (ours, mut other) = (image(), Image::new(&[tar(&[Item::file("other", "")])]));
    other.config["architecture"] = json!("s390x");
    let mut blobs = ours.blobs().0;
    blobs.extend(other.blobs().0);
    let with = |image: &Image, os: &str, architecture: &str| {
        let mut manifest = descriptor(MANIFEST, &bytes(&image.manifest()));
        manifest["platform"] = json!({ "os": os, "architecture": architecture });
        manifest
    };
    let unknown = with(&other, "unknown", "unknown");
    let index = json!({ "schemaVersion": 2, "manifests": [unknown, with(&other, "linux", "s390x"), with(&ours, "linux", architecture())] });
    let inner = bytes(&index);
    blobs.insert(digest(&inner), inner.clone());
    let outer = json!({ "schemaVersion": 2, "manifests": [descriptor(INDEX, &inner)] });
    assert_eq!(names(&layout(&outer, blobs.clone())).2, ours.blobs().1);
    let index = json!({ "schemaVersion": 2, "manifests": [with(&other, "linux", "s390x"), with(&other, "windows", "amd64")] });
    let error = refused(&layout(&index, blobs.clone()));
    assert!(
        error.contains(&format!("nothing for linux/{}", architecture())) && error.contains("linux/s390x"),
        "{error}"
    );
    // It says nothing of a platform, but its configuration does.
    let error = refused(&other.layout());
    assert!(error.contains("it is for `linux/s390x`"), "{error}");
}

#[test]
fn an_index_that_leads_round_in_circles_or_on_and_on_is_left() {
    let image = image();
    let mut blobs = image.blobs().0;
    let mut last = descriptor(MANIFEST, &bytes(&image.manifest()));
    for _ in 0..5 {
        let index = bytes(&json!({ "schemaVersion": 2, "manifests": [last] }));
        last = descriptor(INDEX, &index);
        blobs.insert(digest(&index), index);
    }
    let error = refused(&layout(&json!({ "schemaVersion": 2, "manifests": [last] }), blobs));
    assert!(error.contains("without end"), "{error}");
}

#[test]
fn several_images_are_one_too_many() {
    let (one, two) = (image(), Image::new(&[]));
    let mut blobs = one.blobs().0;
    blobs.extend(two.blobs().0);
    let manifests = [&one, &two].map(|image| descriptor(MANIFEST, &bytes(&image.manifest())));
    let error = refused(&layout(&json!({ "schemaVersion": 2, "manifests": manifests }), blobs));
    assert!(error.contains("several images"), "{error}");
    let entry = json!({ "Config": "c.json", "RepoTags": ["x:1"], "Layers": [] });
    let archive = tar(&[Item::file("manifest.json", bytes(&json!([entry, entry])))]);
    assert!(refused(&archive).contains("2 images in it (`x:1`, `x:1`)"));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let image = image();
    assert!(refused(&tar(&[Item::file("x", "")])).contains("neither index.json"));
    assert!(refused(b"").contains("neither index.json"));
    assert!(refused(b"no tar at all").contains("ends within"));
    assert!(refused(&[b'x'; 2048]).contains("no tar"));
    let whole = image.layout();
    // All of its last file; only what fills up its last block may be missing.
    assert!(refused(&whole[..whole.len() - 1536]).contains("ends within"));
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFEST, &bytes(&image.manifest()))] });
    for (missing, _) in image.blobs().0 {
        let mut blobs = image.blobs().0;
        blobs.remove(&missing);
        assert!(refused(&layout(&index, blobs.clone())).contains(&format!("the archive has no {missing}")));
        blobs.insert(missing.clone(), b"something else".to_vec());
        assert!(refused(&layout(&index, blobs)).contains(&format!("something else than {missing}")));
    }
    let twice = tar(&[Item::file("a", ""), Item::file("./a", "")]);
    assert!(refused(&twice).contains("`a` is twice"));
    let mut wrong = image.clone();
    wrong.config["rootfs"]["diff_ids"] = json!([]);
    assert!(refused(&wrong.layout()).contains("it has 2 layers, its configuration says 0"));
    let config = bytes(&image.config);
    let named = format!("{}.json", &digest(b"other")[7..]);
    let saved = json!([{ "Config": named, "Layers": [] }]);
    let archive = tar(&[Item::file(&named, config), Item::file("manifest.json", bytes(&saved))]);
    assert!(refused(&archive).contains("its configuration is not"));
    let links = [("a", "b"), ("b", "a")].map(|(name, target)| Item::symlink(name, target));
    let saved = json!([{ "Config": "a", "Layers": [] }]);
    let archive = tar(&[&links[..], &[Item::file("manifest.json", bytes(&saved))]].concat());
    assert!(refused(&archive).contains("has no `a`"));
}

#[test]
fn nothing_of_an_archive_is_written_under_its_own_name() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("x").to_str().unwrap().to_owned();
    let folder = outside.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let archive = tar(&[
        Item::file(&target, "x"),
        Item::file("../y", "y"),
        Item::symlink("member-3", &target),
        Item::file("member-3/z", "z"),
        Item::new(b'3', "device"),
    ]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let read = runtime.block_on(read_archive(&archive[..], &folder, &Limits::default(), |_| {}));
    assert!(read.is_err());
    assert_eq!(
        crate::layout::paths(outside.path()),
        ["folder/", "folder/member-0", "folder/member-1", "folder/member-2"]
    );
}

#[test]
fn archives_are_bounded() {
    let image = Image::stored(&[tar(&[Item::file("a", vec![b'x'; 1 << 20])])], <[u8]>::to_vec);
    let sentence = |limits: &Limits, archive: &[u8]| read(archive, limits).unwrap_err().to_string();
    let limits = Limits::default();
    assert!(
        sentence(&Limits { blob_bytes: 1 << 20, ..limits.clone() }, &image.layout())
            .contains("1048576 are taken")
    );
    assert!(
        sentence(&Limits { stored_bytes: 1 << 20, ..limits.clone() }, &image.layout()).contains("more than")
    );
    assert!(
        sentence(&Limits { stored_bytes: 1 << 20, ..limits.clone() }, &gzip(&image.layout()))
            .contains("more than")
    );
    assert!(
        sentence(&Limits { manifest_bytes: 10, ..limits.clone() }, &image.layout()).contains("its index has")
    );
    assert!(
        sentence(&Limits { config_bytes: 10, ..limits.clone() }, &image.layout())
            .contains("its configuration has")
    );
    let many: Vec<Item> = (0..10_001).map(|place| Item::symlink(format!("l{place}"), "x")).collect();
    assert!(sentence(&limits, &tar(&many)).contains("more than 10000 members"));
}

#[tokio::test]
async fn an_archive_that_stops_coming_is_given_up() {
    let (mut writer, reader) = tokio::io::duplex(1 << 20);
    let archive = image().layout();
    writer.write_all(&archive[..2000]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { stall: Duration::from_millis(50), ..Limits::default() };
    let error = read_archive(reader, folder.path(), &limits, |_| {}).await.unwrap_err();
    assert!(matches!(error, ImageError::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn it_is_told_how_much_has_come() {
    let archive = tar(&[Item::file("x", vec![0; 9 << 20])]);
    let folder = tempfile::tempdir().unwrap();
    let steps = Mutex::new(Vec::new());
    let limits = Limits::default();
    let read = read_archive(&archive[..], folder.path(), &limits, |step| {
        steps.lock().unwrap().push(step.done_bytes);
    });
    assert!(read.await.is_err());
    let steps = steps.into_inner().unwrap();
    assert!(steps.len() >= 2 && steps.is_sorted(), "{steps:?}");
}
