//! The launcher with this runtime alone, for its tests: `warren-vm-launcher launcher`.

fn main() -> std::process::ExitCode {
    warren_runtime::launcher::main(&[&warren_runtime_vm::Vm])
}
