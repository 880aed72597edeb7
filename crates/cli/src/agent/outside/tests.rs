use super::*;
use crate::agent::kinds::Kind;

fn planned(kind: Kind, prompt: Option<&str>) -> (Plan, Scratch) {
    let sandbox = "sb-00000001".parse().unwrap();
    let outside = Outside {
        kind,
        sandbox: &sandbox,
        folder: "/workspace/x",
        task: Task { prompt, ..Task::default() },
        timeout: None,
    };
    let scratch = Scratch::make().unwrap();
    let tools = Tools {
        program: "/usr/bin/warren".to_owned(),
        arguments: vec!["mcp".to_owned()],
        envs: BTreeMap::from([("OPENCOMPUTER_API_KEY".to_owned(), "osb_key".to_owned())]),
    };
    let place = Place { outside: &outside, scratch: &scratch, tools };
    let plan = match kind {
        Kind::ClaudeCode => claude_code::plan(&place).unwrap(),
        Kind::Codex => codex::plan(&place).unwrap(),
        Kind::OpenCode => open_code::plan(&place).unwrap(),
    };
    (plan, scratch)
}

#[test]
fn neither_prompt_nor_key_is_among_arguments_or_variables() {
    for kind in Kind::ALL {
        for prompt in [Some("do the thing"), None] {
            let (plan, _scratch) = planned(kind, prompt);
            let said = format!("{:?} {:?}", plan.arguments, plan.envs);
            assert!(!said.contains("osb_key") && !said.contains("do the thing"), "{kind}: {said}");
            assert_eq!(plan.lines == Lines::Plain, prompt.is_none(), "{kind}");
        }
    }
}

#[test]
fn what_codex_reads_is_what_was_meant() {
    let (_, scratch) = planned(Kind::Codex, Some("x"));
    let written = std::fs::read_to_string(scratch.path("home/.codex/config.toml")).unwrap();
    let config: toml::Table = toml::from_str(&written).unwrap();
    assert_eq!(config["sandbox_mode"].as_str(), Some("read-only"));
    assert_eq!(config["features"]["shell_tool"].as_bool(), Some(false));
    assert_eq!(config["mcp_servers"]["warren"]["command"].as_str(), Some("/usr/bin/warren"));
}

#[test]
fn the_scratch_folder_is_ones_own_and_goes() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_, scratch) = planned(Kind::ClaudeCode, None);
    let path = scratch.folder.path().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(scratch.path("mcp.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(scratch.path("work")).unwrap().count(), 0);
    sweep();
    assert!(path.exists(), "its run lasts");
    drop(scratch);
    assert!(!path.exists());
    let left = std::env::temp_dir().join(format!("{PREFIX}of-a-run-that-was-cut-off-{}", std::process::id()));
    std::fs::create_dir(&left).unwrap();
    sweep();
    assert!(left.exists(), "it is being made");
    std::fs::write(left.join(LOCK), "").unwrap();
    sweep();
    assert!(!left.exists());
}
