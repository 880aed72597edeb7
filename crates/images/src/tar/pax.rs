//! PAX records: `LENGTH KEY=VALUE\n`, what an entry says beyond its header.

use super::sparse::Piece;
use crate::ImageError;

#[derive(Default)]
pub(super) struct Pax {
    pub(super) name: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// What GNU tar says of a file with holes.
#[derive(Default)]
pub(super) struct Sparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    major: Option<u64>,
    map: Option<Vec<u8>>,
    numbers: bool,
}

// === impl Pax ===

impl Pax {
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), ImageError> {
        while !records.is_empty() {
            let (key, value, rest) = record(records).ok_or_else(wrong)?;
            self.set(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ImageError> {
        if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
            self.attributes.retain(|(name, _)| name != attribute);
            self.attributes.push((attribute.to_vec(), value.to_vec()));
            return Ok(());
        }
        match key {
            b"path" => self.name = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = optional(value)?,
            b"uid" => self.uid = optional(value)?,
            b"gid" => self.gid = optional(value)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.name" => self.sparse.name = text(value)?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = optional(value)?,
            b"GNU.sparse.major" => self.sparse.major = optional(value)?,
            b"GNU.sparse.map" => self.sparse.map = Some(value.to_vec()),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.numbers = true,
            _ => {}
        }
        Ok(())
    }
}

// === impl Sparse ===

impl Sparse {
    /// The pieces stand at the beginning of the data.
    pub(super) fn is_version_1(&self) -> bool {
        self.major == Some(1)
    }

    /// The pieces stand in a record; `None` for a file without holes.
    pub(super) fn pieces(&self) -> Result<Option<(Vec<Piece>, u64)>, ImageError> {
        if self.numbers {
            return Err(ImageError::Unsupported("it has sparse files of GNU tar's format 0.0".to_owned()));
        }
        let Some(map) = &self.map else { return Ok(None) };
        let numbers = map.split(|byte| *byte == b',').filter(|number| !number.is_empty() || !map.is_empty());
        let numbers = numbers.map(decimal).collect::<Result<Vec<u64>, _>>()?;
        if numbers.len() % 2 != 0 {
            return Err(wrong());
        }
        let pieces = numbers.chunks_exact(2).map(|pair| Piece { offset: pair[0], length: pair[1] });
        Ok(Some((pieces.collect(), self.real_size.ok_or_else(wrong)?)))
    }
}

fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&records[..space]).ok()?).ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((&pair[..equals], &pair[equals + 1..], rest))
}

/// An empty value takes back what was said before.
fn text(value: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    if value.contains(&0) {
        return Err(ImageError::Broken("a name in a layer has a NUL in it".to_owned()));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional(value: &[u8]) -> Result<Option<u64>, ImageError> {
    if value.is_empty() { Ok(None) } else { decimal(value).map(Some) }
}

pub(super) fn decimal(digits: &[u8]) -> Result<u64, ImageError> {
    if digits.is_empty() {
        return Err(wrong());
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or_else(wrong),
        _ => Err(wrong()),
    })
}

/// Seconds with a fraction, which may be before 1970.
fn time(value: &[u8]) -> Result<(i64, u32), ImageError> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).map_err(|_| wrong())?;
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.get(place).map_or(Ok(0), |digit| decimal(&[*digit]))?;
        nanoseconds = nanoseconds * 10 + u32::try_from(digit).map_err(|_| wrong())?;
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn wrong() -> ImageError {
    ImageError::Broken("a layer is no tar: an extended header is wrong".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(records: &[u8]) -> Result<Pax, ImageError> {
        let mut pax = Pax::default();
        pax.read(records).map(|()| pax)
    }

    #[test]
    fn records_say_what_headers_cannot() {
        let pax = read(b"12 path=a/b\n17 mtime=12.3450\n27 SCHILY.xattr.user.a=x\0=\n8 size=\n").unwrap();
        assert_eq!(pax.name.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.mtime, Some((12, 345_000_000)));
        assert_eq!(pax.attributes, [(b"user.a".to_vec(), b"x\0=".to_vec())]);
        assert_eq!(pax.size, None);
    }

    #[test]
    fn a_moment_before_1970_has_a_fraction_that_counts_up() {
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"-3").unwrap(), (-3, 0));
        assert!(time(b"").is_err() && time(b"1.x").is_err() && time(b"99999999999999999999").is_err());
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for records in [
            &b"5 path=a\n"[..],
            b"99 path=a\n",
            b"0 path=a\n",
            b"2 \n",
            b"path=a\n",
            b"8 patha\n",
            b"12 path=a\0b\n",
            b"18446744073709551616 a=b\n",
            b"10 size=-1\n",
        ] {
            assert!(read(records).is_err(), "{:?}", String::from_utf8_lossy(records));
        }
    }
}
