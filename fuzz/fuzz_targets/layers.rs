//! Layers, unpacked beside something that must stay as it is.
//!
//! The first byte says how the rest is read: as a layer, or as entries that are given headers with right checksums, which
//! a fuzzer would seldom find.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use aws_lc_rs::digest::{SHA256, digest};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use warren_images::{Limits, read_archive};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_all().build().unwrap());

const BLOCK: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    let Some((how, rest)) = bytes.split_first() else { return };
    let layers = if how & 1 == 0 { vec![rest.to_vec()] } else { entries(rest) };
    let folder = tempfile::tempdir().unwrap();
    let (root, stored) = (folder.path().join("root"), folder.path().join("stored"));
    for folder in [&root, &stored] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(folder.path().join("canary"), "sings").unwrap();
    let limits = Limits { unpacked_bytes: 1 << 20, entries: 1000, ..Limits::default() };
    let archive = saved(&layers);
    let source = RUNTIME.block_on(read_archive(&archive[..], &stored, &limits, |_| {}));
    if let Ok(source) = source {
        let _ = source.unpack(&root, &limits, &AtomicBool::new(false), &|_| {});
        let _ = warren_images::find_user(&root, "name:group");
        no_devices(&root);
    }
    assert_eq!(fs::read(folder.path().join("canary")).unwrap(), b"sings");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
});

/// What `docker save` would have written.
fn saved(layers: &[Vec<u8>]) -> Vec<u8> {
    let hex = |layer: &Vec<u8>| -> String {
        digest(&SHA256, layer).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    let names: Vec<String> = (0..layers.len()).map(|place| format!("{place}.tar")).collect();
    let config = serde_json::json!({ "os": "linux", "rootfs": { "diff_ids": diff_ids } });
    let manifest = serde_json::json!([{ "Config": "config", "Layers": names }]);
    let mut archive = Vec::new();
    entry(&mut archive, b'0', b"config", b"", config.to_string().as_bytes());
    entry(&mut archive, b'0', b"manifest.json", b"", manifest.to_string().as_bytes());
    for (name, layer) in names.iter().zip(layers) {
        entry(&mut archive, b'0', name.as_bytes(), b"", layer);
    }
    archive
}

/// Kind, and then name, link and data with their lengths before them; a kind of its own begins a layer.
fn entries(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    const KINDS: &[u8] = b"0012256345xLKSg7";
    let mut layers = vec![Vec::new()];
    while let Some((kind, rest)) = bytes.split_first() {
        bytes = rest;
        if *kind == 0xff && layers.len() < 4 {
            layers.push(Vec::new());
            continue;
        }
        let (name, link, data) = (field(&mut bytes), field(&mut bytes), field(&mut bytes));
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        let layer = layers.last_mut().unwrap();
        entry(layer, kind, name, &link[..link.len().min(100)], data);
    }
    layers
}

fn field<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, rest)) = bytes.split_first() else { return &[] };
    let (field, rest) = rest.split_at(rest.len().min(usize::from(*length)));
    *bytes = rest;
    field
}

fn entry(tar: &mut Vec<u8>, kind: u8, name: &[u8], link: &[u8], data: &[u8]) {
    let mut header = [0; BLOCK];
    let name = &name[..name.len().min(100)];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(b"0000755");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

fn no_devices(folder: &Path) {
    use std::os::unix::fs::FileTypeExt;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        assert!(!kind.is_char_device() && !kind.is_block_device());
        if kind.is_dir() {
            no_devices(&entry.path());
        }
    }
}
