//! `warren version`.

use std::process::ExitCode;

use crate::context::Context;

pub(crate) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    if context.output.json {
        context.output.json(&serde_json::json!({ "version": version }))?;
    } else {
        context.output.line(&format!("warren {version}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
