//! `warren build SOURCE`: an image, and a name for it.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use warren_api::images::{RegistryLogin, Snapshot, SnapshotCreate};

use crate::build_source::{Source, archive_body, layout_body, open_archive};
use crate::build_view::{BuildView, seconds};
use crate::client::{Answer, ArchiveImport, Client};
use crate::context::Context;
use crate::endings::Endings;
use crate::failure::usage;
use crate::output::{Output, human_bytes, printable};
use crate::registry_login::RegistryArgs;

#[derive(Args)]
#[command(after_help = "\
Prints NAME@VERSION, what `warren create --snapshot` takes. Building under a name that is taken makes its next version;
steps that were built before are not run again. Ctrl-C cancels the build.

Examples:
  warren build image.json --name tools           a manifest, as the SDKs' Image writes it
  warren build node:22                           an image of a registry
  docker save app | warren build /dev/stdin --name app
  warren build ./layout --name app               a folder with an OCI layout")]
pub(crate) struct BuildArgs {
    /// A manifest (.json; `-` is stdin), an image of a registry, an archive that holds one, or an OCI layout folder
    source: String,
    /// What the image is called [default: as its manifest or its source]
    #[arg(long)]
    name: Option<String>,
    /// What keeps its sandboxes apart from the host: container or vm [default: the server's]
    #[arg(long, value_name = "KIND")]
    isolation: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(crate) async fn run(context: &Context, args: BuildArgs) -> anyhow::Result<ExitCode> {
    let login = args.registry.read(&args.source)?;
    let source = Source::read(&args.source)?;
    let Some(name) = args.name.or_else(|| source.name()) else {
        return Err(usage("the image needs a name: give one with --name"));
    };
    build_as(context, &source, &name, args.isolation, login).await
}

/// Builds under a name, shows how it goes, and prints what it became. Signals take it back.
pub(crate) async fn build_as(
    context: &Context,
    source: &Source,
    name: &str,
    isolation: Option<String>,
    login: Option<RegistryLogin>,
) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let mut view = BuildView::new(context.output);
    let mut endings = Endings::catch()?;
    let built = tokio::select! {
        built = build(&client, &mut view, source, name, isolation, login) => built,
        code = endings.next() => {
            view.clear();
            let tidied = tokio::select! {
                tidied = cancel(&client, context.output, name) => tidied,
                _ = endings.next() => Ok(()),
            };
            return tidied.map(|()| ExitCode::from(code));
        }
    };
    view.clear();
    print(context.output, &view, &built?, name)?;
    Ok(ExitCode::SUCCESS)
}

async fn build(
    client: &Client,
    view: &mut BuildView,
    source: &Source,
    name: &str,
    isolation: Option<String>,
    login: Option<RegistryLogin>,
) -> anyhow::Result<Answer<Snapshot>> {
    let mut import = ArchiveImport { name: name.to_owned(), isolation: isolation.clone(), length: None };
    let body = match source {
        Source::Manifest(_) | Source::Reference(_) => {
            let body = SnapshotCreate {
                name: name.to_owned(),
                image: source.image(),
                new_version: true,
                isolation,
                registry_auth: login,
            };
            let mut events = view.meanwhile(client.create_snapshot(&body)).await?;
            return view.follow(&mut events).await;
        }
        Source::Archive(path) => {
            let (file, length) = open_archive(path).await?;
            import.length = length;
            archive_body(file, length, view.sending(length))
        }
        Source::Layout(folder) => layout_body(folder, view.sending(None)),
    };
    let mut events = view.meanwhile(client.import_archive(&import, body)).await?;
    view.follow(&mut events).await
}

/// Takes back what was named, and says what became of it. A version that is ready is never touched.
async fn cancel(client: &Client, output: Output, name: &str) -> anyhow::Result<()> {
    let found = client.get_snapshot(name).await.map(|answer| answer.value);
    let under_way = found.ok().filter(|snapshot| snapshot.status == "building");
    let Some(snapshot) = under_way else {
        output.note(&printable(&format!("interrupted; no build of {name} goes on")));
        return Ok(());
    };
    let version = versioned(&snapshot, name);
    client
        .delete_snapshot(&version)
        .await
        .with_context(|| format!("interrupted, but the build of {version} may go on"))?;
    output.note(&printable(&format!(
        "cancelled the build of {version}; steps that were done are kept for the next"
    )));
    Ok(())
}

fn versioned(snapshot: &Snapshot, name: &str) -> String {
    let name = snapshot.name.as_deref().unwrap_or(name);
    snapshot.version.map_or_else(|| name.to_owned(), |version| format!("{name}@{version}"))
}

fn print(output: Output, view: &BuildView, answer: &Answer<Snapshot>, name: &str) -> anyhow::Result<()> {
    let snapshot = &answer.value;
    let version = versioned(snapshot, name);
    output.made("snapshot", &version, &version, &answer.json)?;
    output.note(&printable(&format!(
        "{version}: {} in {}, {}{}",
        snapshot.status,
        seconds(view.elapsed()),
        if snapshot.isolation.is_empty() { "isolation not stated" } else { &snapshot.isolation },
        if snapshot.size_bytes > 0 {
            format!(", {}", human_bytes(snapshot.size_bytes))
        } else {
            String::new()
        },
    )));
    Ok(())
}
