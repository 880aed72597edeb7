//! `warren doctor`: whether this machine can run sandboxes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use warren_node::doctor::{Check, Status};

use crate::context::Context;
use crate::failure;
use crate::output::{Table, printable};
use crate::serve::DEFAULT_DATA_DIR;

#[derive(Args)]
pub(crate) struct DoctorArgs {
    /// Where the server keeps, or will keep, its data
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
}

pub(crate) async fn run(context: &Context, args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let checks = warren_node::doctor::run(&args.data_dir).await;
    let failed = checks.iter().filter(|check| check.status == Status::Fail).count();
    if context.output.json {
        let list: Vec<_> = checks.iter().map(as_json).collect();
        context.output.json(&json!({ "ok": failed == 0, "checks": list }))?;
    } else {
        print(context, &checks)?;
    }
    if failed == 0 {
        context.output.note("this machine can run sandboxes");
        return Ok(ExitCode::SUCCESS);
    }
    context
        .output
        .note(&format!("this machine cannot run sandboxes yet: {failed} of {} checks failed", checks.len()));
    Ok(ExitCode::from(failure::LOCAL))
}

fn print(context: &Context, checks: &[Check]) -> anyhow::Result<()> {
    let mut table = Table::new(&["CHECK", "STATUS", "DETAIL"]);
    for check in checks {
        table.row([check.name.to_owned(), word_of(check.status).to_owned(), check.detail.clone()]);
    }
    context.output.table(&table)?;
    for check in checks {
        if let Some(fix) = &check.fix {
            context.output.line(&format!("\n{}: {}", check.name, printable(fix)))?;
        }
    }
    Ok(())
}

fn as_json(check: &Check) -> serde_json::Value {
    json!({ "name": check.name, "status": word_of(check.status), "detail": check.detail, "fix": check.fix })
}

fn word_of(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "fail",
    }
}
