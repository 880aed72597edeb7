//! See `lib.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    warren_cli::main()
}
