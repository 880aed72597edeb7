//! Binary contents in a patch, as git writes them: deflated, in base 85.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

const ALPHABET: &[u8; 85] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
/// Bytes of one line.
const LINE: usize = 52;

/// Both directions, so that the patch can be taken back too.
pub(super) fn write(to: &mut Vec<u8>, before: &[u8], after: &[u8]) {
    to.extend_from_slice(b"GIT binary patch\n");
    for content in [after, before] {
        to.extend_from_slice(format!("literal {}\n", content.len()).as_bytes());
        for line in deflated(content).chunks(LINE) {
            to.push(match line.len() {
                length @ 1..=26 => b'A' + u8::try_from(length - 1).unwrap_or(0),
                length => b'a' + u8::try_from(length - 27).unwrap_or(0),
            });
            for group in line.chunks(4) {
                let mut bytes = [0; 4];
                bytes[..group.len()].copy_from_slice(group);
                let mut number = u32::from_be_bytes(bytes);
                let mut digits = [0; 5];
                for digit in digits.iter_mut().rev() {
                    *digit = ALPHABET[number as usize % 85];
                    number /= 85;
                }
                to.extend_from_slice(&digits);
            }
            to.push(b'\n');
        }
        to.push(b'\n');
    }
}

fn deflated(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let _ = encoder.write_all(content);
    encoder.finish().unwrap_or_default()
}
