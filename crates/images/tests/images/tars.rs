//! Tars with whatever one wants in them: headers are written by hand, since honest writers refuse most of it.

const BLOCK: usize = 512;

/// One entry, with the PAX records before it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) size: Option<u64>,
    pub(crate) records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Item {
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            data: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            // Whoever runs the tests may give files to himself.
            uid: rustix::process::geteuid().as_raw().into(),
            gid: rustix::process::getegid().as_raw().into(),
            mtime: 1_000_000_000,
            size: None,
            records: Vec::new(),
        }
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(b'0', name) }
    }

    pub(crate) fn folder(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), mode: 0o777, ..Self::new(b'2', name) }
    }

    pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'1', name) }
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    pub(crate) fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    pub(crate) fn record(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, tar: &mut Vec<u8>) {
        if !self.records.is_empty() {
            let records: Vec<u8> = self.records.iter().flat_map(|(key, value)| record(key, value)).collect();
            Self { mtime: 0, ..Self::file("pax", records) }.with_kind(b'x').write(tar);
        }
        let mut header = [0; BLOCK];
        put(&mut header[..100], &self.name);
        put(&mut header[100..108], format!("{:07o}", self.mode).as_bytes());
        put(&mut header[108..116], &number(self.uid, 8));
        put(&mut header[116..124], &number(self.gid, 8));
        put(&mut header[124..136], &number(self.size.unwrap_or(self.data.len() as u64), 12));
        put(&mut header[136..148], &number(self.mtime, 12));
        header[148..156].fill(b' ');
        header[156] = self.kind;
        put(&mut header[157..257], &self.link);
        put(&mut header[257..265], b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut header[148..156], format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(&self.data);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }

    pub(crate) fn with_kind(self, kind: u8) -> Self {
        Self { kind, ..self }
    }
}

/// A whole tar with its two empty blocks.
pub(crate) fn tar(items: &[Item]) -> Vec<u8> {
    let mut tar = Vec::new();
    items.iter().for_each(|item| item.write(&mut tar));
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

fn put(field: &mut [u8], value: &[u8]) {
    assert!(value.len() <= field.len(), "{} bytes do not fit into a header", value.len());
    field[..value.len()].copy_from_slice(value);
}

fn number(value: u64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0digits$o}", digits = width - 1);
    if octal.len() < width {
        return octal.into_bytes();
    }
    let mut binary = vec![0; width];
    binary[width - 8..].copy_from_slice(&value.to_be_bytes());
    binary[0] |= 0x80;
    binary
}
