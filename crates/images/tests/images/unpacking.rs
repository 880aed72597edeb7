//! What layers mean.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use warren_images::{ImageError, Limits, Step};

use crate::layout::{Image, gzip, paths, read, refused, unpack, zstd};
use crate::tars::{Item, tar};

fn text(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn a_layer_may_end_with_the_last_byte_of_its_last_file() {
    let whole = tar(&[Item::file("a", "x"), Item::file("b", "y".repeat(700))]);
    let end = 512 + 512 + 512 + 700;
    for length in [end, end + 1, end + 324, end + 324 + 512] {
        let root = tempfile::tempdir().unwrap();
        let layers = [whole[..length].to_vec()];
        crate::layout::unpack_into(&layers, root.path(), &Limits::default()).unwrap();
        assert_eq!(text(root.path(), "b").len(), 700, "{length}");
    }
}

#[test]
fn a_layer_becomes_files_folders_links_and_fifos() {
    let (root, unpacked) = unpack(&[&[
        Item::folder("./").mode(0o751).mtime(5),
        Item::folder("./bin/").mode(0o1777).mtime(1_234_567),
        Item::file("./bin/tool", "#!/bin/sh\n").mode(0o4755).mtime(77),
        Item::symlink("./sh", "/bin/tool").mtime(99),
        Item::hard_link("./bin/other", "./bin/tool"),
        Item::new(b'6', "pipe").mode(0o620),
        Item::file("deep/er/file", ""),
        Item::file("old\0", "").with_kind(0),
        Item::folder("oldest/").with_kind(0),
    ]])
    .unwrap();
    let root = root.path();
    assert_eq!(
        paths(root),
        [
            "bin/",
            "bin/other",
            "bin/tool",
            "deep/",
            "deep/er/",
            "deep/er/file",
            "old",
            "oldest/",
            "pipe",
            "sh"
        ]
    );
    assert_eq!((unpacked.entries, unpacked.bytes, unpacked.devices, unpacked.attributes), (9, 10, 0, 0));
    let tool = fs::metadata(root.join("bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.mtime(), tool.nlink()), (0o4755, 77, 2));
    let bin = fs::metadata(root.join("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 1_234_567), "in spite of what was put into it");
    let top = fs::metadata(root).unwrap();
    assert_eq!((top.mode() & 0o7777, top.mtime()), (0o751, 5));
    assert_eq!(
        fs::metadata(root.join("deep")).unwrap().permissions().mode() & 0o7777,
        0o755,
        "made on the way"
    );
    let link = fs::symlink_metadata(root.join("sh")).unwrap();
    assert_eq!((fs::read_link(root.join("sh")).unwrap().to_str(), link.mtime()), (Some("/bin/tool"), 99));
    let pipe = fs::symlink_metadata(root.join("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo() && pipe.mode() & 0o7777 == 0o620);
}

#[test]
fn owners_are_kept_and_do_not_cost_the_setuid_bit() {
    if !is_root() {
        return;
    }
    let (root, _) = unpack(&[&[
        Item::folder("home").owner(1000, 100),
        Item::file("home/su", "").owner(65535, 7).mode(0o6755),
        Item::symlink("home/link", "su").owner(3, 4),
        Item::new(b'6', "home/pipe").owner(5, 6),
        Item::file("home/made", "").owner(1, 2).record("uid", "8").record("gid", "9"),
    ]])
    .unwrap();
    let owner = |name: &str| {
        let found = fs::symlink_metadata(root.path().join(name)).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!(owner("home"), (1000, 100));
    assert_eq!(owner("home/su"), (65535, 7));
    assert_eq!(fs::metadata(root.path().join("home/su")).unwrap().mode() & 0o7777, 0o6755);
    assert_eq!(owner("home/link"), (3, 4));
    assert_eq!(owner("home/pipe"), (5, 6));
    assert_eq!(owner("home/made"), (8, 9));
}

#[test]
fn an_owner_that_no_sandbox_has_is_refused_in_words() {
    for item in [
        Item::file("x", "").owner(65536, 0),
        Item::file("x", "").owner(0, u64::MAX >> 2),
        Item::file("x", "").record("uid", "4294967296"),
    ] {
        let error = refused(&[&[item]]);
        assert!(error.contains("`x` belongs to user") && error.contains("65535"), "{error}");
    }
}

#[test]
fn names_may_be_long_and_need_not_be_text() {
    let long = "n".repeat(200);
    let path = format!("{}/{long}", "d".repeat(200));
    let (root, _) = unpack(&[&[
        Item::file("short", "pax").record("path", &path),
        Item::file("@LongLink", format!("gnu-{long}\0")).with_kind(b'L'),
        Item::file("short", "gnu"),
        Item::file("@LongLink", format!("{long}\0")).with_kind(b'K'),
        Item::symlink("link", "short"),
        Item::file(b"\xff\xfe\n\"'", "bytes"),
        Item::file("time", "").record("mtime", "12.25"),
    ]])
    .unwrap();
    assert_eq!(text(root.path(), &path), "pax");
    assert_eq!(text(root.path(), &format!("gnu-{long}")), "gnu");
    assert_eq!(fs::read_link(root.path().join("link")).unwrap().to_str(), Some(long.as_str()));
    assert_eq!(fs::read(root.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe\n\"'"))).unwrap(), b"bytes");
    let time = fs::metadata(root.path().join("time")).unwrap();
    assert_eq!((time.mtime(), time.mtime_nsec()), (12, 250_000_000));
}

#[test]
fn a_name_in_two_parts_is_put_together() {
    let mut layer = tar(&[Item::file("name", "x")]);
    layer[345..351].copy_from_slice(b"prefix");
    let sum: u32 = layer[..512]
        .iter()
        .enumerate()
        .map(|(place, byte)| if (148..156).contains(&place) { 32 } else { u32::from(*byte) })
        .sum();
    layer[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let root = tempfile::tempdir().unwrap();
    crate::layout::unpack_into(&[layer], root.path(), &Limits::default()).unwrap();
    assert_eq!(text(root.path(), "prefix/name"), "x");
}

#[test]
fn whiteouts_hide_what_lower_layers_have() {
    let (root, _) = unpack(&[
        &[
            Item::file("a/gone", ""),
            Item::file("a/kept", ""),
            Item::file("tree/x/y/z", ""),
            Item::symlink("tree/x/out", "/a"),
            Item::file("opaque/old", ""),
            Item::file("opaque/sub/old", ""),
            Item::symlink("link", "a"),
            Item::file("late", ""),
        ],
        &[
            Item::file("a/.wh.gone", ""),
            Item::file(".wh.tree", ""),
            Item::file("opaque/new", ""),
            Item::file("opaque/.wh..wh..opq", ""),
            Item::file(".wh.link", ""),
            Item::file("nowhere/.wh.x", ""),
            Item::file("a/kept/.wh.x", ""),
            Item::file(".wh..wh.plnk", ""),
            Item::file("late", "again"),
            Item::file(".wh.late", ""),
        ],
    ])
    .unwrap();
    assert_eq!(paths(root.path()), ["a/", "a/kept", "late", "opaque/", "opaque/new"]);
    assert_eq!(text(root.path(), "late"), "again", "a whiteout is about lower layers, wherever it stands");
}

#[test]
fn an_opaque_folder_keeps_what_its_own_layer_has_however_deep() {
    let (root, _) = unpack(&[
        &[Item::file("o/a/b/old", ""), Item::file("o/a/old", ""), Item::file("o/c/old", "")],
        &[Item::file("o/a/b/new", ""), Item::folder("o"), Item::file("o/.wh..wh..opq", "")],
    ])
    .unwrap();
    assert_eq!(paths(root.path()), ["o/", "o/a/", "o/a/b/", "o/a/b/new"]);
}

#[test]
fn in_the_lowest_layer_there_is_nothing_to_hide() {
    let (root, _) =
        unpack(&[&[Item::file("a", ""), Item::file(".wh.a", ""), Item::file(".wh..wh..opq", "")]]).unwrap();
    assert_eq!(paths(root.path()), ["a"]);
}

#[test]
fn later_layers_replace_what_is_there_by_whatever_they_have() {
    let kinds = [
        Item::file("x", "file"),
        Item::folder("x"),
        Item::symlink("x", "target"),
        Item::new(b'6', "x"),
        Item::hard_link("x", "target"),
    ];
    for lower in &kinds {
        for upper in &kinds {
            let below = [Item::file("target", "target"), lower.clone(), Item::file("x/in", "")];
            let below = if lower.kind == b'5' { &below[..] } else { &below[..2] };
            let (root, _) = unpack(&[below, std::slice::from_ref(upper)]).unwrap();
            let found = fs::symlink_metadata(root.path().join("x")).unwrap().file_type();
            let is_right = match upper.kind {
                b'5' => found.is_dir(),
                b'2' => found.is_symlink(),
                b'6' => found.is_fifo(),
                b'1' => found.is_file() && text(root.path(), "x") == "target",
                _ => found.is_file() && text(root.path(), "x") == "file",
            };
            assert!(is_right, "{upper:?} over {lower:?}");
            assert_eq!(text(root.path(), "target"), "target", "{upper:?} over {lower:?} went through");
            let keeps_content = lower.kind == b'5' && upper.kind == b'5';
            assert_eq!(root.path().join("x/in").exists(), keeps_content);
        }
    }
}

#[test]
fn a_file_is_replaced_and_not_written_through_its_other_names() {
    let (root, _) = unpack(&[
        &[Item::file("a", "one"), Item::hard_link("b", "a")],
        &[Item::file("a", "two"), Item::hard_link("c", "b"), Item::hard_link("b", "/c")],
    ])
    .unwrap();
    assert_eq!(["a", "b", "c"].map(|name| text(root.path(), name)), ["two", "one", "one"]);
}

#[test]
fn a_layer_that_has_a_folder_again_says_all_about_it() {
    let (root, _) = unpack(&[
        &[Item::folder("d").mode(0o700).mtime(1).record("SCHILY.xattr.user.old", "1"), Item::file("d/f", "")],
        &[Item::folder("d").mode(0o711).mtime(2).record("SCHILY.xattr.user.new", "2")],
    ])
    .unwrap();
    let folder = fs::metadata(root.path().join("d")).unwrap();
    assert_eq!((folder.mode() & 0o7777, folder.mtime()), (0o711, 2));
    assert_eq!(attribute(&root.path().join("d"), "user.old"), None);
    assert_eq!(attribute(&root.path().join("d"), "user.new"), Some(b"2".to_vec()));
}

#[test]
fn paths_go_through_links_as_they_do_inside() {
    let (root, _) = unpack(&[
        &[Item::folder("usr/lib"), Item::symlink("lib", "/usr/lib"), Item::symlink("up", "../../../usr")],
        &[Item::file("lib/a", "a"), Item::file("up/lib/b", "b"), Item::hard_link("c", "up/lib/b")],
        &[Item::file("lib/.wh.a", "")],
    ])
    .unwrap();
    assert_eq!(paths(root.path()), ["c", "lib", "up", "usr/", "usr/lib/", "usr/lib/b"]);
}

#[test]
fn a_link_that_becomes_a_folder_leads_nowhere_any_more() {
    let (root, _) = unpack(&[&[
        Item::folder("real"),
        Item::symlink("d", "real"),
        Item::file("d/one", ""),
        Item::folder("d"),
        Item::file("d/two", ""),
        Item::symlink("d", "real"),
        Item::file("d/three", ""),
    ]])
    .unwrap();
    assert_eq!(paths(root.path()), ["d", "real/", "real/one", "real/three"]);
}

#[test]
fn attributes_of_users_and_capabilities_are_kept_and_no_others() {
    if !is_root() {
        return;
    }
    // Version 2, effective, CAP_NET_RAW.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (root, unpacked) = unpack(&[&[
        Item::file("ping", "x")
            .owner(1, 1)
            .record("SCHILY.xattr.security.capability", capability)
            .record("SCHILY.xattr.user.note", "a\0=\nb")
            .record("SCHILY.xattr.trusted.overlay.opaque", "y")
            .record("SCHILY.xattr.user.overlay.whiteout", "y")
            .record("SCHILY.xattr.security.selinux", "label")
            .record("SCHILY.xattr.system.posix_acl_access", "acl"),
        Item::folder("d").record("SCHILY.xattr.trusted.overlay.opaque", "y"),
    ]])
    .unwrap();
    let ping = root.path().join("ping");
    assert_eq!(attribute(&ping, "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute(&ping, "user.note").as_deref(), Some(&b"a\0=\nb"[..]));
    for name in
        ["trusted.overlay.opaque", "user.overlay.whiteout", "security.selinux", "system.posix_acl_access"]
    {
        assert_eq!(attribute(&ping, name), None, "{name}");
    }
    assert_eq!(attribute(&root.path().join("d"), "trusted.overlay.opaque"), None);
    assert_eq!(unpacked.attributes, 5);
}

#[test]
fn devices_are_left_out_and_counted() {
    let (root, unpacked) = unpack(&[
        &[Item::file("dev/null", "")],
        &[Item::new(b'3', "dev/null"), Item::new(b'4', "dev/sda"), Item::new(b'3', "whiteout")],
        &[Item::hard_link("dev/sdb", "/dev/sda"), Item::hard_link("sdc", "dev/sdb"), Item::file("f", "")],
    ])
    .unwrap();
    assert_eq!(paths(root.path()), ["dev/", "dev/null", "f"]);
    assert_eq!(unpacked.devices, 5, "a hard link to a device is one");
}

#[test]
fn files_with_holes_are_read_in_both_formats() {
    let mut old = vec![0_u8; 512];
    old[..4].copy_from_slice(b"DATA");
    let layer_old = {
        let mut layer = tar(&[Item::file("old", &old).with_kind(b'S')]);
        for (place, number) in [(386, 4096_u64), (398, 512), (483, 1 << 20)] {
            layer[place..place + 11].copy_from_slice(format!("{number:011o}").as_bytes());
        }
        let sum: u32 = layer[..512]
            .iter()
            .enumerate()
            .map(|(place, byte)| if (148..156).contains(&place) { 32 } else { u32::from(*byte) })
            .sum();
        layer[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        layer
    };
    let mut new = b"1\n8192\n4\n".to_vec();
    new.resize(512, 0);
    new.extend_from_slice(b"data");
    let item = Item::file("GNUSparseFile.0/new", new)
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.minor", "0")
        .record("GNU.sparse.name", "new")
        .record("GNU.sparse.realsize", "1000000");
    let root = tempfile::tempdir().unwrap();
    crate::layout::unpack_into(&[layer_old, tar(&[item])], root.path(), &Limits::default()).unwrap();
    let (old, new) = (fs::read(root.path().join("old")).unwrap(), fs::read(root.path().join("new")).unwrap());
    assert_eq!(
        (old.len(), &old[4096..4100], new.len(), &new[8192..8196]),
        (1 << 20, &b"DATA"[..], 1_000_000, &b"data"[..])
    );
    assert_eq!(old.iter().chain(&new).filter(|byte| **byte != 0).count(), 8);
}

#[test]
fn layers_may_be_packed_in_each_of_the_ways_there_are() {
    let layer = tar(&[Item::file("f", "x".repeat(3_000_000))]);
    let mut several = zstd(&layer[..1000]);
    // A table of contents, and a second frame.
    several.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    several.extend_from_slice(&zstd(&layer[1000..]));
    let members = [gzip(&layer[..700]), gzip(&layer[700..])].concat();
    for stored in [layer.clone(), gzip(&layer), zstd(&layer), several, members] {
        let image = Image::stored(std::slice::from_ref(&layer), |_| stored.clone());
        let (source, _folder) = read(&image.layout(), &Limits::default()).unwrap();
        let root = tempfile::tempdir().unwrap();
        source.unpack(root.path(), &Limits::default(), &AtomicBool::new(false), &|_| {}).unwrap();
        assert_eq!(fs::metadata(root.path().join("f")).unwrap().len(), 3_000_000);
    }
}

#[test]
fn it_says_how_far_it_is_and_can_be_called_off() {
    let layers = [tar(&[Item::file("f", "x")]), tar(&[Item::file("g", "y")])];
    let (source, _folder) = read(&Image::new(&layers).layout(), &Limits::default()).unwrap();
    let root = tempfile::tempdir().unwrap();
    let steps: Mutex<Vec<Step>> = Mutex::default();
    source
        .unpack(root.path(), &Limits::default(), &AtomicBool::new(false), &|step| {
            steps.lock().unwrap().push(step);
        })
        .unwrap();
    let steps = steps.into_inner().unwrap();
    assert_eq!(steps[0].message, "unpacking layer 1 of 2");
    assert_eq!(steps[1].message, "unpacking layer 2 of 2");
    assert_eq!(steps[0].total_bytes, Some(source.stored_bytes()));
    let error = source.unpack(root.path(), &Limits::default(), &AtomicBool::new(true), &|_| {}).unwrap_err();
    assert!(matches!(error, ImageError::CalledOff), "{error}");
}
