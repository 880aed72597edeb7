//! Machines that really boot. They need root, QEMU, a kernel package and a base template in the cache; without one of them
//! each test says what is missing and passes.

mod agent;
mod lab;

use std::time::{Duration, Instant};

use lab::Lab;
use warren_guest_api::machine::Identity;

#[tokio::test]
async fn a_machine_boots_is_renewed_runs_commands_and_is_restored_as_another() {
    let Some(lab) = Lab::open().await else { return };
    let first = lab.boot("first").await;
    // Before it is anybody's it does nothing for anybody.
    assert_eq!(first.agent.get("/v1/exec").await.0, 503);
    let renewed = first.agent.renew(&lab, Identity::New).await;
    println!("kernel {}, machine id {}", renewed.kernel, renewed.machine_id);
    let root = first.agent.run("id -un; hostname; cat /proc/1/cmdline | tr '\\0' ' '; pwd; nproc").await;
    assert_eq!(root, "sandbox\nsandbox\n/init machine \n/home/sandbox\n1\n");
    assert_eq!(
        first.agent.run("touch /etc/x 2>&1 || sudo touch /etc/x && stat -c %U /etc/x").await.lines().last(),
        Some("root")
    );
    assert_eq!(first.agent.run("getent hosts warren.test").await, "192.0.2.7       warren.test\n");
    assert_eq!(
        first
            .agent
            .run("cat /proc/net/route | wc -l; ip -4 -o addr show eth0 | grep -o 'inet [0-9./]*'")
            .await,
        "5\ninet 10.200.0.2/32\n"
    );
    assert_eq!(
        first.agent.run("sudo mount -t tmpfs x /mnt && findmnt -no FSTYPE / /mnt /var/lib/docker").await,
        ""
    );
    lab.done(first).await;
    let _ = (Duration::ZERO, Instant::now());
}
