//! Machines that really boot. They need root, QEMU, a kernel package and a base template in the cache; without one of them
//! each test says what is missing and passes. `WARREN_VM_LAB` names a folder with reflinks to work in.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on ends, and says what it measured"
)]

mod agent;
mod lab;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lab::Lab;
use warren_guest_api::machine::Identity;
use warren_runtime_vm::{Accelerator, proof};

#[tokio::test]
async fn a_machine_is_what_a_container_is() {
    let Some(lab) = Lab::open().await else { return };
    let machine = lab.boot("first").await;
    // Before it is anybody's it does nothing for anybody.
    assert_eq!(machine.agent.get("/v1/exec").await.0, 503);
    let renewed = machine.agent.renew(&lab, Identity::New).await;
    println!("booted in {:?}, kernel {}", machine.timing, renewed.kernel);

    let run = async |command: &str| machine.agent.run(command).await;
    assert_eq!(
        run("id -un; hostname; pwd; nproc; echo $WHO").await,
        "sandbox\nsandbox\n/home/sandbox\n1\nme\n"
    );
    assert_eq!(run("findmnt -no FSTYPE /; mount | grep -c /dev/vd").await, "overlay\n2\n");
    assert_eq!(run("cat /etc/machine-id").await.trim(), renewed.machine_id);
    assert_eq!(run("sudo touch /etc/new && stat -c %U /etc/new").await, "root\n");
    assert_eq!(run("ls -A /dev").await, run("echo fd full fuse net null ptmx pts random shm stderr stdin stdout tty urandom zero | tr ' ' '\\n'").await);
    // What a container cannot: mounts, modules of its own kernel, an overlay below /var/lib/docker.
    assert_eq!(run("sudo mount -t tmpfs x /mnt && findmnt -no FSTYPE /mnt").await, "tmpfs\n");
    let overlay = "cd /var/lib/docker && sudo mkdir -p l u w m && sudo mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m \
                   && findmnt -no FSTYPE m";
    assert_eq!(run(overlay).await, "overlay\n");

    // The network is that of every sandbox.
    assert_eq!(run("ip -4 -o addr show eth0 | grep -o 'inet [0-9./]*'").await, "inet 10.200.0.2/32\n");
    assert_eq!(run("ip route show default").await, "default via 10.200.0.1 dev eth0 proto static \n");
    assert_eq!(run("cat /sys/class/net/eth0/mtu").await, "1400\n");
    assert_eq!(run("getent ahostsv4 warren.test | head -1 | cut -d' ' -f1").await, "192.0.2.7\n");

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let theirs: u64 = run("date +%s").await.trim().parse().unwrap();
    assert!(theirs.abs_diff(now) <= 3, "{theirs} is not {now}");
    lab.done(machine).await;
}

#[tokio::test]
async fn qemu_is_nobody_and_sees_nothing() {
    let Some(lab) = Lab::open().await else { return };
    let machine = lab.boot("jailed").await;
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", machine.pid)).unwrap();
    let status = proc("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len() + 1..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(field("Uid").iter().all(|id| id.parse::<u32>().unwrap() >= 0x1000_0000), "{status}");
    assert!(field("Groups").is_empty(), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(set), ["0000000000000000"], "{status}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), (vec!["1".to_owned()], vec!["2".to_owned()]));
    assert_eq!(field("NSpid").last().unwrap(), "1");
    for kind in ["net", "mnt", "pid", "ipc", "uts", "cgroup"] {
        let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_ne!(link(&machine.pid.to_string()), link("self"), "{kind}");
    }
    // A tree with QEMU in it, and the files of this one machine.
    let mut root: Vec<_> = std::fs::read_dir(format!("/proc/{}/root", machine.pid))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    root.sort();
    for name in &root {
        assert!(
            ["dev", "etc", "initramfs", "kernel", "lib", "lib64", "memory", "usr"].contains(&name.as_str()),
            "{name}"
        );
    }
    let mounts = proc("mountinfo");
    assert_eq!(mounts.lines().count(), 4, "{mounts}");
    for open in std::fs::read_dir(format!("/proc/{}/fd", machine.pid)).unwrap().flatten() {
        let target = std::fs::read_link(open.path()).unwrap().display().to_string();
        let known = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/net/tun", "/memory"];
        assert!(
            known.iter().any(|start| target.starts_with(start))
                || target.contains("disk.img")
                || target.ends_with(".ext4"),
            "{target}"
        );
    }
    lab.done(machine).await;
}

#[tokio::test]
async fn a_snapshot_becomes_any_number_of_machines_that_go_on_each_for_itself() {
    let Some(lab) = Lab::open().await else { return };
    let mut origin = lab.boot("origin").await;
    origin.agent.renew(&lab, Identity::New).await;
    let boot = origin.timing.agent;
    origin.agent.run("echo before > note; (i=0; while :; do echo $i > next; mv next count; i=$((i+1)); read -t 0.05 <> <(:); done) >/dev/null 2>&1 & ").await;
    origin.agent.run("head -c 2000000 /dev/urandom | tee big | sha256sum > big.sum").await;
    let snapshot = lab.snapshot(&mut origin, "first").await;
    println!("paused for {:?}, device state {} bytes", snapshot.pause, snapshot.state_bytes);
    // The origin has not noticed.
    origin.agent.run("echo after > note").await;
    let second = lab.snapshot(&mut origin, "second").await;
    println!("paused again for {:?}", second.pause);

    let mut seen = std::collections::BTreeSet::new();
    seen.insert(origin.agent.run("cat /etc/machine-id").await);
    let mut forks = Vec::new();
    for name in ["fork-1", "fork-2"] {
        let fork = lab.restore(&snapshot, name).await;
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let asked = now();
        let renewed = fork.agent.renew(&lab, Identity::New).await;
        let answered = now();
        println!("{name}: {:?}, a boot took {boot} ms", fork.timing);
        assert!(seen.insert(fork.agent.run("cat /etc/machine-id").await), "two have one machine id");
        assert_eq!(fork.agent.run("cat note; hostname").await, "before\nsandbox\n");
        assert_eq!(fork.agent.run("head -c 32 /dev/urandom | sha256sum").await.len(), 68);
        assert!(
            seen.insert(fork.agent.run("head -c 32 /dev/urandom | sha256sum").await),
            "two have the same randomness"
        );
        let theirs = Duration::from_micros(renewed.unix_time_us);
        // It was told the time when it was asked, and said what it has some time before its answer was here.
        let slack = Duration::from_millis(300);
        assert!(
            theirs + slack > asked && theirs < answered + slack,
            "{theirs:?} is not from {asked:?} to {answered:?}"
        );
        // Memory, disk and what runs are of one moment, and go on.
        assert_eq!(fork.agent.run("sha256sum < big | cmp - big.sum").await, "");
        let count = fork.agent.run("cat count").await;
        let later = fork.agent.run("sleep 0.5; cat count").await;
        assert!(later.trim().parse::<u64>().unwrap() > count.trim().parse().unwrap(), "{count} {later}");
        fork.agent.run(&format!("echo {name} > note; sync")).await;
        forks.push(fork);
    }
    // They and their origin have nothing in common any more.
    assert_eq!(origin.agent.run("cat note").await, "after\n");
    for (fork, name) in forks.iter().zip(["fork-1\n", "fork-2\n"]) {
        assert_eq!(fork.agent.run("cat note").await, name);
    }
    for fork in forks {
        lab.done(fork).await;
    }
    lab.done(origin).await;
}

#[tokio::test]
async fn a_node_comes_and_goes_and_a_command_goes_on() {
    let Some(lab) = Lab::open().await else { return };
    let mut machine = lab.boot("left").await;
    machine.agent.renew(&lab, Identity::New).await;
    let started = machine
        .agent
        .call(
            http::Method::POST,
            "/v1/exec",
            serde_json::json!({ "cmd": "bash", "args": ["-c", "for i in 1 2 3; do echo $i; sleep 0.3; done; exit 7"] }),
        )
        .await;
    assert_eq!(started.0, 201);
    let exec: serde_json::Value = serde_json::from_slice(&started.1).unwrap();
    for _ in 0..5 {
        // Hangs up in the middle of a call, as a killed node does.
        let (agent, folder) = (machine.agent, machine.folder.clone());
        let call = tokio::time::timeout(
            Duration::from_millis(20),
            agent.run("head -c 3000000 /dev/zero | tr '\\0' x"),
        );
        let _ = call.await;
        agent.leave().await;
        machine.agent = agent::Agent::connect(&folder).await;
    }
    let path = format!("/v1/exec/{}/wait?ms=5000", exec["id"].as_str().unwrap_or_else(|| panic!("{exec}")));
    let mut ended = serde_json::Value::Null;
    for _ in 0..12 {
        let (status, body) = machine.agent.get(&path).await;
        assert_eq!(status, 200);
        ended = serde_json::from_slice(&body).unwrap();
        if ended["running"] == false {
            break;
        }
    }
    assert_eq!(ended["exit"]["code"], 7, "{ended}");
    lab.done(machine).await;
}

#[tokio::test]
async fn a_balloon_gives_memory_back_and_takes_it_again() {
    let Some(lab) = Lab::open().await else { return };
    let mut machine = lab.boot("balloon").await;
    machine.agent.renew(&lab, Identity::New).await;
    // MiB of it in the host's memory.
    let held = |machine: &lab::Sandbox| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", machine.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim_end_matches("kB").trim().parse::<u64>().unwrap() >> 10
    };
    machine.agent.run("head -c 200000000 /dev/zero > /dev/shm/big").await;
    let full = held(&machine);
    machine.agent.run("rm /dev/shm/big").await;
    assert_eq!(machine.machine.balloon(256).await.unwrap(), 256);
    let total = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
    let small: u64 = machine.agent.run(total).await.trim().parse().unwrap();
    assert!(small < 256, "{small} MiB");
    let given = held(&machine);
    println!("{full} MiB held, {given} MiB after the balloon");
    assert!(given + 100 < full, "{full} MiB held, {given} MiB after");
    assert_eq!(machine.machine.balloon(512).await.unwrap(), 512);
    assert!(machine.agent.run(total).await.trim().parse::<u64>().unwrap() > small + 200);
    lab.done(machine).await;
}

#[tokio::test]
async fn kvm_is_believed_when_a_guest_has_lived_under_it_and_not_before() {
    let Some(lab) = Lab::open().await else { return };
    match lab.try_life("kvm", Accelerator::Kvm, proof::KVM_DEADLINE).await {
        Ok(took) => println!("KVM works here: a boot took {took:?}"),
        Err(reason) => println!("KVM does not work here: {reason}"),
    }
    // Whatever came of it, nothing is left that would stop the next.
    lab.try_life("emulated", Accelerator::Emulation, proof::EMULATION_DEADLINE).await.unwrap();
}

/// The record of `docs/vm-boots.md`: how many of so many boots come up. `BOOTS` says how many, 200 if it does not.
#[tokio::test]
#[ignore = "takes a quarter of an hour"]
async fn boots_without_number() {
    let Some(lab) = Lab::open().await else { return };
    let boots = std::env::var("BOOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let (mut took, mut failed) = (Vec::new(), Vec::new());
    for boot in 0..boots {
        match lab.try_life(&format!("boot-{boot}"), Accelerator::Emulation, Duration::from_secs(60)).await {
            Ok(time) => {
                println!("boot {boot}: {time:.1?}");
                took.push(time);
            }
            Err(reason) => {
                println!("boot {boot} failed: {reason}");
                failed.push(boot);
            }
        }
    }
    took.sort();
    println!(
        "{boots} boots, {} failed {failed:?}; seconds: least {:.1?}, median {:.1?}, most {:.1?}",
        failed.len(),
        took[0],
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(failed.is_empty(), "{failed:?}");
}

/// Not a check: the figures of the README. `cargo test -p warren-runtime-vm --release --test vm -- --ignored --nocapture`
#[tokio::test]
#[ignore = "measures"]
async fn figures() {
    let Some(mut lab) = Lab::open().await else { return };
    if let Some(memory) = std::env::var("MEMORY_MB").ok().and_then(|text| text.parse().ok()) {
        lab.memory_mb = memory;
    }
    let mut template = lab.boot("template").await;
    println!("boot {:?}", template.timing);
    for _ in 0..3 {
        template.agent.renew(&lab, Identity::New).await;
        let body = serde_json::json!({ "cmd": "/bin/echo", "args": ["hi"] });
        template.agent.call(http::Method::POST, "/v1/exec/run", body).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    template.machine.stop().await.unwrap();
    let snapshot = lab.snapshot(&mut template, "template").await;
    lab.done(template).await;
    let (mut totals, mut waiting) = (Vec::new(), Vec::new());
    for round in 0..12 {
        let clock = std::time::Instant::now();
        let machine = lab.restore(&snapshot, "restored").await;
        let ready = clock.elapsed();
        let mut busy = vec![machine.busy()];
        machine.agent.renew(&lab, Identity::New).await;
        let renewed = clock.elapsed();
        busy.push(machine.busy());
        let body = serde_json::json!({ "cmd": "/bin/echo", "args": ["hi"] });
        let (status, _) = machine.agent.call(http::Method::POST, "/v1/exec/run", body).await;
        assert_eq!(status, 200);
        let total = clock.elapsed();
        busy.push(machine.busy());
        println!("{round}: QEMU's CPU time {busy:.0?}");
        println!(
            "{round}: {:?}, ready {ready:.1?}, renewed {renewed:.1?}, output {total:.1?}",
            machine.timing
        );
        totals.push(total);
        // What a machine costs that waits ready: its code is translated, only its owner is new.
        let clock = std::time::Instant::now();
        machine.agent.renew(&lab, Identity::New).await;
        let body = serde_json::json!({ "cmd": "/bin/echo", "args": ["hi"] });
        machine.agent.call(http::Method::POST, "/v1/exec/run", body).await;
        waiting.push(clock.elapsed());
        lab.done(machine).await;
    }
    totals.sort();
    println!(
        "restore to first output: p50 {:.1?}, best {:.1?}, worst {:.1?}",
        totals[6], totals[0], totals[11]
    );

    waiting.sort();
    println!("renewed to first output: p50 {:.1?}, best {:.1?}", waiting[6], waiting[0]);

    let mut machine = lab.restore(&snapshot, "running").await;
    machine.agent.renew(&lab, Identity::New).await;
    let mut pauses = Vec::new();
    for round in 0..10 {
        machine.agent.run("date > now").await;
        let taken = lab.snapshot(&mut machine, &format!("running-{round}")).await;
        pauses.push(taken.pause);
    }
    pauses.sort();
    println!("pause: p50 {:.1?}, best {:.1?}, worst {:.1?}", pauses[5], pauses[0], pauses[9]);
    lab.done(machine).await;
}
