//! Whatever the entries are, nothing beside the root changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;
use warren_images::Limits;

use crate::layout::unpack_into;
use crate::tars::{Item, tar};

/// Names that meet each other, and ways out.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        6 => "[abc]",
        2 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => "\\.wh\\.[abc]",
        1 => Just(".wh..wh..opq".to_owned()),
        1 => Just("outside".to_owned()),
        1 => Just("canary".to_owned()),
    ];
    let inner = prop_oneof![8 => "[abc]", 1 => Just(".wh..wh..opq".to_owned()), 1 => "\\.wh\\.[abc]", 1 => Just("canary".to_owned())];
    prop_oneof![
        1 => (any::<bool>(), prop::collection::vec(part, 1..5)).prop_map(|(absolute, parts)| {
            if absolute { format!("/{}", parts.join("/")) } else { parts.join("/") }
        }),
        6 => prop::collection::vec(inner, 1..4).prop_map(|parts| parts.join("/")),
    ]
}

fn target(beside: &str) -> impl Strategy<Value = String> + use<> {
    let ways = [
        beside.to_owned(),
        format!("{beside}/canary"),
        "../outside".to_owned(),
        "../outside/canary".to_owned(),
        "/".to_owned(),
        "..".to_owned(),
        "/proc/self/cwd".to_owned(),
    ];
    prop_oneof![1 => name(), 1 => prop::sample::select(ways.to_vec())]
}

fn item(beside: &str) -> impl Strategy<Value = Item> + use<> {
    let kind = prop::sample::select(b"00112223556".to_vec());
    (name(), kind, target(beside), prop::collection::vec(any::<u8>(), 0..40), 0_u32..0o10000).prop_map(
        |(name, kind, link, data, mode)| {
            let data = if kind == b'0' { data } else { Vec::new() };
            // Whoever unpacks must be able to go on.
            Item { link: link.into_bytes(), data, mode: mode | 0o700, ..Item::new(kind, name) }
        },
    )
}

/// Name, number, mode, links, when it was changed, and content.
type Seen = (String, u64, u32, u64, i64, i64, Vec<u8>);

/// Everything that can be seen of a tree.
fn seen(root: &Path) -> Vec<Seen> {
    let of = |name: &str, path: &Path| {
        let found = fs::symlink_metadata(path).unwrap();
        let data = if found.is_file() { fs::read(path).unwrap() } else { Vec::new() };
        (name.to_owned(), found.ino(), found.mode(), found.nlink(), found.ctime(), found.ctime_nsec(), data)
    };
    let mut all = vec![of("", root)];
    all.extend(
        crate::layout::paths(root).iter().map(|name| of(name, &root.join(name.trim_end_matches('/')))),
    );
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_outside_of_the_root_is_touched(seeds in prop::collection::vec(prop::collection::vec(item("/BESIDE/outside"), 0..12), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir_all(outside.join("a/b")).unwrap();
        fs::write(outside.join("canary"), "sings").unwrap();
        fs::write(outside.join("a/b/c"), "sings too").unwrap();
        std::os::unix::fs::symlink("canary", outside.join("link")).unwrap();
        let before = seen(&outside);
        let beside = folder.path().to_str().unwrap().to_owned();
        let real = |text: &[u8]| String::from_utf8_lossy(text).replace("/BESIDE", &beside).into_bytes();
        let layers: Vec<Vec<u8>> = seeds
            .into_iter()
            .map(|items| tar(&items.into_iter().map(|item| Item { link: real(&item.link), ..item }).collect::<Vec<_>>()))
            .collect();
        // Refused or not.
        let _ = unpack_into(&layers, &root, &Limits::default());
        prop_assert_eq!(seen(&outside), before);
        let mut beside: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        beside.sort();
        prop_assert_eq!(beside, ["outside", "root"]);
    }
}
