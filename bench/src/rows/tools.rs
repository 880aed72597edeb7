//! A tool called through MCP, beside the same command through the API.

use std::time::Instant;

use super::{Bench, Clock, milliseconds};
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "`sandbox_exec` of `true` through MCP, more than the same exec";
const WARM_UP: usize = 20;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let sandbox = bench.warren.create().await?.id;
    let measured = take_turns(bench, &sandbox).await;
    bench.warren.delete(&sandbox).await?;
    measured
}

async fn take_turns(bench: &mut Bench, sandbox: &str) -> anyhow::Result<Vec<Line>> {
    let (mut tool, mut exec) = (Vec::new(), Vec::new());
    let clock = Clock::start(bench);
    for round in 0..WARM_UP + bench.sizes.execs {
        let begun = Instant::now();
        bench.warren.run_by_bash(sandbox, "true").await?;
        let of_exec = milliseconds(begun.elapsed());
        let begun = Instant::now();
        bench.warren.call_tool(sandbox, "true").await?;
        let of_tool = milliseconds(begun.elapsed());
        if round >= WARM_UP {
            exec.push(of_exec);
            tool.push(of_tool);
        }
        if clock.is_over() {
            break;
        }
    }
    let more: Vec<f64> = tool.iter().zip(&exec).map(|(tool, exec)| tool - exec).collect();
    let unit = Unit::Milliseconds;
    let more = Line::new(FIGURE, WARREN, unit, more)
        .aim(50, true, 2.0)
        .note("each pair one after the other, on one connection; both are read by bash");
    Ok(vec![
        more,
        Line::new(FIGURE, "the exec itself", unit, exec),
        Line::new(FIGURE, "the tool call itself", unit, tool),
    ])
}
