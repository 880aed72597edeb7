use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::super::base::blobs_of;
use super::*;

/// A tree of files: content and whether it may be executed; or a link.
type What = Result<(String, bool), String>;
type Tree = BTreeMap<String, What>;

fn build(folder: &Path, tree: &Tree) {
    for (name, what) in tree {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match what {
            Ok((content, executable)) => {
                fs::write(&path, content).unwrap();
                fs::set_permissions(
                    &path,
                    fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 }),
                )
                .unwrap();
            }
            Err(target) => symlink(target, &path).unwrap(),
        }
    }
}

fn read(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            if metadata.is_dir() {
                left.push(path);
            } else if metadata.is_symlink() {
                tree.insert(name, Err(fs::read_link(&path).unwrap().to_str().unwrap().to_owned()));
            } else {
                tree.insert(
                    name,
                    Ok((fs::read_to_string(&path).unwrap(), metadata.permissions().mode() & 0o100 != 0)),
                );
            }
        }
    }
    tree
}

fn content(sides: &Sides<'_>, what: &What) -> Content {
    match what {
        Ok((content, executable)) => {
            Content::File { hash: sides.blobs.put(content.as_bytes()).unwrap(), executable: *executable }
        }
        Err(target) => Content::Link { target: target.clone() },
    }
}

fn changes(sides: &Sides<'_>, a: &Tree, b: &Tree) -> Vec<Change> {
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let changed = names.into_iter().filter(|name| a.get(*name) != b.get(*name));
    changed
        .map(|name| Change {
            name: name.clone(),
            before: a.get(name).map(|what| content(sides, what)),
            after: b.get(name).map(|what| content(sides, what)),
        })
        .collect()
}

fn with<T>(tree: &Tree, then: impl FnOnce(&Sides<'_>, &Path) -> T) -> T {
    let home = tempfile::tempdir().unwrap();
    let (folder, state) = (home.path().join("tree"), home.path().join("state"));
    fs::create_dir(&folder).unwrap();
    build(&folder, tree);
    let root = Root::open(&folder).unwrap();
    let blobs = blobs_of(&state).unwrap();
    then(&Sides { root: Some(&root), blobs: &blobs }, &folder)
}

fn file(text: &str) -> What {
    Ok((text.to_owned(), false))
}

fn tree(items: &[(&str, What)]) -> Tree {
    items.iter().map(|(name, what)| ((*name).to_owned(), what.clone())).collect()
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let what = prop_oneof![
        ("[ab\n]{0,6}", any::<bool>()).prop_map(Ok),
        prop_oneof![Just("a"), Just("c/d")].prop_map(|target| Err(target.to_owned())),
    ];
    // `a` is a file in some and a folder in others.
    let name = prop_oneof![Just("a"), Just("a/x"), Just("b"), Just("c/d"), Just("c/e/f"), Just("g")];
    proptest::collection::btree_map(name.prop_map(str::to_owned), what, 0..6).prop_map(|mut tree| {
        if tree.contains_key("a/x") {
            tree.remove("a");
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_differs_applied_to_the_one_gives_the_other(a in any_tree(), b in any_tree()) {
        let (applied, after) = with(&a, |sides, folder| {
            let applied = apply(sides.root.unwrap(), sides, &changes(sides, &a, &b), &Delivered::new());
            (applied, read(folder))
        });
        prop_assert!(applied.conflicts.is_empty(), "{:?}", applied.conflicts);
        prop_assert_eq!(after, b);
    }
}

#[test]
fn what_was_changed_here_is_merged_or_left_alone() {
    let before = tree(&[
        ("both", file("1\n2\n3\n4\n5\n")),
        ("clash", file("x\n")),
        ("gone", file("y\n")),
        ("dead", file("z\n")),
    ]);
    let after = tree(&[
        ("both", file("1\n2\n3\n4\nfive\n")),
        ("clash", file("there\n")),
        ("gone", file("there\n")),
        ("new", file("there\n")),
    ]);
    with(&before, |sides, folder| {
        let changes = changes(sides, &before, &after);
        fs::write(folder.join("both"), "one\n2\n3\n4\n5\n").unwrap();
        fs::write(folder.join("clash"), "here\n").unwrap();
        fs::write(folder.join("dead"), "here\n").unwrap();
        fs::write(folder.join("new"), "here\n").unwrap();
        fs::remove_file(folder.join("gone")).unwrap();
        let applied = apply(sides.root.unwrap(), sides, &changes, &Delivered::new());
        assert_eq!(applied.merged, ["both"]);
        assert_eq!(fs::read_to_string(folder.join("both")).unwrap(), "one\n2\n3\n4\nfive\n");
        let mut names: Vec<_> = applied.conflicts.iter().map(|conflict| conflict.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["clash", "dead", "gone", "new"]);
        for name in ["clash", "dead", "new"] {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), "here\n");
        }
        assert!(!folder.join("gone").exists());
        // Once more changes nothing.
        assert_eq!(apply(sides.root.unwrap(), sides, &changes, &Delivered::new()).written, [""; 0]);
    });
}

#[test]
fn whether_a_file_may_be_run_is_merged_like_its_content() {
    let before = tree(&[("s", file("1\n2\n3\n4\n5\n")), ("t", file("x\n"))]);
    let after = tree(&[("s", file("1\n2\n3\n4\nfive\n")), ("t", Ok(("x\n".to_owned(), true)))]);
    with(&before, |sides, folder| {
        let changes = changes(sides, &before, &after);
        fs::set_permissions(folder.join("s"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join("t"), "here\n").unwrap();
        let applied = apply(sides.root.unwrap(), sides, &changes, &Delivered::new());
        assert_eq!((applied.merged.len(), applied.conflicts.len()), (2, 0), "{applied:?}");
        let found = read(folder);
        assert_eq!(found["s"], Ok(("1\n2\n3\n4\nfive\n".to_owned(), true)));
        assert_eq!(found["t"], Ok(("here\n".to_owned(), true)));
    });
}

#[test]
fn a_patch_never_leads_out_of_the_folder() {
    with(&Tree::new(), |sides, folder| {
        let outside = folder.parent().unwrap().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, folder.join("door")).unwrap();
        let write = |name: &str| Change {
            name: name.to_owned(),
            before: None,
            after: Some(content(sides, &file("evil"))),
        };
        let link = |name: &str, target: &str| Change {
            name: name.to_owned(),
            before: None,
            after: Some(Content::Link { target: target.to_owned() }),
        };
        let attacks = [
            write("../outside/a"),
            write("/tmp/evil-of-a-patch"),
            write("door/a"),
            write(".git/hooks/pre-commit"),
            write("x/.GIT/config"),
            link("l", "/etc"),
            link("l", "../outside"),
            link("l", "a/../../outside"),
            link("m", ".git/config"),
        ];
        let applied = apply(sides.root.unwrap(), sides, &attacks, &Delivered::new());
        assert_eq!(applied.conflicts.len(), attacks.len(), "{applied:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
        // A link and what is behind it, in one patch: the folder is made, the link then is in the way.
        let applied =
            apply(sides.root.unwrap(), sides, &[link("n", "door"), write("n/a")], &Delivered::new());
        assert_eq!(applied.conflicts.len(), 1);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    });
}

#[test]
fn no_repository_is_made_of_what_comes_and_what_is_here() {
    // What is ignored here did not go in, so it is only known here.
    let before = tree(&[("part/objects/k", file("x")), ("part/refs/k", file("x"))]);
    with(&before, |sides, folder| {
        let comes = |name: &str, text: &str| Change {
            name: name.to_owned(),
            before: None,
            after: Some(content(sides, &file(text))),
        };
        let evil = "[core]\n\tbare = false\n\tworktree = .\n\tfsmonitor = \"touch pwned; false\"\n";
        let head = "ref: refs/heads/main\n";
        let attack = [
            comes("HEAD", head),
            comes("config", evil),
            comes("objects/k", "x"),
            comes("refs/heads/x", "x"),
            comes("part/HEAD", head),
            comes("part/config", evil),
            comes("src/a", "fine"),
        ];
        let applied = apply(sides.root.unwrap(), sides, &attack, &Delivered::new());
        let names: Vec<_> = applied.conflicts.iter().map(|conflict| conflict.name.as_str()).collect();
        assert_eq!(names, ["HEAD", "objects/k", "refs/heads/x", "part/HEAD"]);
        assert_eq!(applied.written, ["config", "part/config", "src/a"]);
        for at in [folder.to_owned(), folder.join("part")] {
            let _ = std::process::Command::new("git").arg("-C").arg(&at).arg("status").output();
            assert!(!at.join("pwned").exists());
        }
    });
}

#[test]
fn what_was_written_before_from_the_same_run_is_what_the_next_goes_on_from() {
    let before = tree(&[("a", file("1\n2\n3\n4\n5\n")), ("b", file("b\n")), ("back", file("was\n"))]);
    let first = tree(&[
        ("a", file("1\n2\nthree\n4\n5\n")),
        ("new", file("one\n")),
        ("edited", file("x\n")),
        ("back", file("other\n")),
    ]);
    let second = tree(&[
        ("a", file("1\n2\nTHREE\n4\n5\n")),
        ("b", file("again\n")),
        ("new", file("one\ntwo\n")),
        ("edited", file("x\n")),
        ("back", file("was\n")),
    ]);
    with(&before, |sides, folder| {
        let root = sides.root.unwrap();
        let one = changes(sides, &before, &first);
        assert!(apply(root, sides, &one, &Delivered::new()).conflicts.is_empty());
        let delivered: Delivered =
            one.iter().map(|change| (change.name.clone(), change.after.clone())).collect();
        // What is done here meanwhile is somebody's own.
        fs::write(folder.join("a"), "1\n2\nthree\n4\nfive\n").unwrap();
        fs::write(folder.join("edited"), "mine\n").unwrap();
        let mut two = changes(sides, &before, &second);
        let was = Some(content(sides, &before["back"]));
        two.push(Change { name: "back".to_owned(), before: was.clone(), after: was });
        let applied = apply(root, sides, &two, &delivered);
        assert!(applied.conflicts.is_empty(), "{applied:?}");
        assert_eq!(
            (applied.written, applied.merged),
            (vec!["b".to_owned(), "back".to_owned(), "new".to_owned()], vec!["a".to_owned()])
        );
        assert_eq!(applied.same, ["edited"]);
        let found = read(folder);
        assert_eq!(found["a"], file("1\n2\nTHREE\n4\nfive\n"));
        assert_eq!((&found["new"], &found["edited"]), (&file("one\ntwo\n"), &file("mine\n")));
        assert_eq!((&found["b"], &found["back"]), (&file("again\n"), &file("was\n")));
    });
}
