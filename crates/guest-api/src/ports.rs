//! Connections to what listens inside a sandbox.
//!
//! `POST /v1/ports/{port}` is one connection: the agent connects to `127.0.0.1:port`, then to `[::1]:port`, and answers 200
//! once it is connected. The body of the request is written to the connection, what comes back is the body of the answer.
//! Each direction ends by itself: the end of a body is passed on as the end of that direction, so a half-closed connection
//! stays one. Whoever gives the call up closes the connection.
//!
//! Agents from before this route answer 404, as to any path they do not know.

/// The code of the error when no program accepts connections on that port.
pub const CODE_NOTHING_LISTENING: &str = "nothing_listening";
