//! The agent as PID 1 of a sandbox.

use serde_json::Value;

use crate::client::{Agent, descendants, until};

#[tokio::test(flavor = "current_thread")]
async fn pid_1_collects_orphans_and_ends_with_the_agent() {
    let Some(mut agent) = Agent::start_as_init().await else { return };
    let seen = agent
        .run("cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline; cat /proc/$PPID/stat", Value::Null)
        .await;
    let lines: Vec<&str> = seen.text().lines().collect();
    assert_eq!(lines[0], "warren-agent");
    let parent: Vec<&str> = lines[1].split(" 2 (warren-agent) ").collect();
    assert!(parent[0].ends_with(" init"), "{parent:?}");
    assert_eq!(parent[1].split(' ').nth(1), Some("1"), "the agent is PID 1's child");
    for _ in 0..20 {
        assert_eq!(
            agent.run("(setsid true & setsid sh -c 'exit 3' &) ; exit 5", Value::Null).await.code(),
            5
        );
    }
    until("no zombie is left", || async {
        agent.run("cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true", Value::Null).await.text()
            == "0\n"
    })
    .await;
    let [_pid_1, guest] = descendants(agent.pid())[..] else { panic!("two processes were expected") };
    let guest = rustix::process::Pid::from_raw(guest).unwrap();
    rustix::process::kill_process(guest, rustix::process::Signal::KILL).unwrap();
    assert_eq!(agent.ended().await, Some(1), "without its agent a sandbox ends");
}
