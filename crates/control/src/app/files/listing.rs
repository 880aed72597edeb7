//! What is in a folder, entry by entry as the guest says it.

use axum::body::Body;
use bytes::BytesMut;
use http_body_util::BodyExt;
use warren_api::files::FileEntry;
use warren_guest_api::files::{Entry, MAX_LIST_ENTRIES, MAX_LIST_LINE_BYTES};
use warren_types::{Error, ErrorKind};

/// The rest of a listing. Holds one piece of it at a time.
#[derive(Debug)]
pub(crate) struct Listing {
    body: Body,
    /// What has come and was not handed out yet.
    text: BytesMut,
    /// How much of `text` is known to hold no end of a line.
    searched: usize,
    entries: usize,
}

impl Listing {
    pub(super) fn new(body: Body) -> Self {
        Self { body, text: BytesMut::new(), searched: 0, entries: 0 }
    }

    /// The next entry; `None` at the end of the folder.
    pub(crate) async fn next(&mut self) -> Result<Option<FileEntry>, Error> {
        loop {
            if let Some(end) = self.text[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(self.searched + end + 1);
                self.searched = 0;
                return self.parse(&line).map(Some);
            }
            self.searched = self.text.len();
            if self.searched > MAX_LIST_LINE_BYTES {
                return Err(nonsense("a line of it does not end"));
            }
            match self.body.frame().await {
                Some(Ok(piece)) => {
                    if let Ok(bytes) = piece.into_data() {
                        self.text.extend_from_slice(&bytes);
                    }
                }
                Some(Err(error)) => return Err(nonsense(error)),
                None if self.text.is_empty() => return Ok(None),
                None => return Err(nonsense("it broke off")),
            }
        }
    }

    fn parse(&mut self, line: &[u8]) -> Result<FileEntry, Error> {
        self.entries += 1;
        if self.entries > MAX_LIST_ENTRIES {
            return Err(nonsense("it is longer than it may be"));
        }
        let Entry { name, path, encoded_path, is_dir, size } =
            serde_json::from_slice(line).map_err(nonsense)?;
        Ok(FileEntry { name, is_dir, size, path, encoded_path })
    }
}

fn nonsense(what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::SandboxFailed,
        format!("the sandbox's listing of the folder cannot be read: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use super::*;

    async fn read(pieces: Vec<Result<&'static str, &'static str>>) -> Result<Vec<String>, Error> {
        let pieces = pieces.into_iter().map(|piece| piece.map(Bytes::from).map_err(std::io::Error::other));
        let mut listing = Listing::new(Body::from_stream(stream::iter(pieces)));
        let mut names = Vec::new();
        while let Some(entry) = listing.next().await? {
            names.push(entry.name);
        }
        Ok(names)
    }

    #[tokio::test]
    async fn lines_may_come_in_any_pieces_and_must_be_whole() {
        const LINE: &str = "{\"name\":\"é\",\"path\":\"/é\",\"is_dir\":true,\"size\":1}\n";
        assert_eq!(read(vec![]).await.unwrap(), [""; 0]);
        assert_eq!(read(vec![Ok(LINE), Ok(LINE)]).await.unwrap(), ["é", "é"]);
        let (front, back) = LINE.split_at(20);
        assert_eq!(read(vec![Ok(LINE), Ok(front), Ok(""), Ok(back)]).await.unwrap(), ["é", "é"]);
        for bad in [
            vec![Ok(LINE), Ok(front)],
            vec![Ok(LINE), Err("broken off")],
            vec![Ok("[]\n")],
            vec![Ok("\n")],
            vec![Ok("x".repeat(MAX_LIST_LINE_BYTES + 1).leak()), Ok("\n")],
        ] {
            assert_eq!(read(bad).await.unwrap_err().kind, ErrorKind::SandboxFailed);
        }
        let endless = (0..=MAX_LIST_ENTRIES).map(|_| Ok(LINE)).collect();
        assert!(read(endless).await.unwrap_err().message.contains("longer"));
    }
}
