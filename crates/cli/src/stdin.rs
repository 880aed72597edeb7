//! Reads standard input on a thread of its own and hands it out in pieces.
//!
//! The thread may sit in `read` for ever; nobody waits for it, the process ends around it. The channel is short, so input
//! that the other end does not take stays with whoever writes it.

use bytes::Bytes;
use std::io::Read as _;
use tokio::sync::mpsc;

use crate::output::say;

const PIECE_BYTES: usize = 32 * 1024;

/// Pieces of standard input. The channel ends where the input does; input that cannot be read any further ends there, and
/// that is said: whoever reads it takes it for whole.
pub(crate) fn read_stdin() -> std::io::Result<mpsc::Receiver<Bytes>> {
    let (pieces, receiver) = mpsc::channel(4);
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if pieces.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    say(&format!("warning: stdin could not be read to its end: {error}"));
                    return;
                }
            }
        }
    })?;
    Ok(receiver)
}
