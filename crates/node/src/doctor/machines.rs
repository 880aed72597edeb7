//! Whether sandboxes can be virtual machines. Containers need none of this, so what is missing is a warning.

use super::Check;
use crate::vm;

/// QEMU, the guests' kernel, and what a boot under KVM has shown.
pub(super) async fn checks() -> Vec<Check> {
    let known = tokio::task::spawn_blocking(vm::known).await;
    let Ok(vm::Known { emulator, kernel, proof }) = known else {
        return vec![Check::warn("QEMU", "the check did not come to its end", "run `warren doctor` again")];
    };
    let found = emulator.is_ok();
    let emulator = match emulator {
        Ok(version) => Check::ok("QEMU", version),
        Err(reason) => Check::warn(
            "QEMU",
            format!("sandboxes can only be containers: {reason}"),
            "apt-get install qemu-system-x86, if sandboxes are to have a kernel of their own",
        ),
    };
    if !found {
        return vec![emulator];
    }
    let kernel = match kernel {
        Some(package) => Check::ok("guest kernel", package),
        None => Check::warn(
            "guest kernel",
            "none is here yet",
            "`warren serve` fetches one from this host's package archive when it first needs it",
        ),
    };
    let proof = match proof {
        Some(Ok(ms)) => Check::ok("KVM", format!("a guest was up after {ms} ms")),
        Some(Err(reason)) => Check::warn(
            "KVM",
            format!(
                "a guest did not come up: {reason}; virtual machines are emulated in software, which is slow"
            ),
            "enable (nested) virtualisation for this machine, then remove kvm.json from the cache to have it tried again",
        ),
        None if std::path::Path::new("/dev/kvm").exists() => Check::warn(
            "KVM",
            "it has not been tried with this kernel and this QEMU",
            "`warren serve` boots a guest once and remembers what came of it",
        ),
        None => Check::warn(
            "KVM",
            "there is no /dev/kvm; virtual machines are emulated in software, which is slow",
            "enable (nested) virtualisation for this machine and load the module kvm_intel or kvm_amd",
        ),
    };
    vec![emulator, kernel, proof]
}
