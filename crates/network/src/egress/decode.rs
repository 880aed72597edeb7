//! Compressed replies made plain, so that they can be read.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http_body::Frame;

use super::body::BoxError;

/// Compressed bytes taken at once: they become a thousand times as many at most.
const BITE: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Gzip,
    Deflate,
}

enum Decoder {
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zlib(Box<ZlibDecoder<Vec<u8>>>),
    Raw(Box<DeflateDecoder<Vec<u8>>>),
}

/// A compressed body as a plain one. One that is cut off or damaged ends in an error.
pub(crate) struct Decoded<B> {
    inner: B,
    encoding: Encoding,
    /// Made at the first byte, which tells the two forms of `deflate` apart.
    decoder: Option<Decoder>,
    waiting: Bytes,
    ended: bool,
    trailers: Option<Frame<Bytes>>,
}

impl<B> Decoded<B> {
    pub(crate) fn new(inner: B, encoding: Encoding) -> Self {
        Self { inner, encoding, decoder: None, waiting: Bytes::new(), ended: false, trailers: None }
    }
}

impl Decoder {
    fn new(encoding: Encoding, first: u8) -> Self {
        match encoding {
            Encoding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Encoding::Deflate if first & 0x0f == 8 => Self::Zlib(Box::new(ZlibDecoder::new(Vec::new()))),
            Encoding::Deflate => Self::Raw(Box::new(DeflateDecoder::new(Vec::new()))),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let out = match self {
            Self::Gzip(decoder) => decoder.write_all(bytes).map(|()| decoder.get_mut()),
            Self::Zlib(decoder) => decoder.write_all(bytes).map(|()| decoder.get_mut()),
            Self::Raw(decoder) => decoder.write_all(bytes).map(|()| decoder.get_mut()),
        }?;
        Ok(std::mem::take(out))
    }

    fn finish(&mut self) -> io::Result<Vec<u8>> {
        let out = match self {
            Self::Gzip(decoder) => decoder.try_finish().map(|()| decoder.get_mut()),
            Self::Zlib(decoder) => decoder.try_finish().map(|()| decoder.get_mut()),
            Self::Raw(decoder) => decoder.try_finish().map(|()| decoder.get_mut()),
        }?;
        Ok(std::mem::take(out))
    }
}

impl<B> http_body::Body for Decoded<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        loop {
            if let Some(first) = this.waiting.first().copied() {
                let decoder = this.decoder.get_or_insert_with(|| Decoder::new(this.encoding, first));
                let bite = this.waiting.len().min(BITE);
                let out = decoder.push(&this.waiting[..bite])?;
                this.waiting.advance(bite);
                if !out.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                }
                continue;
            }
            if this.ended {
                return Poll::Ready(this.trailers.take().map(Ok));
            }
            let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx)).transpose().map_err(Into::into)?;
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => this.waiting = data,
                end => {
                    this.ended = true;
                    this.trailers = end.and_then(Result::err);
                    let out = this.decoder.as_mut().map(Decoder::finish).transpose()?.unwrap_or_default();
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http_body_util::{BodyExt as _, Full};

    async fn decoded(bytes: Vec<u8>, encoding: Encoding) -> Result<Bytes, BoxError> {
        Decoded::new(Full::new(Bytes::from(bytes)), encoding)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn what_was_compressed_comes_out_as_it_was() {
        let text = "the same again and again, ".repeat(20_000).into_bytes();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(&text).unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(&text).unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        raw.write_all(&text).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(decoded(gzip.clone(), Encoding::Gzip).await.unwrap(), text);
        assert_eq!(decoded(zlib.finish().unwrap(), Encoding::Deflate).await.unwrap(), text);
        assert_eq!(decoded(raw.finish().unwrap(), Encoding::Deflate).await.unwrap(), text);
        assert!(decoded(gzip[..gzip.len() - 20].to_vec(), Encoding::Gzip).await.is_err());
        assert!(decoded(b"no gzip at all, in plain words".to_vec(), Encoding::Gzip).await.is_err());
        assert_eq!(decoded(Vec::new(), Encoding::Gzip).await.unwrap(), "");
    }
}
