//! Words of the command line that several commands read the same way.

use std::collections::BTreeMap;

/// `KEY=VALUE`; the value may be empty and may hold further `=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl std::str::FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err("expected KEY=VALUE".to_owned()),
        }
    }
}

/// As a map; of two values for one key the last counts. None when there are no pairs.
pub(crate) fn map_of(pairs: Vec<Pair>) -> Option<BTreeMap<String, String>> {
    let map: BTreeMap<_, _> = pairs.into_iter().map(|pair| (pair.key, pair.value)).collect();
    (!map.is_empty()).then_some(map)
}

/// A signal by name, with or without `SIG`, or by number.
pub(crate) fn parse_signal(text: &str) -> Result<i32, String> {
    const NAMES: [(&str, i32); 12] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CONT", 18),
        ("STOP", 19),
        ("WINCH", 28),
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    match text.parse::<i32>() {
        Ok(number) if (1..=64).contains(&number) => Ok(number),
        _ => Err("expected a signal's name, like TERM, or its number, 1 to 64".to_owned()),
    }
}

/// A time like `90`, `90s`, `30m` or `1h30m`, in seconds.
pub(crate) fn parse_duration(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is no time: write it like 90s, 30m or 1h30m");
    let mut seconds: u32 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u32 = rest[..end].parse().map_err(|_| wrong())?;
        let mut after = rest[end..].chars();
        let unit = match after.next() {
            None | Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            Some(_) => return Err(wrong()),
        };
        seconds = number.checked_mul(unit).and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = after.as_str();
    }
    if seconds == 0 { Err(wrong()) } else { Ok(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_split_at_the_first_equals_sign() {
        let pair: Pair = "A=b=c".parse().unwrap();
        assert_eq!((pair.key.as_str(), pair.value.as_str()), ("A", "b=c"));
        assert!("A=".parse::<Pair>().is_ok());
        assert!("=b".parse::<Pair>().is_err());
        assert!("A".parse::<Pair>().is_err());
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse_signal("SIGTERM"), Ok(15));
        assert_eq!(parse_signal("int"), Ok(2));
        assert_eq!(parse_signal("64"), Ok(64));
        for wrong in ["0", "65", "-9", "NOPE", ""] {
            assert!(parse_signal(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(["90", "90s", "30m", "1h30m"].map(parse_duration), [Ok(90), Ok(90), Ok(1800), Ok(5400)]);
        for wrong in ["", "0", "m", "1x", "-1", "99999999999", "1 h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
