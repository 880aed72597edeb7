//! Answers for a sandbox whose traffic the gateway reads.
//!
//! | question | answer |
//! | --- | --- |
//! | A, of an allowed name | its addresses that may be reached, pinned; NXDOMAIN where none of them may |
//! | AAAA, HTTPS, SVCB, of an allowed name | none: IPv4 only, and no hints that lead past the gateway |
//! | anything else | without an allowlist what the host's resolver says; under one refused |
//! | any name that is not allowed | refused |
//! | what is no question | nothing |
//!
//! Under an allowlist only names that are on it leave the host, and [`Rate`] bounds how many, so that names carry little
//! out.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use warren_types::EgressMode;
use warren_types::egress::normal_host;

use super::Served;
use crate::egress::{Gateway, Session};

/// How long an answer may be kept by who asked.
const TTL: Duration = Duration::from_secs(30);
/// Largest question, in bytes: the header, one name, and what resolvers of today add.
const MAX_QUESTION: usize = 1232;

/// What is to be answered to a question that could be read.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// To be looked up.
    Addresses(String),
    /// It exists, and has nothing of this type.
    Nothing,
    /// What the host's resolver says.
    Theirs,
    Refused(String, &'static str),
}

/// Questions for addresses that a sandbox may ask at once, and in a second after that.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 50.0;

/// How many questions a sandbox may still ask.
#[derive(Debug)]
pub(super) struct Rate(Mutex<(f64, Instant)>);

impl Default for Rate {
    fn default() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }
}

impl Rate {
    fn take(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *state;
        let left = (left + since.elapsed().as_secs_f64() * PER_SECOND).min(BURST);
        let enough = left >= 1.0;
        *state = (if enough { left - 1.0 } else { left }, Instant::now());
        enough
    }
}

pub(super) async fn answer(question: &[u8], served: &Served) -> Option<Vec<u8>> {
    let (session, gateway) = (&*served.session, &*served.gateway);
    let asked = read(question)?;
    let (metadata, query) = (asked.metadata, asked.queries.into_iter().next()?);
    let mut answer = Message::response(metadata.id, metadata.op_code);
    answer.metadata.recursion_desired = metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    match judge(&query, session) {
        Verdict::Theirs => return served.forward(question).await,
        Verdict::Addresses(host) if !served.rate.take() => {
            session.note_blocked(&host, 0, "too many questions for names");
            answer.metadata.response_code = ResponseCode::Refused;
        }
        Verdict::Addresses(host) => match look_up(&host, session, gateway).await {
            Ok(addresses) if addresses.is_empty() => answer.metadata.response_code = ResponseCode::NXDomain,
            Ok(addresses) => {
                let ttl = u32::try_from(TTL.as_secs()).unwrap_or(u32::MAX);
                for address in addresses {
                    answer.add_answer(Record::from_rdata(
                        query.name().clone(),
                        ttl,
                        RData::A(address.into()),
                    ));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            Err(_) => answer.metadata.response_code = ResponseCode::ServFail,
        },
        Verdict::Nothing => {}
        Verdict::Refused(name, reason) => {
            session.note_blocked(&name, 0, reason);
            answer.metadata.response_code = ResponseCode::Refused;
        }
    }
    answer.to_vec().ok()
}

/// One plain question, or nothing.
fn read(bytes: &[u8]) -> Option<Message> {
    if bytes.len() > MAX_QUESTION {
        return None;
    }
    let message = Message::from_vec(bytes).ok()?;
    let plain = message.metadata.message_type == MessageType::Query
        && message.metadata.op_code == OpCode::Query
        && message.queries.len() == 1
        && message.answers.is_empty()
        && message.authorities.is_empty();
    plain.then_some(message)
}

fn judge(query: &Query, session: &Session) -> Verdict {
    let text = query.name().to_ascii();
    let Some(host) = normal_host(&text).filter(|_| query.query_class() == DNSClass::IN) else {
        return Verdict::Refused(text, "not a name of a host");
    };
    let policy = session.policy();
    if policy.mode == EgressMode::None {
        return Verdict::Refused(host, "this sandbox has no network");
    }
    if !policy.allows_name(&host) {
        return Verdict::Refused(host, "host not in allowlist");
    }
    match query.query_type() {
        RecordType::A => Verdict::Addresses(host),
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => Verdict::Nothing,
        _ if policy.mode == EgressMode::Open => Verdict::Theirs,
        _ => Verdict::Refused(host, "only addresses are asked for"),
    }
}

/// Addresses of a name that may be reached, pinned.
async fn look_up(host: &str, session: &Session, gateway: &Gateway) -> std::io::Result<Vec<Ipv4Addr>> {
    let found = gateway.names().lookup(host).await?;
    let (allowed, denied): (Vec<Ipv4Addr>, Vec<Ipv4Addr>) =
        found.into_iter().partition(|address| gateway.reach().allows(*address));
    if !denied.is_empty() {
        session.note_blocked(host, 0, "private IP blocked");
    }
    session.pin(host, &allowed, TTL);
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Name;
    use warren_types::{EgressPolicy, SandboxId};

    fn session(policy: &str, sealed: bool) -> std::sync::Arc<Session> {
        let policy: EgressPolicy = serde_json::from_str(policy).unwrap();
        Session::new(SandboxId::generate(), policy, sealed, crate::Limits::default())
    }

    fn query(name: &str, kind: RecordType) -> Query {
        Query::query(Name::from_ascii(name).unwrap(), kind)
    }

    #[test]
    fn only_addresses_of_allowed_names_are_asked_for() {
        let session = session(r#"{"mode":"allowlist","allow":[{"host":"*.example.com"}]}"#, false);
        let verdict = |name: &str, kind| judge(&query(name, kind), &session);
        assert_eq!(verdict("API.example.com.", RecordType::A), Verdict::Addresses("api.example.com".into()));
        assert_eq!(verdict("api.example.com.", RecordType::AAAA), Verdict::Nothing);
        assert_eq!(verdict("api.example.com.", RecordType::HTTPS), Verdict::Nothing);
        for (name, kind) in [
            ("example.com.", RecordType::A),
            ("evil.com.", RecordType::A),
            ("api.example.com.", RecordType::TXT),
            ("api.example.com.", RecordType::ANY),
            ("api.example.com.", RecordType::NULL),
        ] {
            assert!(matches!(verdict(name, kind), Verdict::Refused(..)), "{name} {kind}");
        }
    }

    #[test]
    fn with_secrets_and_no_list_the_rest_is_the_resolvers() {
        let session = session(r#"{"mode":"open"}"#, true);
        assert_eq!(judge(&query("example.com.", RecordType::TXT), &session), Verdict::Theirs);
        assert_eq!(
            judge(&query("example.com.", RecordType::A), &session),
            Verdict::Addresses("example.com".into())
        );
    }

    #[test]
    fn questions_run_out() {
        let rate = Rate::default();
        let asked = (0..1000).take_while(|_| rate.take()).count();
        assert!((200..300).contains(&asked), "{asked}");
    }

    #[test]
    fn without_a_network_nothing_is_asked_for() {
        let session = session(r#"{"mode":"none"}"#, false);
        assert!(matches!(judge(&query("example.com.", RecordType::A), &session), Verdict::Refused(..)));
    }

    #[test]
    fn what_is_no_question_is_not_answered() {
        let question = |change: fn(&mut Message)| {
            let mut message = Message::query();
            message.add_query(query("example.com.", RecordType::A));
            change(&mut message);
            read(&message.to_vec().unwrap()).is_some()
        };
        assert!(question(|_| {}));
        assert!(!question(|message| drop(message.queries.pop())));
        assert!(!question(|message| message.metadata.message_type = MessageType::Response));
        assert!(!question(|message| message.metadata.op_code = OpCode::Update));
        assert!(!question(|message| {
            message.add_query(query("b.com.", RecordType::A));
        }));
        assert!(read(&[0; 5]).is_none());
        assert!(read(&vec![0; MAX_QUESTION + 1]).is_none());
    }
}
