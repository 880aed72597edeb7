//! Connections to ports.

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use warren_guest_api::ports::CODE_NOTHING_LISTENING;

use crate::client::{Agent, Broken, PATIENCE, Sent};

type Input = mpsc::Sender<Result<Bytes, Broken>>;

/// The agent of a test shares the network of the machine.
async fn listen(address: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn connect(agent: &Agent, listener: &TcpListener, port: u16) -> (TcpStream, Input, Incoming) {
    let (input, body) = mpsc::channel(4);
    let path = format!("/v1/ports/{port}");
    let (answer, accepted) =
        tokio::join!(agent.open(Method::POST, &path, Sent::Live(body)), listener.accept());
    assert_eq!(answer.status(), 200);
    (accepted.unwrap().0, input, answer.into_body())
}

/// The next bytes; the end of a body may come as a piece without any.
async fn read(body: &mut Incoming) -> Option<Bytes> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("it comes in time")?;
        let bytes = frame.unwrap().into_data().unwrap();
        if !bytes.is_empty() {
            return Some(bytes);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let Some(agent) = Agent::start().await else { return };
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (listener, port) = listen(address).await;
        let (mut program, input, mut output) = connect(&agent, &listener, port).await;
        program.write_all(b"hello").await.unwrap();
        assert_eq!(read(&mut output).await.unwrap(), "hello", "without having been asked anything");
        input.send(Ok("question".into())).await.unwrap();
        let mut heard = [0; 8];
        program.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"question");
        drop(input);
        assert_eq!(program.read(&mut heard).await.unwrap(), 0, "the end of the input is passed on");
        program.write_all(b"answer").await.unwrap();
        program.shutdown().await.unwrap();
        assert_eq!(read(&mut output).await.unwrap(), "answer", "after the end of the input");
        assert_eq!(read(&mut output).await, None);
    }
    // The other way round: the program ends first and still reads.
    let (listener, port) = listen("127.0.0.1:0").await;
    let (mut program, input, mut output) = connect(&agent, &listener, port).await;
    program.shutdown().await.unwrap();
    assert_eq!(read(&mut output).await, None);
    input.send(Ok("late".into())).await.unwrap();
    drop(input);
    let mut heard = String::new();
    program.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "late");
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_that_is_given_up_closes_the_connection_even_when_the_program_does_not_read() {
    let Some(agent) = Agent::start().await else { return };
    let (listener, port) = listen("127.0.0.1:0").await;
    let (mut program, input, output) = connect(&agent, &listener, port).await;
    // As much as anybody takes: the program's own buffers, then the agent's and the connection's.
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    while let Ok(Ok(())) =
        tokio::time::timeout(std::time::Duration::from_millis(300), input.send(Ok(piece.clone()))).await
    {}
    drop(output);
    drop(input);
    let mut taken = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, program.read_to_end(&mut taken)).await;
    assert!(ended.is_ok(), "it is still open after {} bytes", taken.len());
}

#[tokio::test(flavor = "current_thread")]
async fn what_does_not_listen_is_said_by_name_and_what_is_no_port_refused() {
    let Some(agent) = Agent::start().await else { return };
    let (listener, port) = listen("127.0.0.1:0").await;
    drop(listener);
    let answer = agent.call(Method::POST, &format!("/v1/ports/{port}"), "").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    let error: warren_types::Error = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(error.code.as_deref(), Some(CODE_NOTHING_LISTENING));
    assert!(error.message.contains(&port.to_string()), "{error}");
    for (path, status) in [
        ("/v1/ports/0", 400),
        ("/v1/ports/65536", 400),
        ("/v1/ports/x", 400),
        ("/v1/ports/", 400),
        ("/v1/ports", 404),
        ("/v1/ports/80/x", 404),
    ] {
        assert_eq!(agent.call(Method::POST, path, "").await.status, status, "{path}");
    }
    assert_eq!(agent.get("/v1/ports/80").await.status, 405);
}

#[tokio::test(flavor = "current_thread")]
async fn much_goes_through_unchanged() {
    const LENGTH: usize = 24 << 20;
    let Some(agent) = Agent::start().await else { return };
    let (listener, port) = listen("127.0.0.1:0").await;
    let (program, input, mut output) = connect(&agent, &listener, port).await;
    let echo = tokio::spawn(async move {
        let (mut reader, mut writer) = program.into_split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap()
    });
    let text: Bytes = (0..LENGTH).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect::<Vec<_>>().into();
    let sending = async {
        for piece in text.chunks(100_000) {
            input.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        drop(input);
    };
    let receiving = async {
        let mut received = Vec::with_capacity(LENGTH);
        while let Some(piece) = read(&mut output).await {
            received.extend_from_slice(&piece);
        }
        received
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert!(received == text, "{} of {LENGTH} bytes came back, or others", received.len());
    assert_eq!(echo.await.unwrap(), LENGTH as u64);
}
