//! An image's configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::ImageError;
use crate::digest::Digest;

/// What an image says of the processes that run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub env: BTreeMap<String, String>,
    /// As the image writes it; see [`crate::find_user`].
    pub user: String,
    /// Absolute path.
    pub workdir: Option<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
}

/// `MAX_ARG_STRLEN` of the kernel, and the `=`.
const LONGEST_VARIABLE: usize = (128 << 10) - 2;
const MOST_VARIABLES: usize = 1000;

/// The whole document, as far as it is of use.
#[derive(Debug, Clone)]
pub(crate) struct ImageConfig {
    pub(crate) config: Config,
    pub(crate) os: String,
    pub(crate) architecture: String,
    /// Of each layer with its compression undone, bottom first.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<Run>,
    #[serde(default)]
    rootfs: Option<RootFs>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    #[serde(deserialize_with = "words")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "words")]
    cmd: Vec<String>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl ImageConfig {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ImageError> {
        let broken = |why: String| ImageError::Broken(format!("its configuration cannot be read: {why}"));
        let document: Document = serde_json::from_slice(json).map_err(|error| broken(error.to_string()))?;
        let diff_ids = document.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
        let diff_ids = diff_ids.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(broken)?;
        let run = document.config.unwrap_or_default();
        let env = variables(&run.env.unwrap_or_default());
        // More than this no process can be started with.
        let longest = env.iter().map(|(name, value)| name.len() + value.len()).max();
        if longest >= Some(LONGEST_VARIABLE) || env.len() > MOST_VARIABLES {
            return Err(ImageError::TooLarge("no process can be started with its variables".to_owned()));
        }
        Ok(Self {
            config: Config {
                env,
                user: run.user.unwrap_or_default(),
                workdir: run.working_dir.and_then(|path| absolute(&path)),
                entrypoint: run.entrypoint,
                cmd: run.cmd,
            },
            os: document.os,
            architecture: document.architecture,
            diff_ids,
        })
    }
}

/// `NAME=value`; the last of a name counts, and what no environment can hold is left out.
fn variables(lines: &[String]) -> BTreeMap<String, String> {
    let pairs = lines.iter().filter_map(|line| line.split_once('='));
    let held =
        pairs.filter(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'));
    held.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn absolute(path: &str) -> Option<String> {
    match path {
        "" => None,
        _ if path.contains('\0') => None,
        _ if path.starts_with('/') => Some(path.to_owned()),
        _ => Some(format!("/{path}")),
    }
}

/// A list of words, or in very old images one of them alone.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Words::One(word)) => vec![word],
        Some(Words::Several(words)) => words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_what_runs_and_how() {
        let parsed = ImageConfig::parse(
            br#"{"os":"linux","architecture":"amd64","config":{"Env":["A=1","B=x=y","A=2","=bad","bad"],"User":"node",
            "WorkingDir":"app","Entrypoint":null,"Cmd":"bash"},"rootfs":{"type":"layers","diff_ids":[]},"history":[1]}"#,
        )
        .unwrap();
        let env = [("A".to_owned(), "2".to_owned()), ("B".to_owned(), "x=y".to_owned())];
        assert_eq!(
            parsed.config,
            Config {
                env: env.into(),
                user: "node".to_owned(),
                workdir: Some("/app".to_owned()),
                entrypoint: vec![],
                cmd: vec!["bash".to_owned()],
            }
        );
    }

    #[test]
    fn an_image_need_not_say_anything() {
        let parsed = ImageConfig::parse(br#"{"config":{},"rootfs":{}}"#).unwrap();
        assert_eq!(parsed.config, Config::default());
        assert_eq!(ImageConfig::parse(b"{}").unwrap().config, Config::default());
        assert!(ImageConfig::parse(b"3").is_err() && ImageConfig::parse(b"").is_err());
        assert!(ImageConfig::parse(br#"{"rootfs":{"diff_ids":["md5:1"]}}"#).is_err());
    }
}
