//! What is asked of usage: windows, groups, filters, pages.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use warren_types::tags::check_key;
use warren_types::{Error, hex};

use crate::store::usage::report::{After, Order, TagFilter};

const HOUR: i64 = 3600 * 1_000_000;
const DAY: i64 = 24 * HOUR;
pub(super) const MAX_WINDOW: i64 = 90 * DAY;
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 500;
const MAX_FILTERS: usize = 20;
/// Values one filter may name.
const MAX_VALUES: usize = 100;
/// A query may have them instead of a header.
const CREDENTIALS: [&str; 2] = ["api_key", "token"];

/// Microseconds, the second one excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub from: i64,
    pub to: i64,
}

/// A window as it was asked for; what is absent follows from the time it is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Asked {
    from: Option<i64>,
    to: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    Sandbox,
    Tag(String),
}

/// What `GET /api/usage` asks for, from its query.
#[derive(Debug, Clone)]
pub(crate) struct UsageRequest {
    pub(super) group: Group,
    pub(super) tags: Vec<TagFilter>,
    pub(super) order: Order,
    pub(super) limit: u32,
    asked: Asked,
    cursor: Option<String>,
}

/// What `GET …/usage` of a sandbox asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SandboxUsageRequest(Asked);

/// Where a page begins. All pages are of the time of the first, so that nothing moves between them.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    pub window: Window,
    pub until: i64,
    pub after: After,
}

/// Which page it is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub window: Window,
    pub until: i64,
    pub after: Option<After>,
}

/// `v`: what the question was, so that the cursor of another one is noticed.
#[derive(Serialize, Deserialize)]
struct Sealed {
    v: String,
    from: i64,
    to: i64,
    until: i64,
    amount: i64,
    name: String,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox => f.write_str("sandbox"),
            Self::Tag(key) => write!(f, "tag:{key}"),
        }
    }
}

impl Window {
    /// Nothing is known of the future.
    pub(super) fn until(self, now: i64) -> i64 {
        self.to.min(now).max(self.from)
    }
}

impl Asked {
    fn set(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let at = Some(moment(name, text)?);
        if name == "from" {
            self.from = at;
        } else {
            self.to = at;
        }
        Ok(())
    }

    fn window(self, now: i64, default: i64, most: i64) -> Result<Window, Error> {
        let to = self.to.unwrap_or(now);
        let from = self.from.unwrap_or(to - default);
        if from >= to {
            return Err(Error::invalid("to must be after from; without to, from must be in the past"));
        }
        if to - from > most {
            return Err(Error::invalid(format!("from and to must be at most {} days apart", most / DAY)));
        }
        Ok(Window { from, to })
    }
}

/// A day, which begins at midnight UTC, or a time.
fn moment(name: &str, text: &str) -> Result<i64, Error> {
    let day = || text.parse::<Date>().ok().filter(|_| text.len() == 10 && text.as_bytes()[4] == b'-');
    let midnight = || day()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp());
    midnight().or_else(|| text.parse().ok()).map(Timestamp::as_microsecond).ok_or_else(|| {
        let got = &text[..text.floor_char_boundary(60)];
        Error::invalid(format!(
            "{name} must be a day such as 2026-01-31 or a time such as 2026-01-31T12:00:00Z (got {got:?})"
        ))
    })
}

impl SandboxUsageRequest {
    pub(crate) fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let mut asked = Asked::default();
        for name in ["from", "to"] {
            if let Some(text) = get(name) {
                asked.set(name, text)?;
            }
        }
        Ok(Self(asked))
    }

    pub(super) fn window(self, now: i64) -> Result<Window, Error> {
        self.0.window(now, HOUR, 30 * DAY)
    }
}

impl UsageRequest {
    /// Reads decoded query pairs. An unknown name is refused: a filter that is misspelt would give everything.
    pub(crate) fn parse(query: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let (mut group, mut asked, mut tags, mut cursor) = (None, Asked::default(), Vec::new(), None);
        let (mut order, mut limit) = (Order::Memory, DEFAULT_LIMIT);
        let mut names = BTreeSet::new();
        for (name, value) in query {
            if !names.insert(name.clone()) {
                return Err(Error::invalid(format!(
                    "{name} is there twice; values of one tag are listed with commas"
                )));
            }
            match name.as_str() {
                "groupBy" => group = Some(parse_group(&value)?),
                "from" | "to" => asked.set(&name, &value)?,
                "sort" => order = parse_sort(&value)?,
                "limit" => limit = parse_limit(&value)?,
                "cursor" => cursor = Some(value),
                name if CREDENTIALS.contains(&name) => {}
                name => tags.push(parse_filter(name, &value)?),
            }
        }
        let group = group.ok_or_else(|| Error::invalid("groupBy is required: sandbox or tag:KEY"))?;
        if tags.len() > MAX_FILTERS {
            return Err(Error::invalid(format!("at most {MAX_FILTERS} filters are allowed")));
        }
        tags.sort();
        Ok(Self { group, tags, order, limit, asked, cursor })
    }

    /// Where it begins: at the cursor, or with a window of its own.
    pub(super) fn place(&self, now: i64) -> Result<Place, Error> {
        if let Some(cursor) = &self.cursor {
            let Cursor { window, until, after } = Cursor::open(cursor, self)?;
            return Ok(Place { window, until, after: Some(after) });
        }
        let window = self.asked.window(now, 30 * DAY, MAX_WINDOW)?;
        Ok(Place { window, until: window.until(now), after: None })
    }

    /// What must be the same on every page.
    fn digest(&self) -> String {
        let question = format!("{} {:?} {:?} {:?}", self.group, self.order, self.asked, self.tags);
        hex(&Sha256::digest(question.as_bytes())[..8])
    }
}

impl Cursor {
    pub(super) fn seal(self, request: &UsageRequest) -> String {
        let sealed = Sealed {
            v: request.digest(),
            from: self.window.from,
            to: self.window.to,
            until: self.until,
            amount: self.after.amount,
            name: self.after.name,
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&sealed).expect("strings and numbers have a JSON form"))
    }

    fn open(text: &str, request: &UsageRequest) -> Result<Self, Error> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let sealed = bytes.and_then(|bytes| serde_json::from_slice::<Sealed>(&bytes).ok());
        let sealed = sealed.filter(|sealed| {
            let length = sealed.to.checked_sub(sealed.from);
            length.is_some_and(|length| (1..=MAX_WINDOW).contains(&length))
                && (sealed.from..=sealed.to).contains(&sealed.until)
        });
        let Some(sealed) = sealed else {
            return Err(Error::invalid("cursor must be the nextCursor of an earlier page"));
        };
        if sealed.v != request.digest() {
            return Err(Error::invalid(
                "cursor is of another question; ask with the same groupBy, from, to, sort and filters as before",
            ));
        }
        Ok(Self {
            window: Window { from: sealed.from, to: sealed.to },
            until: sealed.until,
            after: After { amount: sealed.amount, name: sealed.name },
        })
    }
}

fn parse_group(text: &str) -> Result<Group, Error> {
    match text.split_once(':') {
        None if text == "sandbox" => Ok(Group::Sandbox),
        Some(("tag", key)) => check_key(key).map(|()| Group::Tag(key.to_owned())),
        _ => Err(Error::invalid("groupBy must be sandbox or tag:KEY")),
    }
}

fn parse_sort(text: &str) -> Result<Order, Error> {
    match text {
        "-memoryGbSeconds" => Ok(Order::Memory),
        "-diskOverageGbSeconds" => Ok(Order::Disk),
        _ => Err(Error::invalid("sort must be -memoryGbSeconds or -diskOverageGbSeconds")),
    }
}

fn parse_limit(text: &str) -> Result<u32, Error> {
    match text.parse() {
        Ok(limit @ 1..=MAX_LIMIT) => Ok(limit),
        _ => Err(Error::invalid(format!("limit must be a number from 1 to {MAX_LIMIT}"))),
    }
}

fn parse_filter(name: &str, value: &str) -> Result<TagFilter, Error> {
    let key = name.strip_prefix("filter[tag:").and_then(|rest| rest.strip_suffix(']')).ok_or_else(|| {
        Error::invalid(format!(
            "{name:?} is no filter; there are groupBy, from, to, sort, limit, cursor and filter[tag:KEY]"
        ))
    })?;
    check_key(key)?;
    let values: Vec<&str> = value.split(',').map(str::trim).collect();
    if values.len() > MAX_VALUES {
        return Err(Error::invalid(format!("{name} may have at most {MAX_VALUES} values")));
    }
    let or_none = values.iter().any(|value| value.is_empty());
    let mut values: Vec<String> =
        values.into_iter().filter(|value| !value.is_empty()).map(str::to_owned).collect();
    values.sort();
    values.dedup();
    Ok(TagFilter { key: key.to_owned(), values, or_none })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;

    fn parse(query: &[(&str, &str)]) -> Result<UsageRequest, Error> {
        UsageRequest::parse(query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let by = ("groupBy", "sandbox");
        for good in [
            vec![by],
            vec![("groupBy", "tag:team")],
            vec![("groupBy", "tag:oc:x")],
            vec![by, ("from", "2026-01-01"), ("to", "2026-03-31T12:00:00+02:00"), ("limit", "500")],
            vec![by, ("filter[tag:a]", "x,y"), ("filter[tag:b]", ""), ("sort", "-diskOverageGbSeconds")],
        ] {
            let placed = parse(&good).and_then(|request| request.place(NOW));
            assert!(placed.is_ok(), "{good:?}: {placed:?}");
        }
        for bad in [
            vec![],
            vec![("groupBy", "")],
            vec![("groupBy", "org")],
            vec![("groupBy", "tag:")],
            vec![("groupBy", "tag:a b")],
            vec![by, by],
            vec![by, ("from", "yesterday")],
            vec![by, ("from", "2026-1-1")],
            vec![by, ("from", "20260101")],
            vec![by, ("from", "2026-02-30")],
            vec![by, ("from", "2026-01-02"), ("to", "2026-01-01")],
            vec![by, ("from", "2026-01-01"), ("to", "2026-01-01")],
            vec![by, ("from", "2026-01-01"), ("to", "2026-04-02")],
            vec![by, ("from", "9999-01-01")],
            vec![by, ("sort", "memoryGbSeconds")],
            vec![by, ("limit", "0")],
            vec![by, ("limit", "501")],
            vec![by, ("limit", "-1")],
            vec![by, ("cursor", "")],
            vec![by, ("cursor", "e30")],
            vec![by, ("filter[tag:a]", "x"), ("filter[tag:a]", "y")],
            vec![by, ("filter[tag:]", "x")],
            vec![by, ("filter[a]", "x")],
            vec![by, ("filters", "x")],
        ] {
            assert!(parse(&bad).and_then(|request| request.place(NOW)).is_err(), "{bad:?}");
        }
        let sandbox = |from, to| {
            let get = |name: &str| if name == "from" { from } else { to };
            SandboxUsageRequest::parse(get).and_then(|request| request.window(NOW))
        };
        assert_eq!(sandbox(None, None).unwrap(), Window { from: NOW - HOUR, to: NOW });
        assert!(sandbox(Some("2026-01-01"), Some("2026-01-31")).is_ok());
        assert!(sandbox(Some("2026-01-01"), Some("2026-01-31T00:00:00.000001Z")).is_err());
    }

    #[test]
    fn a_filter_says_which_values_and_whether_none() {
        let filter = parse_filter("filter[tag:env]", "b,a,,a").unwrap();
        let values = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(filter, TagFilter { key: "env".into(), values, or_none: true });
        assert!(!parse_filter("filter[tag:env]", "a").unwrap().or_none);
    }

    #[test]
    fn a_cursor_goes_on_with_its_own_question_only() {
        let first = parse(&[("groupBy", "tag:a"), ("filter[tag:b]", "x")]).unwrap();
        let place = first.place(NOW).unwrap();
        let after = After { amount: 7, name: "ü,\n".to_owned() };
        let cursor = Cursor { window: place.window, until: place.until, after }.seal(&first);
        let next =
            parse(&[("groupBy", "tag:a"), ("filter[tag:b]", "x"), ("cursor", &cursor), ("limit", "3")])
                .unwrap();
        let next = next.place(NOW + DAY).unwrap();
        assert_eq!((next.window, next.until), (place.window, place.until), "time does not move on");
        assert_eq!(next.after.map(|after| (after.amount, after.name)), Some((7, "ü,\n".to_owned())));
        for other in [
            vec![("groupBy", "tag:a"), ("cursor", cursor.as_str())],
            vec![("groupBy", "sandbox"), ("filter[tag:b]", "x"), ("cursor", cursor.as_str())],
            vec![
                ("groupBy", "tag:a"),
                ("filter[tag:b]", "x"),
                ("from", "2026-01-01"),
                ("cursor", cursor.as_str()),
            ],
        ] {
            assert!(parse(&other).unwrap().place(NOW).is_err(), "{other:?}");
        }
    }
}
