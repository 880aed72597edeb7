//! Sends a tree, or a part of one, into a sandbox.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use reqwest::Body;
use warren_types::SandboxId;

use super::super::tree::pack::{Packed, pack};
use super::super::tree::{Name, Scan};
use crate::archive::{self, PieceWriter};
use crate::client::Client;
use crate::output::Output;
use crate::progress::Progress;

const AT_ONCE: usize = 8;

/// `copies`: where small files are kept as they were sent.
pub(crate) async fn send(
    client: &Client,
    output: Output,
    (sandbox, folder): (&SandboxId, &str),
    scan: &Arc<Scan>,
    names: Vec<Name>,
    copies: Option<PathBuf>,
) -> anyhow::Result<Packed> {
    let total = names.iter().filter_map(|name| scan.entries.get(name)).map(|found| found.stamp.size).sum();
    let progress = Arc::new(Progress::new(Some(total), output));
    let (sender, receiver) = archive::channel();
    let packing = tokio::task::spawn_blocking({
        let (scan, progress) = (Arc::clone(scan), Arc::clone(&progress));
        move || {
            let mut writer = PieceWriter::new(sender);
            let packed = pack(&scan, &names, &mut writer, copies.as_deref(), &|bytes| progress.add(bytes));
            if let Err(error) = &packed {
                writer.fail(error);
            }
            packed
        }
    });
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let written = client.write_archive(sandbox, folder, Body::wrap_stream(pieces)).await;
    let packed = packing.await.context("the packing thread failed")?;
    progress.finish(output);
    match packed {
        Ok(packed) => written.map(|()| packed),
        // The server hung up and has said why.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            written.and(Err(error).context("the upload broke off"))
        }
        Err(error) => Err(error).context("could not pack the folder"),
    }
}

/// Removes what is not here any more.
pub(crate) async fn remove(
    client: &Client,
    (sandbox, folder): (&SandboxId, &str),
    names: &[Name],
) -> anyhow::Result<()> {
    // What is in a folder that goes needs no call of its own.
    let mut tops: Vec<&Name> = Vec::new();
    for name in names {
        if !tops
            .last()
            .is_some_and(|top| name.strip_prefix(top.as_str()).is_some_and(|rest| rest.starts_with('/')))
        {
            tops.push(name);
        }
    }
    let calls = tops
        .into_iter()
        .map(|name| async move { client.remove_file(sandbox, &format!("{folder}/{name}")).await });
    let results: Vec<_> = stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
    results.into_iter().collect()
}
