//! One block that describes an entry.

use crate::ImageError;

pub(super) const BLOCK: usize = 512;

pub(super) struct Header([u8; BLOCK]);

// === impl Header ===

impl Header {
    pub(super) fn new(block: [u8; BLOCK]) -> Result<Self, ImageError> {
        let header = Self(block);
        let said = number(&block[148..156])?;
        let sum = |value: fn(u8) -> i64| -> i64 {
            let counted =
                |(place, byte): (usize, &u8)| if (148..156).contains(&place) { 32 } else { value(*byte) };
            block.iter().enumerate().map(counted).sum()
        };
        // Some very old writers summed signed bytes.
        if said != sum(i64::from) && said != sum(|byte| i64::from(byte.cast_signed())) {
            return Err(ImageError::Broken(
                "a layer is no tar: the checksum of a header is wrong".to_owned(),
            ));
        }
        Ok(header)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = if self.0[257..263] == *b"ustar\0" { text(&self.0[345..500]) } else { &[] };
        match prefix {
            [] => name.to_vec(),
            _ => [prefix, name].join(&b'/'),
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, ImageError> {
        let mode = number(&self.0[100..108])?;
        // Only these bits are a mode; some writers add the kind of file.
        Ok(u32::try_from(mode & 0o7777).unwrap_or_default())
    }

    pub(super) fn uid(&self) -> Result<u64, ImageError> {
        unsigned(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Result<u64, ImageError> {
        unsigned(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Result<u64, ImageError> {
        unsigned(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Result<i64, ImageError> {
        number(&self.0[136..148])
    }

    /// The pieces of an old GNU sparse file that the header itself has room for, and whether more follow.
    pub(super) fn pieces(&self) -> (&[u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    pub(super) fn real_size(&self) -> Result<u64, ImageError> {
        unsigned(&self.0[483..495])
    }
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

pub(super) fn unsigned(field: &[u8]) -> Result<u64, ImageError> {
    u64::try_from(number(field)?).map_err(|_| wrong())
}

/// Octal digits between spaces and NULs, or a big-endian two's complement after a first bit that says so.
fn number(field: &[u8]) -> Result<i64, ImageError> {
    if field[0] & 0x80 != 0 {
        // The first bit is the mark, the second the sign.
        let first = i128::from(field[0] & 0x7f) - if field[0] & 0x40 != 0 { 0x80 } else { 0 };
        let mut value = first;
        for byte in &field[1..] {
            value = value
                .checked_mul(256)
                .and_then(|value| value.checked_add(i128::from(*byte)))
                .ok_or_else(wrong)?;
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(wrong),
        _ => Err(wrong()),
    })
}

fn wrong() -> ImageError {
    ImageError::Broken("a layer is no tar: a number in a header is wrong".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x00", 256),
            (b"\xff\xff\xff\xff", -1),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ] {
            assert_eq!(number(field).unwrap(), value, "{field:?}");
        }
        for field in [&b"9"[..], b"12 3", b"-1", b"0x1", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert!(number(field).is_err(), "{field:?}");
        }
        assert!(unsigned(b"\xff\xff").is_err());
    }
}
