//! The steps of an image, typed and checked.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use warren_api::images::ImageStep;
use warren_guest_api::files::MAX_PATH_BYTES;
use warren_types::{Error, ErrorKind};

use crate::app::exec::check_envs;
use crate::app::sandboxes::request::checked_envs;

/// What one argument of a program may have: the kernel's limit is 128 KiB.
const MAX_ARGUMENT_BYTES: usize = 120 * 1024;
/// What all packages of a step may have together, as arguments of one program.
const MAX_ARGUMENTS_BYTES: usize = 1024 * 1024;
const MAX_PACKAGES: usize = 10_000;
const MAX_PACKAGE_BYTES: usize = 1024;
const MAX_FILES: usize = 20_000;
/// Of a step in the log, in characters.
const DESCRIPTION: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    AptInstall { packages: Vec<String> },
    PipInstall { packages: Vec<String> },
    Run { commands: Vec<String> },
    Env { vars: BTreeMap<String, String> },
    Workdir { path: String },
    AddFile { path: String, content: Bytes },
    AddDir { path: String, files: Vec<DirFile> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirFile {
    pub relative_path: String,
    pub content: Bytes,
}

/// The arguments of one step, taken one by one; what is left over is refused.
struct Arguments {
    fields: Map<String, Value>,
}

// === impl Step ===

impl Step {
    pub(crate) fn parse(index: usize, step: ImageStep) -> Result<Self, Error> {
        let kind: String = step.kind.chars().take(64).collect();
        Self::read(step)
            .map_err(|error| Error { message: format!("step {index} ({kind}): {error}"), ..error })
    }

    fn read(step: ImageStep) -> Result<Self, Error> {
        let mut fields = step.beside;
        fields.extend(step.args.unwrap_or_default());
        let mut arguments = Arguments { fields };
        let read = match step.kind.as_str() {
            "apt_install" => Self::AptInstall { packages: arguments.packages()? },
            "pip_install" => Self::PipInstall { packages: arguments.packages()? },
            "run" => Self::Run { commands: arguments.commands()? },
            "env" => Self::Env { vars: arguments.vars()? },
            "workdir" => Self::Workdir { path: arguments.path()? },
            "add_file" => {
                let path = arguments.path()?;
                if path.ends_with('/') {
                    return Err(Error::invalid("path must name a file, without a slash at its end"));
                }
                arguments.encoding()?;
                Self::AddFile { path, content: arguments.content()? }
            }
            "add_dir" => Self::AddDir { path: arguments.path()?, files: arguments.files()? },
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(Error::invalid(format!(
                    "unknown step type: {other}; there are apt_install, pip_install, run, env, workdir, add_file and add_dir"
                )));
            }
        };
        arguments.end()?;
        Ok(read)
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::AptInstall { .. } => "apt_install",
            Self::PipInstall { .. } => "pip_install",
            Self::Run { .. } => "run",
            Self::Env { .. } => "env",
            Self::Workdir { .. } => "workdir",
            Self::AddFile { .. } => "add_file",
            Self::AddDir { .. } => "add_dir",
        }
    }

    /// As the SDKs send it.
    pub(crate) fn canonical(&self) -> Value {
        let text = |content: &Bytes| STANDARD.encode(content);
        let args = match self {
            Self::AptInstall { packages } | Self::PipInstall { packages } => json!({"packages": packages}),
            Self::Run { commands } => json!({"commands": commands}),
            Self::Env { vars } => json!({"vars": vars}),
            Self::Workdir { path } => json!({"path": path}),
            Self::AddFile { path, content } => {
                json!({"path": path, "content": text(content), "encoding": "base64"})
            }
            Self::AddDir { path, files } => {
                let files: Vec<Value> = files
                    .iter()
                    .map(|file| json!({"relativePath": file.relative_path, "content": text(&file.content)}))
                    .collect();
                json!({"path": path, "files": files})
            }
        };
        json!({"type": self.kind(), "args": args})
    }

    /// Whether it changes the disk so that the state after it is worth keeping.
    pub(crate) fn makes_layer(&self) -> bool {
        match self {
            Self::AptInstall { packages } | Self::PipInstall { packages } => !packages.is_empty(),
            Self::Run { commands } => !commands.is_empty(),
            Self::Env { .. } | Self::Workdir { .. } => false,
            Self::AddFile { .. } | Self::AddDir { .. } => true,
        }
    }

    /// In words, for the log. Values of variables are not shown.
    pub(crate) fn describe(&self) -> String {
        let whole = match self {
            Self::AptInstall { packages } => format!("apt install {}", packages.join(" ")),
            Self::PipInstall { packages } => format!("pip install {}", packages.join(" ")),
            Self::Run { commands } => format!("run {}", commands.join(" && ")),
            Self::Env { vars } => {
                format!("env {}", vars.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
            }
            Self::Workdir { path } => format!("workdir {path}"),
            Self::AddFile { path, content } => format!("add file {path} ({} bytes)", content.len()),
            Self::AddDir { path, files } => format!("add folder {path} ({} files)", files.len()),
        };
        in_one_line(&whole)
    }
}

/// Something that may have many lines, in one that is not too long.
pub(super) fn in_one_line(whole: &str) -> String {
    let line = whole.replace(['\n', '\r'], " ");
    match line.char_indices().nth(DESCRIPTION) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Variables of all steps together fit into every command's environment.
pub(crate) fn check_variables(steps: &[Step]) -> Result<(), Error> {
    let mut all = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        if let Step::Env { vars } = step {
            all.extend(vars.clone());
            checked_envs(all.clone())
                .map_err(|error| Error { message: format!("step {index} (env): {error}"), ..error })?;
        }
    }
    Ok(())
}

// === impl Arguments ===

impl Arguments {
    fn end(self) -> Result<(), Error> {
        match self.fields.keys().next() {
            Some(name) => {
                let name: String = name.chars().take(64).collect();
                Err(Error::invalid(format!("unknown argument: {name}; leave it out")))
            }
            None => Ok(()),
        }
    }

    fn take(&mut self, name: &str) -> Result<Value, Error> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Err(Error::invalid(format!("{name} is required"))),
            Some(value) => Ok(value),
        }
    }

    fn text(&mut self, name: &str) -> Result<String, Error> {
        as_text(name, self.take(name)?)
    }

    fn texts(&mut self, name: &str) -> Result<Vec<String>, Error> {
        let Value::Array(items) = self.take(name)? else {
            return Err(Error::invalid(format!("{name} must be a list of texts")));
        };
        items.into_iter().map(|item| as_text(name, item)).collect()
    }

    fn packages(&mut self) -> Result<Vec<String>, Error> {
        let packages = self.texts("packages")?;
        if packages.len() > MAX_PACKAGES {
            return Err(Error::invalid(format!(
                "packages may have {MAX_PACKAGES} entries (got {})",
                packages.len()
            )));
        }
        for package in &packages {
            let shown: String = package.chars().take(64).collect();
            if package.trim().is_empty()
                || package.len() > MAX_PACKAGE_BYTES
                || package.contains(char::is_control)
            {
                return Err(Error::invalid(format!(
                    "packages: {shown:?} must be a name of at most {MAX_PACKAGE_BYTES} bytes without control characters"
                )));
            }
            if package.trim_start().starts_with('-') {
                return Err(Error::invalid(format!(
                    "packages: {shown:?} would be an option; options go into a run step"
                )));
            }
        }
        let bytes: usize = packages.iter().map(|package| package.len() + 1).sum();
        if bytes > MAX_ARGUMENTS_BYTES {
            return Err(Error::invalid(format!(
                "packages may have {MAX_ARGUMENTS_BYTES} bytes in all (got {bytes}); use two steps"
            )));
        }
        Ok(packages)
    }

    fn commands(&mut self) -> Result<Vec<String>, Error> {
        let commands = self.texts("commands")?;
        let bytes: usize = commands.iter().map(|command| command.len() + 4).sum();
        if bytes > MAX_ARGUMENT_BYTES {
            return Err(Error::invalid(format!(
                "commands may have {MAX_ARGUMENT_BYTES} bytes in all (got {bytes}); add a long script with add_file and run it"
            )));
        }
        if commands.iter().any(|command| command.trim().is_empty()) {
            return Err(Error::invalid("commands must not be empty"));
        }
        Ok(commands)
    }

    fn vars(&mut self) -> Result<BTreeMap<String, String>, Error> {
        let Value::Object(fields) = self.take("vars")? else {
            return Err(Error::invalid("vars must be an object of texts"));
        };
        let mut vars = BTreeMap::new();
        for (name, value) in fields {
            let shown: String = name.chars().take(64).collect();
            if name.contains(|character: char| character.is_control() || character.is_whitespace()) {
                return Err(Error::invalid(format!(
                    "vars: {shown:?} must not contain blanks or control characters"
                )));
            }
            let value = as_text(&format!("vars.{shown}"), value)?;
            if name.len() + value.len() > MAX_ARGUMENT_BYTES {
                return Err(Error::invalid(format!("vars: {shown:?} may have {MAX_ARGUMENT_BYTES} bytes")));
            }
            vars.insert(name, value);
        }
        check_envs(&vars).map_err(|error| Error::invalid(error.message.replacen("envs:", "vars:", 1)))?;
        Ok(vars)
    }

    fn path(&mut self) -> Result<String, Error> {
        let path = self.text("path")?;
        if !path.starts_with('/') {
            return Err(Error::invalid("path must be absolute"));
        }
        check_path("path", &path)?;
        Ok(path)
    }

    fn encoding(&mut self) -> Result<(), Error> {
        check_encoding(self.fields.remove("encoding"))
    }

    fn content(&mut self) -> Result<Bytes, Error> {
        decode("content", self.fields.remove("content").unwrap_or(Value::Null))
    }

    fn files(&mut self) -> Result<Vec<DirFile>, Error> {
        let Value::Array(items) = self.take("files")? else {
            return Err(Error::invalid("files must be a list of objects with relativePath and content"));
        };
        if items.len() > MAX_FILES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("files may have {MAX_FILES} entries (got {})", items.len()),
            ));
        }
        let mut files = Vec::with_capacity(items.len());
        let (mut names, mut folders) = (BTreeSet::new(), BTreeSet::new());
        for (at, item) in items.into_iter().enumerate() {
            let field = format!("files[{at}]");
            let Value::Object(fields) = item else {
                return Err(Error::invalid(format!(
                    "{field} must be an object with relativePath and content"
                )));
            };
            let file = dir_file(&field, fields)?;
            let parts: Vec<&str> =
                file.relative_path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
            for end in 1..parts.len() {
                folders.insert(parts[..end].join("/"));
            }
            if !names.insert(parts.join("/")) {
                return Err(Error::invalid(format!("{field}: {:?} is there twice", file.relative_path)));
            }
            files.push(file);
        }
        match names.intersection(&folders).next() {
            Some(name) => Err(Error::invalid(format!("files: {name:?} is a file and a folder"))),
            None => Ok(files),
        }
    }
}

fn dir_file(field: &str, mut fields: Map<String, Value>) -> Result<DirFile, Error> {
    let path = match fields.remove("relativePath") {
        Some(Value::String(path)) if !path.is_empty() => path,
        _ => return Err(Error::invalid(format!("{field}.relativePath is required"))),
    };
    check_path(&format!("{field}.relativePath"), &path)?;
    if path.starts_with('/') || path.ends_with('/') || path == "." {
        return Err(Error::invalid(format!("{field}.relativePath must name a file below path")));
    }
    check_encoding(fields.remove("encoding"))?;
    let content = decode(&format!("{field}.content"), fields.remove("content").unwrap_or(Value::Null))?;
    match fields.keys().next() {
        Some(name) => Err(Error::invalid(format!("{field}: unknown argument: {name}; leave it out"))),
        None => Ok(DirFile { relative_path: path, content }),
    }
}

fn check_encoding(encoding: Option<Value>) -> Result<(), Error> {
    match encoding {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(word)) if word == "base64" => Ok(()),
        Some(_) => Err(Error::invalid("encoding must be base64")),
    }
}

fn as_text(name: &str, value: Value) -> Result<String, Error> {
    match value {
        Value::String(text) if text.contains('\0') => {
            Err(Error::invalid(format!("{name} must not contain NUL characters")))
        }
        Value::String(text) => Ok(text),
        _ => Err(Error::invalid(format!("{name} must be text"))),
    }
}

fn check_path(field: &str, path: &str) -> Result<(), Error> {
    if path.len() > MAX_PATH_BYTES || path.contains('\0') {
        return Err(Error::invalid(format!(
            "{field} must be at most {MAX_PATH_BYTES} bytes without NUL characters"
        )));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("{field} must not contain `..`")));
    }
    Ok(())
}

fn decode(field: &str, value: Value) -> Result<Bytes, Error> {
    let Value::String(text) = value else {
        return Err(Error::invalid(format!("{field} is required: the content in base64")));
    };
    STANDARD
        .decode(text.as_bytes())
        .map(Bytes::from)
        .map_err(|error| Error::invalid(format!("{field} is not base64: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(step: Value) -> Result<Step, Error> {
        Step::parse(3, serde_json::from_value(step).unwrap())
    }

    #[test]
    fn both_shapes_of_a_step_are_one() {
        let nested = parse(json!({"type": "run", "args": {"commands": ["a", "b"]}})).unwrap();
        assert_eq!(nested, parse(json!({"type": "run", "commands": ["a", "b"]})).unwrap());
        assert_eq!(nested.describe(), "run a && b");
        let thousand: Vec<String> = (0..1000).map(|number| format!("p{number}")).collect();
        assert!(parse(json!({"type": "apt_install", "args": {"packages": thousand}})).is_ok());
        for odd in ["it's", "a\"b", "$(x)", "é", "pandas>=2, <3", "a;b"] {
            assert!(parse(json!({"type": "pip_install", "args": {"packages": [odd]}})).is_ok(), "{odd}");
        }
    }

    #[test]
    fn each_field_is_checked_and_named_with_its_step() {
        let twice = json!([{"relativePath": "a", "content": ""}, {"relativePath": "./a", "content": ""}]);
        let clash = json!([{"relativePath": "a", "content": ""}, {"relativePath": "a/b", "content": ""}]);
        let dir = |files: Value| json!({"type": "add_dir", "args": {"path": "/d", "files": files}});
        let file = |relative: &str| dir(json!([{"relativePath": relative, "content": ""}]));
        for (step, says) in [
            (json!({"type": "apt_install"}), "packages is required"),
            (json!({"type": "apt_install", "args": {"packages": "curl"}}), "packages must be a list"),
            (json!({"type": "apt_install", "args": {"packages": [1]}}), "packages must be text"),
            (json!({"type": "apt_install", "args": {"packages": [""]}}), "must be a name"),
            (json!({"type": "apt_install", "args": {"packages": ["a\u{0}"]}}), "NUL"),
            (json!({"type": "apt_install", "args": {"packages": ["a\nb"]}}), "control characters"),
            (json!({"type": "pip_install", "args": {"packages": ["--index-url=x"]}}), "would be an option"),
            (json!({"type": "pip_install", "args": {"packages": [" -r"]}}), "would be an option"),
            (
                json!({"type": "pip_install", "args": {"packages": ["a"], "extra": 1}}),
                "unknown argument: extra",
            ),
            (json!({"type": "run", "args": {"commands": [" "]}}), "commands must not be empty"),
            (json!({"type": "run", "args": {"commands": ["x".repeat(200_000)]}}), "add_file"),
            (json!({"type": "env", "args": {"vars": {"A=B": "1"}}}), "must not be empty or contain ="),
            (json!({"type": "env", "args": {"vars": {"": "1"}}}), "must not be empty or contain ="),
            (json!({"type": "env", "args": {"vars": {"A B": "1"}}}), "blanks"),
            (json!({"type": "env", "args": {"vars": {"A": 1}}}), "vars.A must be text"),
            (json!({"type": "env", "args": {"vars": {"A": "\u{0}"}}}), "NUL"),
            (json!({"type": "workdir", "args": {"path": "x"}}), "path must be absolute"),
            (json!({"type": "workdir", "args": {"path": "/a/../b"}}), "must not contain `..`"),
            (
                json!({"type": "workdir", "args": {"path": format!("/{}", "x".repeat(4096))}}),
                "at most 4096 bytes",
            ),
            (json!({"type": "add_file", "args": {"path": "/a/", "content": ""}}), "must name a file"),
            (json!({"type": "add_file", "args": {"path": "/a"}}), "content is required"),
            (json!({"type": "add_file", "args": {"path": "/a", "content": "a"}}), "is not base64"),
            (
                json!({"type": "add_file", "args": {"path": "/a", "content": "", "encoding": "utf8"}}),
                "must be base64",
            ),
            (file("/abs"), "must name a file below path"),
            (file("../x"), "must not contain `..`"),
            (file("a\u{0}"), "NUL"),
            (file(""), "relativePath is required"),
            (dir(twice), "is there twice"),
            (dir(clash), "is a file and a folder"),
            (dir(json!([5])), "files[0] must be an object"),
        ] {
            let error = parse(step.clone()).unwrap_err();
            let kind = step["type"].as_str().unwrap();
            assert!(error.message.starts_with(&format!("step 3 ({kind}): ")), "{}", error.message);
            assert!(error.message.contains(says), "{step}: {}", error.message);
        }
    }

    #[test]
    fn variables_of_all_steps_count_together() {
        let step = |name: &str| Step::Env {
            vars: (0..6).map(|number| (format!("{name}{number}"), "x".repeat(100_000))).collect(),
        };
        assert!(check_variables(&[step("A")]).is_ok());
        assert!(check_variables(&[step("A"), step("A")]).is_ok());
        assert!(check_variables(&[step("A"), step("B")]).unwrap_err().message.starts_with("step 1 (env): "));
    }
}
