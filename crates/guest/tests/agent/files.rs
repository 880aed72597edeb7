//! Files and folders, friendly and hostile.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use bytes::Bytes;
use http::Method;
use serde_json::json;
use warren_guest_api::files::{Entry, FileKind, MAX_LIST_ENTRIES, Stat};

use crate::client::{Agent, Answer, Broken, Sent, until};

fn query(path: &Path) -> String {
    path.as_os_str().as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect()
}

/// The lines of a listing.
fn entries(answer: &Answer) -> Vec<Entry> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
        .body
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "current_thread")]
async fn files_come_back_as_they_were_put() {
    let Some(agent) = Agent::start().await else { return };
    let content: Vec<u8> = (0..3_000_001u32).map(|number| ((number * 7) >> 3) as u8).collect();
    let file = agent.path("a/b/größe +%.bin");
    let path = query(&file);
    assert_eq!(agent.put(&path, content.clone()).await.status, 204);
    let meta = std::fs::metadata(&file).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, std::fs::metadata(agent.path("a/b")).unwrap().mode() & 0o777),
        (0o644, 0o755)
    );
    assert_eq!(names(&agent.path("a/b")).len(), 1);

    let get = agent.get(&format!("/v1/files?path={path}")).await;
    assert!(get.body == content && get.headers["content-length"] == "3000001");
    let head = agent.call(Method::HEAD, &format!("/v1/files?path={path}"), "").await;
    assert!(head.status == 200 && head.body.is_empty() && head.headers["content-length"] == "3000001");
    for (range, status, from, to) in [
        ("bytes=5-9", 206, 5, 10),
        ("bytes=2999990-", 206, 2_999_990, 3_000_001),
        ("bytes=-3", 206, 2_999_998, 3_000_001),
        ("bytes=0-1,3-4", 200, 0, 3_000_001),
    ] {
        let part = agent
            .open_with(Method::GET, &format!("/v1/files?path={path}"), &[("range", range)], Sent::Whole(None))
            .await;
        assert_eq!(part.status(), status);
        if status == 206 {
            assert_eq!(part.headers()["content-range"], format!("bytes {from}-{}/3000001", to - 1));
        }
        let body = http_body_util::BodyExt::collect(part.into_body()).await.unwrap().to_bytes();
        assert!(body == content[from..to], "{range}");
    }
    let beyond = agent
        .open_with(
            Method::GET,
            &format!("/v1/files?path={path}"),
            &[("range", "bytes=3000001-")],
            Sent::Whole(None),
        )
        .await;
    assert_eq!(
        (beyond.status().as_u16(), &beyond.headers()["content-range"]),
        (416, &"bytes */3000001".parse().unwrap())
    );

    assert_eq!(agent.put(&format!("{path}&mode=600"), "").await.status, 204);
    let empty = agent.get(&format!("/v1/files?path={path}")).await;
    assert!(empty.status == 200 && empty.body.is_empty() && empty.headers["content-length"] == "0");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o600);
    let made_up = agent.get("/v1/files?path=/proc/self/status").await;
    assert!(
        made_up.body.starts_with(b"Name:")
            && made_up.headers["content-length"] == made_up.body.len().to_string()
    );
}

#[tokio::test(flavor = "current_thread")]
async fn replacing_keeps_owner_and_mode_and_is_all_or_nothing() {
    let Some(agent) = Agent::start().await else { return };
    let file = agent.path("file");
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(&file, Some(1234), Some(2345)).unwrap();
    symlink("file", agent.path("link")).unwrap();
    assert_eq!(agent.put(&query(&agent.path("link")), "new").await.status, 204);
    let meta = std::fs::symlink_metadata(&file).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o750, 1234, 2345));
    assert_eq!(std::fs::read(&file).unwrap(), b"new");
    assert!(std::fs::symlink_metadata(agent.path("link")).unwrap().is_symlink());

    for target in ["file", "made/on/the/way/file"] {
        let (pieces, body) = tokio::sync::mpsc::channel(4);
        let uri = format!("/v1/files?path={}", query(&agent.path(target)));
        let sending = agent.try_open(Method::PUT, &uri, &[], Sent::Live(body));
        let folder = agent.path(target).parent().unwrap().to_owned();
        // A file without a name: the agent has it open, and nobody else sees it.
        let unfinished =
            || agent.open_files().iter().any(|open| open.starts_with(&format!("{}/#", folder.display())));
        let breaking = async {
            pieces.send(Ok(Bytes::from(vec![1; 2_000_000]))).await.unwrap();
            until("something is written", || async { unfinished() }).await;
            assert!(names(&folder).iter().all(|name| !name.starts_with(".warren-upload-")));
            pieces.send(Err(Broken)).await.unwrap();
        };
        let (result, ()) = tokio::join!(sending, breaking);
        assert!(result.is_err());
        until("nothing is left of it", || async { !unfinished() }).await;
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"new");
    until("folders made for it are gone", || async { !agent.path("made").exists() }).await;

    let uri = format!("/v1/files?path={}", query(&agent.path("huge")));
    let (_open, body) = tokio::sync::mpsc::channel(1);
    let refused =
        agent.open_with(Method::PUT, &uri, &[("content-length", "9000000000000000")], Sent::Live(body)).await;
    assert_eq!(refused.status(), 413);
    let made_up = agent.put("/proc/warren", vec![b'x'; 10]).await;
    assert!(matches!(made_up.status.as_u16(), 403 | 404), "there is no room to speak of: {made_up:?}");
    let body = http_body_util::BodyExt::collect(refused.into_body()).await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("disk_full"));
}

#[tokio::test(flavor = "current_thread")]
async fn a_large_folder_is_listed_whole_and_one_that_is_too_large_is_refused() {
    let Some(agent) = Agent::start().await else { return };
    let folder = agent.path("many");
    std::fs::create_dir(&folder).unwrap();
    let name = |number: usize| format!("entry-{number:06}-{}", "ü".repeat(number % 20));
    for number in (0..MAX_LIST_ENTRIES).rev() {
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join(name(number)),
            rustix::fs::FileType::RegularFile,
            mode,
            0,
        )
        .unwrap();
    }
    let uri = format!("/v1/files/list?path={}", query(&folder));
    let listed = entries(&agent.get(&uri).await);
    assert_eq!(listed.len(), MAX_LIST_ENTRIES);
    for (number, entry) in listed.iter().enumerate() {
        assert_eq!((&entry.name, entry.is_dir, entry.size), (&name(number), false, 0));
    }
    // Those who do not read on hold what the agent is ready to hold; then one is refused, and nobody else is hurt.
    let mut stalled = Vec::new();
    let refused = loop {
        let answer = agent.open(Method::GET, &uri, Sent::Whole(None)).await;
        if answer.status() != 200 {
            break answer.status();
        }
        stalled.push(answer);
        assert!(stalled.len() < 100, "memory is not bounded");
    };
    assert!(refused == 429 && stalled.len() >= 2, "{refused} after {}", stalled.len());
    assert_eq!(
        entries(&agent.get("/v1/files/list?path=/").await).iter().filter(|entry| entry.name == "etc").count(),
        1
    );
    drop(stalled);
    until("there is room again", || async { agent.get(&uri).await.status == 200 }).await;
    std::fs::write(folder.join("one more"), "").unwrap();
    assert!(agent.get(&uri).await.error(413).message.contains("250000 entries"));
}

#[tokio::test(flavor = "current_thread")]
async fn folders_are_listed_made_moved_and_removed() {
    let Some(agent) = Agent::start().await else { return };
    let work = agent.path("work");
    let call = |method: Method, what: &str, path: &Path| {
        let uri = format!("/v1/files{what}?path={}", query(path));
        let agent = &agent;
        async move { agent.call(method, &uri, "").await }
    };
    for _ in 0..2 {
        assert_eq!(call(Method::POST, "/mkdir", &work.join("x/y")).await.status, 204);
    }
    agent.put(&query(&work.join("b")), "12345").await;
    agent.put(&query(&work.join("a")), "").await;
    symlink("nowhere", work.join("l")).unwrap();
    std::fs::write(work.join(OsStr::from_bytes(b"\xff\xfe")), "?").unwrap();
    let entries = entries(&call(Method::GET, "/list", &work).await);
    let listed: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.is_dir)).collect();
    assert_eq!(listed, [("a", false), ("b", false), ("l", false), ("x", true), ("\u{fffd}\u{fffd}", false)]);
    assert_eq!((entries[1].size, &entries[1].path), (5, &work.join("b").display().to_string()));
    // What is no text can be asked for by its bytes.
    let encoded = entries[4].encoded_path.as_deref().unwrap();
    assert!(encoded.ends_with("/work/%FF%FE") && entries[3].encoded_path.is_none(), "{encoded}");
    assert_eq!(agent.get(&format!("/v1/files?path={encoded}")).await.body, "?");
    let odd: Stat = agent.get(&format!("/v1/files/stat?path={encoded}")).await.json();
    assert_eq!((odd.size, odd.encoded_path.as_deref()), (1, Some(encoded)));
    let stat: Stat = call(Method::GET, "/stat", &work.join("l")).await.json();
    assert_eq!((stat.kind, stat.link_target.as_deref()), (FileKind::Symlink, Some("nowhere")));

    let send = |what: &str, body: serde_json::Value| {
        let uri = format!("/v1/files/{what}");
        let agent = &agent;
        async move { agent.call(Method::POST, &uri, body.to_string()).await }
    };
    assert_eq!(send("move", json!({"from": work.join("b"), "to": work.join("x/c")})).await.status, 204);
    assert_eq!(std::fs::read(work.join("x/c")).unwrap(), b"12345");
    send("move", json!({"from": work.join("b"), "to": work.join("d")})).await.error(404);
    send("move", json!({"from": work.join("a"), "to": work.join("no/d")})).await.error(404);
    send("move", json!({"from": work.join("a"), "to": work.join("x")})).await.error(400);
    send("move", json!({"from": work.join("x"), "to": work.join("x/y/z")})).await.error(400);
    std::fs::create_dir_all(work.join("full/inner")).unwrap();
    send("move", json!({"from": work.join("x"), "to": work.join("full")})).await.error(409);
    assert_eq!(send("chmod", json!({"path": work.join("a"), "mode": 0o4711})).await.status, 204);
    assert_eq!(std::fs::metadata(work.join("a")).unwrap().mode() & 0o7777, 0o4711);
    send("chmod", json!({"path": work.join("a"), "mode": 0o10000})).await.error(400);
    call(Method::POST, "/mkdir", &work.join("a/below")).await.error(400);

    for _ in 0..2 {
        assert_eq!(call(Method::DELETE, "", &work).await.status, 204);
    }
    assert!(!work.exists());
    call(Method::DELETE, "", Path::new("/")).await.error(400);
    call(Method::DELETE, "", Path::new("/proc")).await.error(409);
}

#[tokio::test(flavor = "current_thread")]
async fn hostile_paths_get_plain_answers() {
    let Some(agent) = Agent::start().await else { return };
    let fifo = agent.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    symlink("loop", agent.path("loop")).unwrap();
    std::fs::write(agent.path("file"), "x").unwrap();
    let long = "n".repeat(300);
    let longest = format!("/{}", "x/".repeat(3000));
    let cases = [
        (String::new(), 400, 400),
        ("%00".to_owned(), 400, 400),
        (query(&fifo), 400, 400),
        (query(&agent.path("loop")), 400, 400),
        (query(&agent.path("loop/x")), 400, 400),
        (query(&agent.path("file/x")), 400, 400),
        (query(agent.folder.path()), 400, 400),
        ("/dev/null".to_owned(), 400, 400),
        ("/..".to_owned(), 400, 400),
        (query(&agent.path(&long)), 400, 400),
        (query(&agent.path("file/")), 400, 400),
        (query(&agent.path("file/.")), 400, 400),
        (query(&agent.path("new/")), 404, 400),
        ("/proc/self/mem".to_owned(), 400, 403),
        (longest, 400, 400),
        (query(&agent.path("missing")), 404, 204),
        ("/proc/sys/kernel/nothing".to_owned(), 404, 403),
    ];
    for (path, get, put) in cases {
        agent.get(&format!("/v1/files?path={path}")).await.error(get);
        let answer = agent.put(&path, "y").await;
        // What the kernel says to a new name in its own file systems differs.
        if path.starts_with("/proc") {
            assert!(answer.status.is_client_error(), "{answer:?}");
        } else {
            assert_eq!(answer.status, put, "{path}: {answer:?}");
        }
    }
    // What a process uses can be read, and nothing put in its place.
    assert_eq!(agent.get("/v1/files?path=/proc/self/exe").await.status, 200);
    agent.put("/proc/self/exe", "y").await.error(400);
    for what in ["files", "files/list", "files/stat"] {
        agent.get(&format!("/v1/{what}")).await.error(400);
    }
    // A slash at the end says that a folder is meant, of a link the one it leads to.
    symlink("file", agent.path("to-file")).unwrap();
    symlink(agent.folder.path(), agent.path("to-folder")).unwrap();
    let stat = |path: &str, more: &str| {
        let uri = format!("/v1/files/stat?path={}{more}", query(&agent.path(path)));
        let agent = &agent;
        async move { agent.get(&uri).await }
    };
    for (path, more, kind) in [
        ("to-folder/.", "", FileKind::Directory),
        ("to-folder/", "", FileKind::Directory),
        ("to-folder", "", FileKind::Symlink),
        ("to-folder", "&follow=true", FileKind::Directory),
        ("to-file", "&follow=true", FileKind::File),
    ] {
        let found: Stat = stat(path, more).await.json();
        assert_eq!((found.kind, found.path.ends_with('/')), (kind, false), "{path} {more}");
    }
    stat("to-file/.", "").await.error(400);
    for bad in ["file/", "to-folder/"] {
        let uri = format!("/v1/files?path={}", query(&agent.path(bad)));
        agent.call(Method::DELETE, &uri, "").await.error(400);
    }
    assert!(agent.path("file").exists() && agent.path("to-folder").is_symlink());
    agent.get("/v1/files/list?path=/etc/passwd").await.error(400);
    agent.get("/v1/files/list?path=/no/such").await.error(404);
    agent.put(&format!("{}&mode=9", query(&agent.path("m"))), "").await.error(400);
    agent.put(&format!("{}&mode=77777", query(&agent.path("m"))), "").await.error(400);
    assert_eq!(std::fs::read(agent.path("missing")).unwrap(), b"y");
}

#[tokio::test(flavor = "current_thread")]
async fn folders_travel_as_archives() {
    let Some(agent) = Agent::start().await else { return };
    let from = agent.path("from");
    std::fs::create_dir_all(from.join("sub/deep")).unwrap();
    std::fs::write(from.join("sub/deep/file"), vec![7; 700_000]).unwrap();
    std::fs::write(from.join(format!("long-{}", "n".repeat(180))), "long").unwrap();
    std::fs::set_permissions(from.join("sub/deep/file"), PermissionsExt::from_mode(0o751)).unwrap();
    symlink("sub/deep/file", from.join("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, from.join("pipe"), rustix::fs::FileType::Fifo, 0o666.into(), 0)
        .unwrap();
    let packed = agent.get(&format!("/v1/files/archive?path={}", query(&from))).await;
    assert_eq!(packed.status, 200);
    let to = agent.path("to/here");
    let unpack = |path: &Path, archive: Bytes| {
        let uri = format!("/v1/files/archive?path={}", query(path));
        let agent = &agent;
        async move { agent.call(Method::PUT, &uri, archive).await }
    };
    for _ in 0..2 {
        let unpacked = unpack(&to, packed.body.clone()).await;
        assert_eq!(unpacked.status, 204, "{unpacked:?}");
    }
    assert_eq!(std::fs::read(to.join("sub/deep/file")).unwrap(), vec![7; 700_000]);
    assert_eq!(std::fs::metadata(to.join("sub/deep/file")).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("sub/deep/file"));
    assert_eq!(names(&to), ["link", &format!("long-{}", "n".repeat(180)), "sub"]);
    // What other programs make is understood.
    for format in ["gnu", "ustar", "posix"] {
        let tar = std::process::Command::new("tar")
            .args(["-c", "-H", format, "-C"])
            .arg(&from)
            .args(["sub", "link"])
            .output()
            .unwrap();
        let to = agent.path(format);
        assert_eq!(unpack(&to, tar.stdout.into()).await.status, 204);
        assert_eq!(std::fs::read(to.join("sub/deep/file")).unwrap(), vec![7; 700_000], "{format}");
    }
    // What breaks off or is no archive leaves what was there before as it was.
    std::fs::write(to.join("sub/deep/file"), "old").unwrap();
    unpack(&to, packed.body.slice(..packed.body.len() / 2)).await.error(400);
    assert_eq!(std::fs::read(to.join("sub/deep/file")).unwrap(), b"old");
    assert_eq!(names(&to.join("sub/deep")), ["file"]);
    unpack(&to, Bytes::from(vec![b'x'; 2000])).await.error(400);
    unpack(&agent.path("fresh/folder"), Bytes::from(vec![b'x'; 2000])).await.error(400);
    assert!(!agent.path("fresh").exists());
    // Links are replaced in one step too, and a second name of a file stays one.
    let linked = |dir: &Path| {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("one"), "one").unwrap();
        std::fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
        symlink("one", dir.join("three")).unwrap();
    };
    linked(&agent.path("linked"));
    let tar = std::process::Command::new("tar")
        .args(["-c", "-C"])
        .arg(agent.path("linked"))
        .args(["one", "two", "three"])
        .output()
        .unwrap();
    let to = agent.path("again");
    for _ in 0..2 {
        assert_eq!(unpack(&to, tar.stdout.clone().into()).await.status, 204);
        assert_eq!(names(&to), ["one", "three", "two"]);
        assert_eq!(
            std::fs::metadata(to.join("one")).unwrap().ino(),
            std::fs::metadata(to.join("two")).unwrap().ino()
        );
    }
    agent.get(&format!("/v1/files/archive?path={}", query(&agent.path("none")))).await.error(404);
    agent.get("/v1/files/archive?path=/etc/passwd").await.error(400);
    let made_up = agent.get("/v1/files/archive?path=/proc/sys").await.error(400).message;
    assert!(made_up.contains("made up by the kernel"), "{made_up}");
}

#[tokio::test(flavor = "current_thread")]
async fn an_archive_cannot_write_outside_its_folder() {
    let Some(agent) = Agent::start().await else { return };
    let outside = agent.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "untouched").unwrap();
    let to = agent.path("to");
    let entry = |archive: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &[u8], link: &Path| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(if kind.is_file() { 4 } else { 0 });
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_link_name_literal(link.as_os_str().as_bytes()).unwrap();
        header.set_cksum();
        archive.append(&header, &b"evil"[..if kind.is_file() { 4 } else { 0 }]).unwrap();
    };
    let (file, link, hard) = (tar::EntryType::Regular, tar::EntryType::Symlink, tar::EntryType::Link);
    let none = Path::new("");
    let up = Path::new("../outside");
    let secret = Path::new("door/secret");
    type Line<'a> = (tar::EntryType, &'a [u8], &'a Path);
    let cases: Vec<Vec<Line<'_>>> = vec![
        vec![(file, b"../outside/secret", none)],
        vec![(file, b"/tmp/../absolute", none)],
        vec![(file, b"a/../../outside/secret", none)],
        vec![(link, b"door", up), (file, b"door/secret", none)],
        vec![(link, b"door", &outside), (file, b"door/secret", none)],
        vec![(link, b"door", up), (tar::EntryType::Directory, b"door/new", none)],
        vec![(link, b"door", up), (hard, b"mine", secret)],
        vec![(hard, b"mine", Path::new("../outside/secret"))],
        vec![(tar::EntryType::Char, b"device", none)],
        vec![(tar::EntryType::Fifo, b"pipe", none)],
    ];
    for lines in cases {
        let mut archive = tar::Builder::new(Vec::new());
        for (kind, name, link) in &lines {
            entry(&mut archive, *kind, name, link);
        }
        let answer = agent
            .call(
                Method::PUT,
                &format!("/v1/files/archive?path={}", query(&to)),
                archive.into_inner().unwrap(),
            )
            .await;
        let last = String::from_utf8_lossy(lines.last().unwrap().1).into_owned();
        answer.error(400);
        assert_eq!(names(&outside), ["secret"], "{last}");
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"untouched", "{last}");
        // Taken back where nothing had been put into it.
        let _ = std::fs::remove_dir_all(&to);
    }
    // A symlink that is replaced by a file of the same name is replaced, not followed.
    let mut archive = tar::Builder::new(Vec::new());
    entry(&mut archive, link, b"x", &outside.join("secret"));
    entry(&mut archive, file, b"x", none);
    agent
        .call(Method::PUT, &format!("/v1/files/archive?path={}", query(&to)), archive.into_inner().unwrap())
        .await;
    assert_eq!(std::fs::read(to.join("x")).unwrap(), b"evil");
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"untouched");
}
