//! Files: paths are checked here, what they mean is decided inside the sandbox. Contents are passed on as streams.

mod listing;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use jiff::Timestamp;
use warren_api::files::{FileChmod, FileMove, FileStat, FileUrl, FileUrlCreate};
use warren_guest_api::files::{Chmod, FileKind, MAX_PATH_BYTES, Move, Stat, encoded_path};
use warren_types::{Error, ErrorKind, SandboxId};

use super::App;
use super::audit::{Kind, facts};
use super::auth::{Caller, Live};
use super::signed::{FileUse, expires_at, expiry};
pub(crate) use listing::Listing;

const MAX_MODE: u32 = 0o7777;
/// How long a signed URL may be good for: a day.
const MAX_URL_SECONDS: i64 = 24 * 3600;

/// A path that can be asked for: bytes, as the names of files are.
#[derive(Debug, Clone)]
pub(crate) struct FilePath(Vec<u8>);

impl FilePath {
    /// From the query parameter `path`.
    pub(crate) fn from_query(path: Option<Vec<u8>>) -> Result<Self, Error> {
        match path {
            Some(path) if !path.is_empty() => Self::check("path", &path).map(|()| Self(path)),
            _ => Err(Error::invalid("path query parameter is required")),
        }
    }

    /// From a field of a body.
    /// From a field of a body; as it was, if it can be asked for.
    fn from_field(field: &str, path: String) -> Result<String, Error> {
        if path.is_empty() {
            return Err(Error::invalid(format!("{field} is required")));
        }
        Self::check(field, path.as_bytes()).map(|()| path)
    }

    fn check(field: &str, path: &[u8]) -> Result<(), Error> {
        if path.len() > MAX_PATH_BYTES {
            return Err(Error::invalid(format!(
                "{field} must be at most {MAX_PATH_BYTES} bytes (got {})",
                path.len()
            )));
        }
        if path.contains(&0) {
            return Err(Error::invalid(format!("{field} must not contain NUL characters")));
        }
        Ok(())
    }

    /// For people: encoded where it is no text.
    fn shown(&self) -> Cow<'_, str> {
        std::str::from_utf8(&self.0).map_or_else(|_| encoded_path(&self.0).into(), Cow::from)
    }
}

/// Permission bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileMode(u32);

impl FileMode {
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= MAX_MODE);
        mode.map(Self).ok_or_else(|| Error::invalid("mode must be octal permission bits such as \"0755\""))
    }
}

impl App {
    /// Writes a file. Without a mode a new one gets 0644, and one that is there keeps its own.
    pub(crate) async fn write_file(
        &self,
        live: &Live,
        path: &FilePath,
        mode: Option<FileMode>,
        headers: HeaderMap,
        body: Body,
    ) -> Result<(), Error> {
        let note = live.note(Kind::FileWrite).with("path", path.shown());
        let mode = mode.map(|FileMode(mode)| format!("&mode={mode:o}")).unwrap_or_default();
        let path = format!("files?path={}{mode}", encoded_path(&path.0));
        let (body, bytes) = counted(body);
        let write = self.guest(live, Method::PUT, &path, headers, body);
        let told = |_: &Response| facts([("bytes", bytes.load(Ordering::Relaxed).into())]);
        self.audit.around_with(note, write, told).await.map(drop)
    }

    /// A call about one path whose body, if any, is content.
    pub(crate) async fn guest_file(
        &self,
        live: &Live,
        method: Method,
        route: &str,
        path: &FilePath,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response, Error> {
        let call = format!("{route}?path={}", encoded_path(&path.0));
        let kind = match (route, &method) {
            ("files", &Method::DELETE) => Kind::FileDelete,
            ("files/mkdir", _) => Kind::FileMkdir,
            ("files/archive", &Method::PUT) => Kind::FileUnpack,
            _ if self.audit.records_reads() => Kind::FileRead,
            _ => return self.guest(live, method, &call, headers, body).await,
        };
        let note = live.note(kind).with("path", path.shown());
        let (body, bytes) = counted(body);
        let told = |_: &Response| match kind {
            Kind::FileUnpack => facts([("bytes", bytes.load(Ordering::Relaxed).into())]),
            _ => facts([]),
        };
        self.audit.around_with(note, self.guest(live, method, &call, headers, body), told).await
    }

    /// Opens a folder's listing.
    pub(crate) async fn list_files(&self, live: &Live, path: &FilePath) -> Result<Listing, Error> {
        let answer =
            self.guest_file(live, Method::GET, "files/list", path, HeaderMap::new(), Body::empty()).await?;
        Ok(Listing::new(answer.into_body()))
    }

    /// What a path is; with `follow`, what a symlink leads to.
    pub(crate) async fn stat_file(
        &self,
        live: &Live,
        path: &FilePath,
        follow: bool,
    ) -> Result<FileStat, Error> {
        let follow = if follow { "&follow=true" } else { "" };
        let path = format!("files/stat?path={}{follow}", encoded_path(&path.0));
        let stat: Stat = self.guest_json(live, Method::GET, &path, None::<&()>).await?;
        let modified = Timestamp::from_millisecond(stat.modified_at_ms)
            .map_err(|_| Error::new(ErrorKind::SandboxFailed, "the sandbox sent a time that cannot be"))?;
        Ok(FileStat {
            name: stat.name,
            path: stat.path,
            encoded_path: stat.encoded_path,
            kind: kind_name(stat.kind).to_owned(),
            size: stat.size,
            mode: format!("{:04o}", stat.mode & MAX_MODE),
            uid: stat.uid,
            gid: stat.gid,
            modified_at: modified.to_string(),
            link_target: stat.link_target,
        })
    }

    pub(crate) async fn move_file(&self, live: &Live, body: FileMove) -> Result<(), Error> {
        let from = FilePath::from_field("from", body.from)?;
        let to = FilePath::from_field("to", body.to)?;
        let note = live.note(Kind::FileMove).with("from", from.as_str()).with("to", to.as_str());
        let order = Move { from, to };
        self.audit.around(note, self.guest_json::<()>(live, Method::POST, "files/move", Some(&order))).await
    }

    pub(crate) async fn chmod_file(&self, live: &Live, body: FileChmod) -> Result<(), Error> {
        let path = FilePath::from_field("path", body.path)?;
        let FileMode(mode) = FileMode::parse(&body.mode)?;
        let note = live.note(Kind::FileChmod).with("path", path.as_str()).with("mode", format!("{mode:04o}"));
        let order = Chmod { path, mode };
        self.audit.around(note, self.guest_json::<()>(live, Method::POST, "files/chmod", Some(&order))).await
    }
}

impl App {
    /// A URL that needs no other credential. Who asks must own the sandbox.
    pub(crate) async fn sign_file_url(
        &self,
        caller: &Caller,
        id: &SandboxId,
        use_: FileUse,
        body: FileUrlCreate,
        base: &str,
    ) -> Result<FileUrl, Error> {
        self.usable_standing(caller, id).await?;
        let path = FilePath::from_field("path", body.path.unwrap_or_default())?;
        let expires = expiry(body.expires_in, MAX_URL_SECONDS);
        let signature = self.urls.sign_file(id, &path, use_, expires);
        let note = caller.note(Kind::SignedUrl).of(id).with("use", use_.as_str()).with("path", path.as_str());
        self.audit.note(note.with("outcome", "done").with("expiresAt", expires_at(expires))).await?;
        let query = format!("path={}&expires={expires}&signature={signature}", form_value(&path));
        Ok(FileUrl {
            url: format!("{base}/api/sandboxes/{id}/files/{}?{query}", use_.as_str()),
            expires_at: expires_at(expires),
        })
    }
}

/// A body, and how many bytes of it have passed.
fn counted(body: Body) -> (Body, Arc<AtomicU64>) {
    let passed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&passed);
    let body = body.map_frame(move |frame| {
        if let Some(bytes) = frame.data_ref() {
            count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        frame
    });
    (Body::new(body), passed)
}

/// Encodes a value as forms do.
fn form_value(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut query, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                query.push(char::from(byte));
            }
            b' ' => query.push('+'),
            _ => write!(query, "%{byte:02X}").expect("a String takes everything"),
        }
        query
    })
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Other => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_as_in_a_form() {
        assert_eq!(form_value("/home/sandbox/a b.txt"), "%2Fhome%2Fsandbox%2Fa+b.txt");
        assert_eq!(form_value("~+&=é"), "~%2B%26%3D%C3%A9");
    }
}
