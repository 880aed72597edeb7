//! Files. Every route names the file in the query parameter `path`, whose bytes may be any but NUL; relative paths are under `/home/sandbox`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One line of `GET …/files/list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    pub name: String,
    pub is_dir: bool,
    pub size: u64,
    /// Absolute.
    pub path: String,
    /// *Additive.* The path for a query, as it stands, of a file whose name is no UTF-8: what is not is replaced in `name` and `path`,
    /// which then name no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_path: Option<String>,
}

/// *Additive.* Answer of `GET …/files/stat`; a symlink is described itself, not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileStat {
    pub name: String,
    pub path: String,
    /// As in a listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded_path: Option<String>,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
    /// Permission bits in octal, e.g. `"0644"`.
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    /// RFC 3339.
    pub modified_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

/// *Additive.* Body of `POST …/files/move`; replaces what is at `to`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FileMove {
    pub from: String,
    pub to: String,
}

/// *Additive.* Body of `POST …/files/chmod`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FileChmod {
    pub path: String,
    /// Octal, e.g. `"0755"`.
    pub mode: String,
}

/// Body of `POST …/files/download-url` and `…/upload-url`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileUrlCreate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds; 3600 when absent or not positive, 86400 at most.
    #[serde(
        default,
        deserialize_with = "warren_types::whole::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub expires_in: Option<i64>,
}

/// A URL that reads or writes one file without another credential.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileUrl {
    pub url: String,
    /// RFC 3339, UTC.
    pub expires_at: String,
}
