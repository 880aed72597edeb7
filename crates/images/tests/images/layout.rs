//! Images out of layers, and archives out of images.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;
use warren_images::{ImageError, Limits, Source, Unpacked, read_archive};

use crate::tars::{Item, tar};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The documents of an image. Change what is to be wrong before [`Image::blobs`].
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// As they are stored.
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: Value,
    pub(crate) media_type: String,
}

impl Image {
    /// Layers that are gzipped.
    pub(crate) fn new(layers: &[Vec<u8>]) -> Self {
        Self::stored(layers, gzip)
    }

    pub(crate) fn stored(layers: &[Vec<u8>], store: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "os": "linux",
            "architecture": architecture(),
            "config": { "Env": ["PATH=/bin", "A=b=c"], "User": "node", "WorkingDir": "/app", "Cmd": ["sh"], "Entrypoint": ["/init"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let layers = layers.iter().map(|layer| store(layer)).collect();
        Self { layers, config, media_type: GZIP.to_owned() }
    }

    pub(crate) fn manifest(&self) -> Value {
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| descriptor(&self.media_type, layer)).collect();
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &bytes(&self.config)), "layers": layers })
    }

    /// Everything that is found by digest, and the digest of the manifest.
    pub(crate) fn blobs(&self) -> (BTreeMap<String, Vec<u8>>, String) {
        let manifest = bytes(&self.manifest());
        let name = digest(&manifest);
        let all = self.layers.iter().cloned().chain([bytes(&self.config), manifest]);
        (all.map(|blob| (digest(&blob), blob)).collect(), name)
    }

    /// A tar of an OCI layout.
    pub(crate) fn layout(&self) -> Vec<u8> {
        let manifest = descriptor(MANIFEST, &bytes(&self.manifest()));
        layout(&json!({ "schemaVersion": 2, "manifests": [manifest] }), self.blobs().0)
    }

    /// What `docker save` wrote before it knew of OCI layouts: a link where a layer is there already.
    pub(crate) fn saved(&self, tags: &[&str]) -> Vec<u8> {
        let config = format!("{}.json", &digest(&bytes(&self.config))["sha256:".len()..]);
        let mut items = vec![Item::file(&config, bytes(&self.config))];
        let mut names = Vec::new();
        for (place, layer) in self.layers.iter().enumerate() {
            let name = format!("{place}/layer.tar");
            items.push(Item::folder(format!("{place}/")));
            items.push(match self.layers[..place].iter().position(|earlier| earlier == layer) {
                Some(earlier) => Item::symlink(&name, format!("../{earlier}/layer.tar")),
                None => Item::file(&name, layer),
            });
            names.push(name);
        }
        items.push(Item::file(
            "manifest.json",
            bytes(&json!([{ "Config": config, "RepoTags": tags, "Layers": names }])),
        ));
        items.push(Item::file("repositories", "{}"));
        tar(&items)
    }
}

pub(crate) fn layout(index: &Value, blobs: BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut items = vec![
        Item::folder("blobs/"),
        Item::folder("blobs/sha256/"),
        Item::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        Item::file("index.json", bytes(index)),
    ];
    items.extend(
        blobs.into_iter().map(|(digest, blob)| Item::file(format!("blobs/sha256/{}", &digest[7..]), blob)),
    );
    tar(&items)
}

pub(crate) fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

pub(crate) fn bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).unwrap()
}

/// A source, and the folder its layers are in.
pub(crate) fn read(archive: &[u8], limits: &Limits) -> Result<(Source, TempDir), ImageError> {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let source = runtime.block_on(read_archive(archive, folder.path(), limits, |_| {}))?;
    Ok((source, folder))
}

/// Unpacks layers as an image would be, into a directory beside which nothing else is.
pub(crate) fn unpack_into(layers: &[Vec<u8>], root: &Path, limits: &Limits) -> Result<Unpacked, ImageError> {
    let (source, _folder) = read(&Image::stored(layers, <[u8]>::to_vec).layout(), limits)?;
    source.unpack(root, limits, &AtomicBool::new(false), &|_| {})
}

pub(crate) fn unpack(layers: &[&[Item]]) -> Result<(TempDir, Unpacked), ImageError> {
    let root = tempfile::tempdir().unwrap();
    let layers: Vec<Vec<u8>> = layers.iter().map(|items| tar(items)).collect();
    let unpacked = unpack_into(&layers, root.path(), &Limits::default())?;
    Ok((root, unpacked))
}

/// The sentence that an unpacking is refused with.
pub(crate) fn refused(layers: &[&[Item]]) -> String {
    unpack(layers).expect_err("it is refused").to_string()
}

/// All paths below a directory, sorted; folders with a slash.
pub(crate) fn paths(root: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                paths.push(format!("{path}/"));
            } else {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths
}
