//! `warren-agent init`: PID 1 of a container. `warren-agent machine`: the first process of a virtual machine.
//! `warren-agent serve`, with options for the places it uses: the agent alone, for tests. The first and the last find their
//! listener and their settings on descriptors 3 and 4.

use std::process::ExitCode;

use warren_guest::Places;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let result = match arguments.next() {
        Some(command) if command == "init" => warren_guest::init(),
        Some(command) if command == "machine" => warren_guest::machine(),
        Some(command) if command == "serve" => {
            let mut places = Places { machine_id: None, ..Places::default() };
            while let (Some(option), Some(value)) = (arguments.next(), arguments.next()) {
                match option.to_str() {
                    Some("--cgroup") => places.cgroup = value.into(),
                    Some("--output") => places.output = value.into(),
                    Some("--journal") => places.journal = value.into(),
                    Some("--var-log") => places.var_log = value.into(),
                    _ => return usage(),
                }
            }
            warren_guest::serve(&places)
        }
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("warren-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: warren-agent init | machine | serve [--cgroup DIR] [--output DIR] [--journal DIR] [--var-log DIR]"
    );
    ExitCode::from(2)
}
