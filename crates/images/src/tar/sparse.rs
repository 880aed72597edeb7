//! Files with holes, as GNU tar writes them.

use std::io::BufRead;

use super::header::{BLOCK, Header, unsigned};
use super::{Reader, broken, pax, read_error};
use crate::ImageError;

/// Data at a place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

const MOST_PIECES: usize = 100_000;

/// The old format: pieces in the header, and in blocks after it.
pub(super) fn read_old(header: &Header, input: &mut impl BufRead) -> Result<Vec<Piece>, ImageError> {
    let mut pieces = Vec::new();
    let (fields, mut more) = header.pieces();
    collect(fields, &mut pieces)?;
    while more {
        let mut block = [0; BLOCK];
        input.read_exact(&mut block).map_err(read_error)?;
        collect(&block[..504], &mut pieces)?;
        more = block[504] != 0;
    }
    Ok(pieces)
}

fn collect(fields: &[u8], pieces: &mut Vec<Piece>) -> Result<(), ImageError> {
    for field in fields.chunks_exact(24) {
        // An unused one.
        if field[0] == 0 {
            break;
        }
        push(pieces, Piece { offset: unsigned(&field[..12])?, length: unsigned(&field[12..])? })?;
    }
    Ok(())
}

/// The format 1.0: numbers in lines at the beginning of the data, filled up to whole blocks.
pub(super) fn read_version_1<R: BufRead>(reader: &mut Reader<R>) -> Result<Vec<Piece>, ImageError> {
    let mut lines = Lines { reader, read: 0 };
    let count = lines.number()?;
    let mut pieces = Vec::new();
    for _ in 0..count {
        let (offset, length) = (lines.number()?, lines.number()?);
        push(&mut pieces, Piece { offset, length })?;
    }
    lines.finish()?;
    Ok(pieces)
}

struct Lines<'a, R> {
    reader: &'a mut Reader<R>,
    read: usize,
}

impl<R: BufRead> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, ImageError> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return pax::decimal(&digits),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(broken("the map of a sparse file is wrong")),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, ImageError> {
        let byte = self.reader.data()?.first().copied();
        let byte = byte.ok_or_else(|| broken("the map of a sparse file is wrong"))?;
        self.reader.consume(1);
        self.read += 1;
        Ok(byte)
    }

    fn finish(mut self) -> Result<(), ImageError> {
        while !self.read.is_multiple_of(BLOCK) {
            self.byte()?;
        }
        Ok(())
    }
}

fn push(pieces: &mut Vec<Piece>, piece: Piece) -> Result<(), ImageError> {
    if pieces.len() == MOST_PIECES {
        return Err(ImageError::TooLarge(format!("a sparse file has more than {MOST_PIECES} pieces")));
    }
    pieces.push(piece);
    Ok(())
}

/// In order, within the file, and exactly as much as there is data.
pub(super) fn check(pieces: &[Piece], real_size: u64, stored: u64) -> Result<(), ImageError> {
    let mut end = 0;
    let mut sum = 0_u64;
    for piece in pieces {
        let next = piece.offset.checked_add(piece.length).filter(|next| *next <= real_size);
        match next {
            Some(next) if piece.offset >= end => end = next,
            _ => return Err(broken("the map of a sparse file is wrong")),
        }
        sum = sum.saturating_add(piece.length);
    }
    if sum == stored { Ok(()) } else { Err(broken("the map of a sparse file does not fit its data")) }
}
