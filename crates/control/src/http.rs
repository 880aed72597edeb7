//! The public edge: who asks, decode, one call into `app`, status code. One file a resource.
//!
//! Everything is served under `/api`. The data plane (commands, terminals, files) is served at the root as well, by
//! the same handlers, because some clients build those URLs without the prefix.
//!
//! Which host a request is for is looked at before any of that: names of previews never reach these routes ([`preview_host`]).

mod agents;
mod audit;
mod auth;
mod body;
mod channel;
mod checkpoints;
mod egress;
mod errors;
mod events;
mod exec;
mod exec_answer;
mod exec_ws;
mod file_list;
mod files;
mod headers;
mod health;
mod identity;
mod images;
mod json_text;
mod logs;
mod mcp;
mod openapi;
mod params;
mod patches;
mod preview_host;
mod previews;
mod pty;
mod query;
mod relay;
mod request_id;
mod sandboxes;
mod scaling;
mod secret_stores;
mod secrets;
mod signed_files;
mod snapshots;
mod tags;
mod templates;
mod tools;
mod unread;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::cors::{AllowHeaders, AllowMethods, Any, CorsLayer, ExposeHeaders};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

pub(crate) fn router(app: Arc<App>) -> Router {
    let (documented, mut document) = documented().split_for_parts();
    openapi::complete(&mut document);
    let (data_plane_at_root, _) = data_plane().split_for_parts();
    documented
        .merge(data_plane_at_root)
        .merge(openapi::routes(&document))
        .merge(mcp::routes())
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        .layer(cors())
        .layer(from_fn_with_state(Arc::clone(&app), preview_host::dispatch))
        .layer(from_fn(request_id::name_request))
        .layer(from_fn(unread::announce_close))
        .with_state(app)
}

/// Every route that clients may know of, with its description.
fn documented() -> OpenApiRouter<Arc<App>> {
    let api = sandboxes::routes()
        .merge(audit::routes())
        .merge(checkpoints::routes())
        .merge(patches::routes())
        .merge(snapshots::routes())
        .merge(images::routes())
        .merge(templates::routes())
        .merge(scaling::routes())
        .merge(egress::routes())
        .merge(secret_stores::routes())
        .merge(secrets::routes())
        .merge(logs::routes())
        .merge(tags::routes())
        .merge(usage::routes())
        .merge(previews::routes())
        .merge(signed_files::routes())
        .merge(identity::routes())
        .merge(data_plane());
    OpenApiRouter::with_openapi(openapi::about())
        .merge(health::routes())
        .merge(identity::login_routes())
        .nest("/api", api)
}

fn data_plane() -> OpenApiRouter<Arc<App>> {
    exec::routes()
        .merge(exec_ws::routes())
        .merge(agents::routes())
        .merge(pty::routes())
        .merge(files::routes())
        .merge(tools::routes())
}

/// Any page may call, with a key it was given; browsers never add credentials by themselves.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(AllowMethods::mirror_request())
        // A `*` would leave `Authorization` out.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::any())
}
