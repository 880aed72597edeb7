//! Layers that mean harm.

use std::fs;
use std::sync::atomic::AtomicBool;

use warren_images::{ImageError, Limits};

use crate::layout::{Image, gzip, paths, read, refused, unpack, unpack_into};
use crate::tars::{Item, tar};

/// What a layer is refused with, under limits of one's own.
fn refused_with(limits: &Limits, layers: &[Vec<u8>]) -> String {
    let root = tempfile::tempdir().unwrap();
    unpack_into(layers, root.path(), limits).expect_err("it is refused").to_string()
}

#[test]
fn names_that_lead_up_are_refused() {
    for name in ["../x", "a/../../x", "..", "a/..", "/../x", "./../x"] {
        for kind in [b'0', b'1', b'2', b'5', b'6'] {
            let mut item = Item::new(kind, name);
            item.link = b"t".to_vec();
            let error = refused(&[&[Item::file("t", ""), item]]);
            assert!(error.contains("`..`"), "{name}: {error}");
        }
        let error = refused(&[&[Item::hard_link("h", name)]]);
        assert!(error.contains("`..`"), "{name}: {error}");
        let error = refused(&[&[Item::file("x", "").record("path", name)]]);
        assert!(error.contains("`..`"), "{name}: {error}");
    }
}

#[test]
fn absolute_names_start_at_the_root_of_the_image() {
    let outside = tempfile::tempdir().unwrap();
    let name = outside.path().join("x");
    let name = name.to_str().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let (root, _) = unpack(&[&[Item::file(name, "in")]]).unwrap();
    assert_eq!(fs::read_to_string(root.path().join(&name[1..])).unwrap(), "in");
    assert!(!outside.path().join("x").exists());
    let secret = outside.path().join("secret");
    let error = refused(&[&[Item::hard_link("stolen", secret.to_str().unwrap())]]);
    assert!(error.contains("which is not there"), "{error}");
}

#[test]
fn links_out_of_the_image_are_followed_by_nobody() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "kept").unwrap();
    let target = outside.path().to_str().unwrap();
    for link in [
        target.to_owned(),
        format!("../../../../../../../../..{target}"),
        "/proc/self/root".to_owned() + target,
    ] {
        let way = |items: &[Item]| [&[Item::symlink("way", &link)][..], items].concat();
        // There is nothing of that name inside.
        let error = refused(&[&way(&[Item::file("way/new", "x")])]);
        assert!(error.contains("no directory"), "{error}");
        let error = refused(&[&way(&[Item::hard_link("stolen", "way/kept")])]);
        assert!(error.contains("which is not there"), "{error}");
        // Whatever replaces the link, replaces the link.
        for item in
            [Item::file("way", "x"), Item::folder("way"), Item::new(b'6', "way"), Item::symlink("way", "x")]
        {
            unpack(&[&way(&[item])]).unwrap();
        }
        unpack(&[&way(&[]), &[Item::file("way/.wh.kept", ""), Item::file("way/.wh..wh..opq", "")]]).unwrap();
        unpack(&[&way(&[]), &[Item::file(".wh.way", "")]]).unwrap();
        // A hard link to a link is the link, and writing to its name does not go through it.
        unpack(&[&way(&[Item::hard_link("also", "way"), Item::file("also", "x")])]).unwrap();
        let inner = format!("{target}/kept");
        unpack(&[&[Item::symlink("f", &inner), Item::file("f", "overwritten")]]).unwrap();
    }
    assert_eq!(paths(outside.path()), ["kept"]);
    assert_eq!(fs::read_to_string(outside.path().join("kept")).unwrap(), "kept");
}

#[test]
fn circles_of_links_and_files_as_folders_are_said_to_be_so() {
    let error = refused(&[&[Item::symlink("a", "b"), Item::symlink("b", "a"), Item::file("a/x", "")]]);
    assert!(error.contains("circle"), "{error}");
    let error = refused(&[&[Item::file("a", ""), Item::file("a/b/c", "")]]);
    assert!(error.contains("`a`, which is no directory"), "{error}");
    let error = refused(&[&[Item::folder("d"), Item::hard_link("h", "d")]]);
    assert!(error.contains("which is a directory"), "{error}");
    let error = refused(&[&[Item::file("d/f", ""), Item::hard_link("d", "d/f")]]);
    assert!(error.contains("which is not there"), "{error}");
}

#[test]
fn whiteouts_of_what_has_no_name_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
        let error = refused(&[&[Item::file("a/x", "")], &[Item::file(name, "")]]);
        assert!(error.contains("hides nothing"), "{name}: {error}");
    }
}

#[test]
fn the_root_stays_a_directory() {
    for item in
        [Item::file("./", ""), Item::symlink("/", "/tmp"), Item::new(b'6', ""), Item::hard_link(".", "x")]
    {
        let error = refused(&[&[Item::file("x", ""), item]]);
        assert!(error.contains("stands for the root"), "{error}");
    }
}

#[test]
fn bombs_are_put_out() {
    let limits = Limits { unpacked_bytes: 10 << 20, entries: 100, ..Limits::default() };
    let large = [tar(&[Item::file("f", vec![0; 11 << 20])])];
    let small = Limits { blob_bytes: 1 << 20, ..limits.clone() };
    let image = Image::new(&large);
    let (source, _folder) = read(&image.layout(), &small).unwrap();
    let root = tempfile::tempdir().unwrap();
    let error = source.unpack(root.path(), &small, &AtomicBool::new(false), &|_| {}).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge(_)), "{error}");

    let many: Vec<Item> = (0..101).map(|place| Item::file(format!("f{place}"), "")).collect();
    assert!(refused_with(&limits, &[tar(&many)]).contains("more than 100 entries"));
    let layers: Vec<Vec<u8>> = many.chunks(60).map(tar).collect();
    assert!(refused_with(&limits, &layers).contains("more than 100 entries"), "counted over all layers");
    assert!(refused_with(&Limits { layers: 1, ..Limits::default() }, &layers).contains("2 layers"));

    let holes = Item::file("x", "0\n".to_owned() + &"\0".repeat(510))
        .record("GNU.sparse.major", "1")
        .record("GNU.sparse.realsize", "1000000000000");
    assert!(refused_with(&limits, &[tar(&[holes])]).contains("its files have more than"));
    let records = Item::file("x", "").record("comment", vec![b'x'; 2 << 20]);
    assert!(refused_with(&limits, &[tar(&[records])]).contains("a header of an entry"));
    let headers: Vec<Item> = (0..9).map(|_| Item::file("@LongLink", "x").with_kind(b'L')).collect();
    assert!(refused_with(&limits, &[tar(&headers)]).contains("too many headers"));
}

#[test]
fn folders_nest_no_deeper_through_links_than_without() {
    let limits = Limits { path_depth: 20, ..Limits::default() };
    let deep = |start: &str| Item::folder(format!("{start}{}", "/d".repeat(15)));
    assert!(unpack_into(&[tar(&[deep("a")])], tempfile::tempdir().unwrap().path(), &limits).is_ok());
    let error = refused_with(
        &limits,
        &[tar(&[
            deep("a"),
            Item::symlink("l", format!("a{}", "/d".repeat(15))),
            deep("l"),
            Item::symlink("m", format!("l{}", "/d".repeat(15))),
            deep("m"),
        ])],
    );
    assert!(error.contains("too deep"), "{error}");
    let error = refused_with(&limits, &[tar(&[Item::folder("d/".repeat(21))])]);
    assert!(error.contains("too long"), "{error}");
}

#[test]
fn whiteouts_over_whiteouts_end() {
    let limits = Limits { entries: 300, ..Limits::default() };
    let kept = (0..100).map(|place| Item::file(format!("d/f{place}"), ""));
    let hide = (0..100).map(|_| Item::file("d/.wh..wh..opq", ""));
    let layers = [tar(&[Item::file("d/old", "")]), tar(&kept.chain(hide).collect::<Vec<_>>())];
    assert!(refused_with(&limits, &layers).contains("removes too many"));
}

#[test]
fn attributes_that_cannot_be_are_refused_in_words() {
    let large = Item::file("x", "").record("SCHILY.xattr.user.large", vec![b'x'; 100_000]);
    assert!(refused(&[&[large]]).contains("no room for `user.large`"));
    let long = Item::file("x", "").record(format!("SCHILY.xattr.user.{}", "n".repeat(300)), "x");
    assert!(refused(&[&[long]]).contains("no room for"));
    if rustix::process::geteuid().is_root() {
        let wrong = Item::file("x", "").record("SCHILY.xattr.security.capability", "x");
        assert!(refused(&[&[wrong]]).contains("the attribute `security.capability` of `x` is wrong"));
    }
}

#[test]
fn layers_that_are_not_what_they_should_be_are_refused() {
    let layer = tar(&[Item::file("f", "x".repeat(2000))]);
    let cut = |length: usize| layer[..length].to_vec();
    assert!(refused_with(&Limits::default(), &[cut(1000)]).contains("ends within a file"));
    assert!(refused_with(&Limits::default(), &[cut(300)]).contains("ends within an entry"));
    let mut wrong = layer.clone();
    wrong[0] ^= 1;
    assert!(refused_with(&Limits::default(), &[wrong]).contains("checksum"));
    for unknown in [Item::file("x", "").with_kind(b'M'), Item::file("x", "").with_kind(b'?')] {
        assert!(refused(&[&[unknown]]).contains("unknown kind"));
    }
    let mut negative = Item::file("x", "");
    negative.size = Some(u64::MAX);
    assert!(refused(&[&[negative]]).contains("number"));
    let mut endless = Item::file("x", "");
    endless.size = Some(u64::MAX >> 2);
    assert!(refused(&[&[endless]]).contains("its files have more than"));
}

#[test]
fn compressed_layers_are_checked_as_they_are_and_as_they_were() {
    let layer = tar(&[Item::file("f", "x".repeat(100_000))]);
    let sentence = |stored: Vec<u8>| {
        let image = Image::stored(std::slice::from_ref(&layer), |_| stored.clone());
        let (source, _folder) = read(&image.layout(), &Limits::default()).unwrap();
        let root = tempfile::tempdir().unwrap();
        source
            .unpack(root.path(), &Limits::default(), &AtomicBool::new(false), &|_| {})
            .unwrap_err()
            .to_string()
    };
    let mut flipped = gzip(&layer);
    let place = flipped.len() - 6;
    flipped[place] ^= 1;
    assert!(sentence(flipped).contains("decompressed"));
    let packed = gzip(&layer);
    assert!(sentence(packed[..packed.len() / 2].to_vec()).contains("decompressed"));
    assert!(sentence([packed.as_slice(), b"trailing"].concat()).contains("decompressed"));
    let mut zstd = crate::layout::zstd(&layer);
    zstd.truncate(zstd.len() - 20);
    assert!(sentence(zstd).contains("decompressed"));
    assert!(sentence(b"\x50\x2a\x4d\x18\xff\xff\xff\xff".to_vec()).contains("decompressed"));
    assert!(sentence(b"\xfd7zXZ\0rest".to_vec()).contains("xz"));
    assert!(sentence(b"BZh91AY&SY".to_vec()).contains("bzip2"));
    let other = tar(&[Item::file("f", "y".repeat(100_000))]);
    assert!(sentence(gzip(&other)).contains("layer 1 does not have the digest"));
    assert!(
        sentence(gzip(&[layer.as_slice(), &[0; 512]].concat())).contains("layer 1 does not have the digest")
    );
}
