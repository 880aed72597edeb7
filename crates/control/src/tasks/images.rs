//! Gives back what images take beyond their budget, and what builds that were cut off have left behind.
//!
//! Removed, the longest unused first, while more is used than is allowed: layers no image ends in, images without a name,
//! templates nothing is made from. Never what a build needs, and never what was used a moment ago. What has a name stays.

use std::sync::Arc;

use warren_node_api::Space;
use warren_types::Error;

use crate::app::App;
use crate::app::images::build::Needed;
use crate::store::images::layers::Unused;
use crate::store::now_micros;

/// How long after a checkpoint was begun it is taken for left over, in microseconds: longer than a build has one of its own. What the end
/// of a server cut off is removed when it starts again.
const STRAY_AFTER: i64 = 60 * 60 * 1_000_000;
/// How long it is shown why an image without a name could not be built, in microseconds: a day.
const FAILED_KEPT: i64 = 24 * 60 * 60 * 1_000_000;
/// How long it is known what a reference stood for that nobody asks for, in microseconds: 90 days.
const REFERENCES_KEPT: i64 = 90 * 24 * 60 * 60 * 1_000_000;
const BASE: &str = "base";

pub(super) async fn sweep(app: Arc<App>) {
    loop {
        tokio::time::sleep(app.image_space.every).await;
        if let Err(error) = make_room(&app).await {
            tracing::warn!(%error, "what images do not need could not be removed; trying again soon");
        }
        if let Err(error) = remove_strays(&app).await {
            tracing::warn!(%error, "what builds left behind could not be removed; trying again soon");
        }
    }
}

async fn remove_strays(app: &App) -> Result<(), Error> {
    app.store.forget_failed_builds(now_micros() - FAILED_KEPT).await?;
    app.store.forget_references(now_micros() - REFERENCES_KEPT).await?;
    app.remove_stray_builds(now_micros() - STRAY_AFTER).await
}

async fn make_room(app: &App) -> Result<(), Error> {
    if app.image_space.budget_bytes == Some(0) {
        return Ok(());
    }
    let mut space = app.node.get_space().await?;
    let budget = app.image_space.budget(&space);
    if budget == 0 || space.used_bytes <= budget {
        return Ok(());
    }
    tracing::info!(
        used = space.used_bytes,
        budget,
        "images take more than they may; removing what is not used"
    );
    let unused_for = i64::try_from(app.image_space.unused_for.as_micros()).unwrap_or(i64::MAX);
    let before = now_micros().saturating_sub(unused_for);
    for unused in app.store.list_unused(before).await? {
        if !remove(app, unused, before).await? {
            continue;
        }
        // Blocks are shared, so only the node can say what that has given back.
        space = app.node.get_space().await?;
        if space.used_bytes <= budget {
            return Ok(());
        }
    }
    remove_templates(app, &space, budget).await
}

/// False when it turned out to be needed.
async fn remove(app: &App, unused: Unused, before: i64) -> Result<bool, Error> {
    match unused {
        Unused::Layer { org, key, checkpoint_id } => {
            if app.builds.is_needed(&Needed::Checkpoint(checkpoint_id.clone()))
                || !app.store.remove_layer(&org, &key, &checkpoint_id).await?
            {
                return Ok(false);
            }
            app.delete_checkpoint_row(&checkpoint_id).await?;
            tracing::info!(%key, "removed a layer");
            Ok(true)
        }
        Unused::Image { id, checkpoint_id } => {
            if checkpoint_id.is_some_and(|id| app.builds.is_needed(&Needed::Checkpoint(id))) {
                return Ok(false);
            }
            let Some(checkpoint) = app.store.remove_unused_image(&id, before).await? else {
                return Ok(false);
            };
            if let Some(checkpoint) = checkpoint {
                app.delete_checkpoint_row(&checkpoint).await?;
            }
            tracing::info!(image = %id, "removed an image without a name");
            Ok(true)
        }
    }
}

async fn remove_templates(app: &App, space: &Space, budget: u64) -> Result<(), Error> {
    let mut used = space.used_bytes;
    let mut templates = app.node.list_templates().await?;
    templates.sort_by_key(|template| template.created_at_ms);
    for template in templates {
        let name = template.name;
        let Some(held) = space.templates.get(&name).filter(|held| held.users == 0) else { continue };
        if name == BASE || app.builds.is_needed(&Needed::Template(name.clone())) {
            continue;
        }
        match app.node.ensure_template_absent(&name).await {
            Ok(()) => tracing::info!(template = %name, "removed a template"),
            Err(error) => {
                tracing::info!(template = %name, %error, "a template stays");
                continue;
            }
        }
        used = used.saturating_sub(held.own_bytes);
        if used <= budget {
            break;
        }
    }
    Ok(())
}
