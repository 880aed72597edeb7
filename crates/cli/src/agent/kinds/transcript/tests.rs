use super::*;

/// As the three write it, cut to what is read.
const CLAUDE_CODE: &str = r#"{"type":"system","subtype":"init","session_id":"s-1","model":"claude-opus-5-5"}
{"type":"assistant","message":{"content":[{"type":"text","text":"Let me look.\nFirst the tests."},{"type":"tool_use","name":"Bash","input":{"command":"python3 test.py\nls"}}]}}
{"type":"user","message":{"content":[{"type":"tool_result","is_error":true,"content":"Exit code 1\nAssertionError"}]}}
{"type":"assistant","message":{"content":[{"type":"text","text":"all done"}]}}
{"type":"result","subtype":"success","is_error":false,"total_cost_usd":0.024,"usage":{"input_tokens":4000,"output_tokens":400}}
"#;
const CODEX: &str = r#"{"type":"thread.started","thread_id":"t-1"}
{"type":"item.started","item":{"type":"command_execution","command":"/bin/bash -lc ls"}}
{"type":"item.completed","item":{"type":"command_execution","command":"/bin/bash -lc ls","aggregated_output":"no","exit_code":2}}
{"type":"item.completed","item":{"type":"agent_message","text":"all done"}}
{"type":"turn.completed","usage":{"input_tokens":4000,"output_tokens":400}}
"#;
const OPEN_CODE: &str = r#"{"type":"step_start","sessionID":"o-1","part":{}}
{"type":"tool_use","part":{"tool":"bash","state":{"status":"completed","input":{"command":"ls"},"output":"no","metadata":{"exit":2}}}}
{"type":"step_finish","part":{"tokens":{"input":1000,"output":100,"cache":{"read":5,"write":0}},"cost":0.002}}
{"type":"text","part":{"text":"all done"}}
{"type":"step_finish","part":{"tokens":{"input":1000,"output":100,"cache":{"read":5,"write":0}},"cost":0.002}}
"#;

fn shown(lines: Lines, text: &str) -> (Vec<String>, Totals) {
    let mut transcript = Transcript::new(lines);
    // However it is cut, it is the same.
    let mut shown: Vec<_> = text.as_bytes().chunks(7).flat_map(|piece| transcript.push(piece)).collect();
    shown.extend(transcript.finish());
    (shown, transcript.totals().clone())
}

#[test]
fn each_agents_lines_are_told_alike() {
    let (lines, totals) = shown(Lines::ClaudeCode, CLAUDE_CODE);
    assert_eq!(
        lines,
        [
            "· Claude Code with claude-opus-5-5",
            "Let me look.",
            "First the tests.",
            "→ Bash  python3 test.py",
            "  ✗ Exit code 1",
            "  ✗ AssertionError",
            "all done",
            "· 1 tool call, 4000 tokens in, 400 out, $0.0240",
        ]
    );
    assert_eq!((totals.text.as_deref(), totals.session.as_deref()), (Some("all done"), Some("s-1")));

    let (lines, totals) = shown(Lines::Codex, CODEX);
    assert_eq!(lines[1..3], ["→ shell  /bin/bash -lc ls", "  ✗ exit code 2: no"]);
    assert_eq!(lines.last().unwrap(), "· 1 tool call, 4000 tokens in, 400 out");
    assert_eq!((totals.text.as_deref(), totals.session.as_deref()), (Some("all done"), Some("t-1")));

    let (lines, totals) = shown(Lines::OpenCode, OPEN_CODE);
    assert_eq!(lines[..2], ["→ bash  ls", "  ✗ exit code 2: no"]);
    assert_eq!(lines.last().unwrap(), "· 1 tool call, 2010 tokens in, 200 out, $0.0040");
    assert_eq!((totals.text.as_deref(), totals.session.as_deref()), (Some("all done"), Some("o-1")));
}

#[test]
fn why_it_did_not_finish_is_kept() {
    let said = [
        (
            Lines::ClaudeCode,
            r#"{"type":"result","subtype":"error_max_turns","is_error":true,"errors":["too many turns"]}"#,
            "too many turns",
        ),
        (Lines::Codex, r#"{"type":"turn.failed","error":{"message":"no credit"}}"#, "no credit"),
        (
            Lines::OpenCode,
            r#"{"type":"error","error":{"name":"APIError","data":{"message":"no credit"}}}"#,
            "no credit",
        ),
    ];
    for (lines, line, why) in said {
        assert_eq!(shown(lines, line).1.error.as_deref(), Some(why));
    }
}

#[test]
fn nonsense_is_shown_and_steers_nothing() {
    for lines in [Lines::ClaudeCode, Lines::Codex, Lines::OpenCode, Lines::Plain] {
        let text = "\x1b[2Jgarbage\n[1,2]\n{\"type\":\n{\"type\":7,\"part\":[],\"item\":\"x\"}\n\n\u{fffd}\n";
        let (said, totals) = shown(lines, text);
        assert!(said.iter().all(|line| !line.chars().any(char::is_control)), "{said:?}");
        assert_eq!(said[0], "\\u{1b}[2Jgarbage");
        assert_eq!(totals.error, None);
    }
}

#[test]
fn a_line_without_end_takes_no_memory_without_end() {
    let mut transcript = Transcript::new(Lines::Codex);
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..20 {
        assert!(transcript.push(&piece).is_empty());
        assert!(transcript.begun.len() <= MAX_LINE);
    }
    assert_eq!(transcript.push(b"\n"), [format!("(a line of {} bytes is left out)", 20 << 20)]);
    assert_eq!(transcript.push(&[&b"y".repeat(2000)[..], b"\n"].concat())[0].chars().count(), MAX_SHOWN + 1);
}
