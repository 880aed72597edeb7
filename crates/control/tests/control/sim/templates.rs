//! Templates of the simulated node, copies of checkpoints, and what all of it takes. An import ends at once; its image says
//! that it is `reference`.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use http::StatusCode;
use warren_guest_api::boot::User;
use warren_node_api::{
    CheckpointCopy, CheckpointOrigin, CheckpointReport, CheckpointState, Held, Holds, ImageLookup,
    ImageSettings, Import, ResolvedImage, Space, TemplateImport, TemplateLine, TemplateReport,
};
use warren_types::{CheckpointId, Error, SandboxId};

use super::{Answer, Change, Checkpoint, SimNode, unknown};

/// What every checkpoint and imported template takes, in bytes.
pub(crate) const EACH: u64 = 1000;

#[derive(Default)]
pub(crate) struct Templates {
    pub(crate) imported: BTreeMap<String, TemplateReport>,
    /// Imports asked for, with the password that came along.
    pub(crate) imports: Vec<(String, Option<String>)>,
    /// What the next import ends with.
    pub(crate) import_error: Option<Error>,
    pub(crate) archives: Vec<usize>,
    /// What tags stand for that have moved.
    pub(crate) moved: BTreeMap<String, String>,
    /// What registries answer, in the place of what they should.
    pub(crate) registry_error: Option<Error>,
}

fn base() -> TemplateReport {
    TemplateReport {
        name: "base".into(),
        reference: None,
        digest: "sha256:ba5e".into(),
        settings: ImageSettings::default(),
        envs: BTreeMap::new(),
        entrypoint: Vec::new(),
        cmd: Vec::new(),
        size_bytes: 1,
        created_at_ms: 1,
    }
}

impl SimNode {
    fn import(&self, reference: &str, digest: &str) -> TemplateReport {
        let mut hasher = DefaultHasher::new();
        digest.hash(&mut hasher);
        let name = format!("oci-{:032x}", hasher.finish());
        let report = TemplateReport {
            name: name.clone(),
            reference: Some(reference.to_owned()),
            digest: digest.to_owned(),
            settings: ImageSettings {
                user: Some(User { name: "app".into(), uid: 7, gid: 8, home: "/srv".into() }),
                workdir: Some("/srv/app".into()),
            },
            entrypoint: vec!["serve".into()],
            cmd: vec!["--port".into(), "80".into()],
            envs: BTreeMap::from([
                ("FROM_IMAGE".to_owned(), reference.to_owned()),
                ("DIGEST".to_owned(), digest.to_owned()),
            ]),
            ..base()
        };
        self.state().templates.imported.insert(name, report.clone());
        report
    }

    pub(super) fn template_names(&self) -> Vec<String> {
        std::iter::once("base".to_owned()).chain(self.state().templates.imported.keys().cloned()).collect()
    }
}

/// Digest of the image of that reference.
fn digest_of(reference: &str) -> String {
    let digits: String = reference.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

pub(super) async fn resolve(
    State(node): State<SimNode>,
    Json(lookup): Json<ImageLookup>,
) -> Answer<Json<ResolvedImage>> {
    let state = node.state();
    if let Some(error) = &state.templates.registry_error {
        return Err(error.clone().into());
    }
    let moved = state.templates.moved.get(&lookup.reference).cloned();
    Ok(Json(ResolvedImage { digest: moved.unwrap_or_else(|| digest_of(&lookup.reference)) }))
}

pub(super) async fn list(State(node): State<SimNode>) -> Json<Vec<TemplateReport>> {
    let state = node.state();
    Json(std::iter::once(base()).chain(state.templates.imported.values().cloned()).collect())
}

fn lines(lines: &[TemplateLine]) -> Body {
    let text: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
    Body::from(format!("\n{}", text.concat()))
}

fn progress(message: &str, done_bytes: u64, total_bytes: Option<u64>) -> TemplateLine {
    TemplateLine::Progress(Import { message: message.to_owned(), done_bytes, total_bytes })
}

pub(super) async fn import(State(node): State<SimNode>, Json(import): Json<TemplateImport>) -> Body {
    let failure = {
        let mut state = node.state();
        let templates = &mut state.templates;
        if let Some(known) = templates.imported.values().find(|known| known.digest == import.digest) {
            return lines(&[TemplateLine::Template(Box::new(known.clone()))]);
        }
        let password = import.auth.map(|auth| auth.password.expose().clone());
        templates.imports.push((import.reference.clone(), password));
        templates.import_error.take().or_else(|| templates.registry_error.clone())
    };
    let begun = progress("fetching", 1_500_000, Some(3_000_000));
    match failure {
        Some(error) => lines(&[begun, TemplateLine::Error(error)]),
        None => {
            lines(&[begun, TemplateLine::Template(Box::new(node.import(&import.reference, &import.digest)))])
        }
    }
}

pub(super) async fn archive(State(node): State<SimNode>, body: Body) -> Answer<Body> {
    let bytes = axum::body::to_bytes(body, usize::MAX).await;
    let bytes = bytes.map_err(|_| Error::invalid("the archive broke off"))?;
    node.state().templates.archives.push(bytes.len());
    if bytes.starts_with(b"bad") {
        return Ok(lines(&[TemplateLine::Error(Error::invalid("this is no archive of an image"))]));
    }
    let text = String::from_utf8_lossy(&bytes);
    let template = node.import(&text, &digest_of(&text));
    Ok(lines(&[progress("unpacking", 0, None), TemplateLine::Template(Box::new(template))]))
}

pub(super) async fn absent(State(node): State<SimNode>, Path(name): Path<String>) -> StatusCode {
    node.state().templates.imported.remove(&name);
    StatusCode::NO_CONTENT
}

pub(super) async fn space(State(node): State<SimNode>) -> Json<Space> {
    let state = node.state();
    let held = |users| Held { bytes: EACH, own_bytes: EACH, users };
    let users = |name: &str| {
        let sandboxes = state.sandboxes.values().filter(|sandbox| sandbox.spec.template == name).count();
        let checkpoints = state.checkpoints.values().filter(|one| one.origin.spec.template == name).count();
        u32::try_from(sandboxes + checkpoints).unwrap()
    };
    let count = (state.templates.imported.len() + state.checkpoints.len()) as u64;
    Json(Space {
        volume_bytes: 100 * EACH,
        free_bytes: 100 * EACH - count * EACH,
        used_bytes: count * EACH,
        templates: state.templates.imported.keys().map(|name| (name.clone(), held(users(name)))).collect(),
        checkpoints: state.checkpoints.keys().map(|id| (id.clone(), held(0))).collect(),
    })
}

pub(super) async fn copy(
    State(node): State<SimNode>,
    Path(id): Path<CheckpointId>,
    Json(copy): Json<CheckpointCopy>,
) -> Answer<Json<CheckpointReport>> {
    node.state().copies_asked += 1;
    drop(node.0.gate.read().await);
    let report = {
        let mut state = node.state();
        state.copies += 1;
        let original = state.checkpoints.get(&copy.checkpoint_id).ok_or_else(unknown)?;
        assert_eq!(original.report.state, CheckpointState::Ready, "only what is ready is copied");
        assert_eq!(original.origin.spec.template, copy.spec.template, "a copy keeps the template");
        let (files, sandbox_id) = (original.files.clone(), SandboxId::generate());
        let report = CheckpointReport {
            checkpoint_id: id.clone(),
            state: CheckpointState::Ready,
            generation: 3,
            origin: None,
            captured: true,
            consistency: None,
            pause_us: None,
            holds: Holds::Disk,
            size_bytes: EACH,
            patches: Vec::new(),
            error: None,
        };
        let made = state.checkpoints.entry(id).or_insert(Checkpoint {
            report,
            origin: CheckpointOrigin { sandbox_id, spec: copy.spec },
            files,
            patches: Vec::new(),
            damaged: false,
            disk_only: true,
        });
        CheckpointReport { origin: Some(made.origin.clone()), ..made.report.clone() }
    };
    let summary = CheckpointReport { origin: None, ..report.clone() };
    node.send_change(Change::Checkpoint(Box::new(summary)));
    Ok(Json(report))
}
