//! What people read in a browser instead of a preview.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, header};
use warren_types::{Error, ErrorKind};

/// The page has no scripts and loads nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'";
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1.5rem;color:#222;\
background:#fafafa}h1{font-size:1.3rem;margin:0 0 .5rem}p{margin:.4rem 0;color:#555}@media(prefers-color-scheme:dark)\
{body{color:#eee;background:#181818}p{color:#aaa}}";

pub(super) struct Page {
    title: String,
    text: String,
    /// Seconds after which it looks again.
    again: Option<u32>,
}

/// Whether whoever asks looks at the answer in a browser. An upgrade or a call by a script is not for reading.
pub(super) fn wants_page(request: &Request) -> bool {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut accepted = request.headers().get_all(header::ACCEPT).iter();
    reads
        && !request.headers().contains_key(header::UPGRADE)
        && accepted.any(|accept| accept.to_str().is_ok_and(|accept| accept.contains("text/html")))
}

impl Page {
    pub(super) fn waking() -> Self {
        Self::new("The sandbox is waking", "This page opens by itself in a moment.".to_owned(), Some(2))
    }

    pub(super) fn nothing_listens(port: u16) -> Self {
        let text = format!(
            "The sandbox runs, but no program accepts connections on port {port}. Start one there; this page looks again by itself."
        );
        Self::new("Nothing is listening", text, Some(5))
    }

    pub(super) fn broke_off(port: u16) -> Self {
        let text = format!(
            "The program on port {port} ended the connection, or answered with something that is not HTTP."
        );
        Self::new("No answer", text, None)
    }

    pub(super) fn refused(error: &Error) -> Self {
        let (title, text) = match error.kind {
            ErrorKind::Unauthenticated => (
                "This preview is private",
                "Ask whoever runs it for a link. Programs send its token in the header X-OC-Preview-Token."
                    .to_owned(),
            ),
            ErrorKind::Forbidden => ("This link does not open the preview", capitalised(&error.message)),
            ErrorKind::NotFound => ("There is no such sandbox", capitalised(&error.message)),
            ErrorKind::Gone => ("The sandbox has ended", capitalised(&error.message)),
            _ => ("The preview cannot be shown", capitalised(&error.message)),
        };
        Self::new(title, text, None)
    }

    fn new(title: &str, text: String, again: Option<u32>) -> Self {
        Self { title: title.to_owned(), text, again }
    }

    pub(super) fn into_response(self, status: StatusCode) -> Response {
        let again = self.again.map(|seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">"));
        let html = format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
             content=\"width=device-width\">{}<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>\
             <p>{}</p></body></html>\n",
            again.unwrap_or_default(),
            escaped(&self.text),
            title = escaped(&self.title),
        );
        let mut response = (status, html).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(seconds) = self.again {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Sentences of errors begin small.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// What is said may come from a guest.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, character| {
        match character {
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '&' => html.push_str("&amp;"),
            '"' => html.push_str("&quot;"),
            _ => html.push(character),
        }
        html
    })
}
