//! From bytes as they come to lines worth keeping: cut at line breaks, and not more than a fair share of them.
//!
//! ```text
//!   taking ── the bucket is empty ──▶ skipping ── it has REOPEN again, at a line's beginning ──▶ taking
//!                                         └─ counts what is left out, said in one place
//! ```

use std::time::{Duration, Instant};

use warren_guest_api::logs::MAX_LINE_BYTES;
use warren_guest_api::text::whole_characters;

/// Bytes one source may log at once, and then each second.
const BURST: u64 = 1024 * 1024;
const PER_SECOND: u64 = 256 * 1024;
/// What the bucket must hold before taking starts again, so that a flood is told of about once a second.
const REOPEN: u64 = PER_SECOND;
/// After this long without a drop taken a bucket has what it takes to start again.
pub(super) const REFILL: Duration = Duration::from_secs(1);
/// What a row costs besides its line, so that empty lines count.
const ROW_COST: u64 = 64;

/// How much one source may still log.
#[derive(Debug)]
pub(super) struct Bucket {
    level: u64,
    filled_at: Instant,
}

/// The lines of one stream or file.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// The beginning of a line whose rest is still to come.
    held: Vec<u8>,
    left_out: u64,
    skipping: bool,
    /// What was skipped last ended a line.
    at_start: bool,
}

/// What there is to log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Without its line break.
    Line(Vec<u8>),
    /// So many bytes were left out here.
    LeftOut(u64),
}

// === impl Bucket ===

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { level: BURST, filled_at: now }
    }

    fn fill(&mut self, now: Instant) {
        let millis = now.saturating_duration_since(self.filled_at).as_millis();
        let gained = u64::try_from(millis).unwrap_or(u64::MAX).saturating_mul(PER_SECOND) / 1000;
        if gained > 0 {
            self.level = self.level.saturating_add(gained).min(BURST);
            self.filled_at = now;
        }
    }

    /// Whether taking may start again.
    pub(super) fn is_filled(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level >= REOPEN
    }

    fn spend(&mut self, cost: u64, now: Instant) -> bool {
        if self.level < cost {
            self.fill(now);
        }
        let enough = self.level >= cost;
        if enough {
            self.level -= cost;
        }
        enough
    }
}

// === impl Intake ===

impl Intake {
    /// Takes what has come.
    pub(super) fn take(
        &mut self,
        mut bytes: &[u8],
        bucket: &mut Bucket,
        now: Instant,
        out: &mut impl FnMut(Taken),
    ) {
        if self.skipping {
            let start = || if self.at_start { Some(0) } else { end_of_line(bytes).map(|end| end + 1) };
            // Mostly it is not, and then nobody looks at the bytes.
            let Some(start) = bucket.is_filled(now).then(start).flatten() else {
                return self.skip(bytes.len() as u64, bytes.last() == Some(&b'\n'));
            };
            self.left_out += start as u64;
            self.skipping = false;
            self.tell(out);
            bytes = &bytes[start..];
        }
        while !bytes.is_empty() {
            let end = end_of_line(bytes);
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            if !bucket.spend(piece.len() as u64 + ROW_COST, now) {
                return self.skip(bytes.len() as u64, bytes.last() == Some(&b'\n'));
            }
            self.add(piece, out);
            let Some(end) = end else { return };
            if self.held.last() == Some(&b'\r') {
                self.held.pop();
            }
            out(Taken::Line(std::mem::take(&mut self.held)));
            bytes = &bytes[end + 1..];
        }
    }

    fn add(&mut self, piece: &[u8], out: &mut impl FnMut(Taken)) {
        self.held.extend_from_slice(piece);
        while self.held.len() > MAX_LINE_BYTES {
            let rest = self.held.split_off(whole_characters(&self.held[..MAX_LINE_BYTES]));
            out(Taken::Line(std::mem::replace(&mut self.held, rest)));
        }
    }

    /// Leaves out so many bytes, which nobody has to have read, and whose last one may end a line.
    pub(super) fn skip(&mut self, count: u64, ends_line: bool) {
        self.left_out += self.held.len() as u64 + count;
        self.held.clear();
        self.skipping = true;
        self.at_start = ends_line;
    }

    pub(super) fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether something was left out that has not been told.
    pub(super) fn owes_word(&self) -> bool {
        self.left_out > 0
    }

    /// Says what was left out so far.
    pub(super) fn tell(&mut self, out: &mut impl FnMut(Taken)) {
        if self.left_out > 0 {
            out(Taken::LeftOut(std::mem::take(&mut self.left_out)));
        }
    }

    /// Bytes taken whose line has not ended.
    pub(super) fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// There is no more: a line without an end is a line.
    pub(super) fn finish(&mut self, out: &mut impl FnMut(Taken)) {
        if !self.held.is_empty() {
            out(Taken::Line(std::mem::take(&mut self.held)));
        }
        self.tell(out);
    }
}

fn end_of_line(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Source {
        intake: Intake,
        bucket: Bucket,
        now: Instant,
        taken: Vec<Taken>,
    }

    impl Source {
        fn new() -> Self {
            let now = Instant::now();
            Self { intake: Intake::default(), bucket: Bucket::new(now), now, taken: Vec::new() }
        }

        fn take(&mut self, bytes: &[u8]) {
            self.intake.take(bytes, &mut self.bucket, self.now, &mut |taken| self.taken.push(taken));
        }

        fn finish(&mut self) -> Vec<Taken> {
            self.intake.finish(&mut |taken| self.taken.push(taken));
            std::mem::take(&mut self.taken)
        }
    }

    fn line(text: &str) -> Taken {
        Taken::Line(text.as_bytes().to_vec())
    }

    #[test]
    fn lines_come_out_whole_however_they_came_in() {
        let mut source = Source::new();
        for byte in b"one\r\n\ntwo\rthree\nfour" {
            source.take(&[*byte]);
        }
        assert_eq!(source.finish(), [line("one"), line(""), line("two\rthree"), line("four")]);
        assert!(source.finish().is_empty());
    }

    #[test]
    fn a_long_line_becomes_rows_that_end_between_characters() {
        let mut source = Source::new();
        let text = "é".repeat(MAX_LINE_BYTES);
        // The first one has an odd length in front, so that the limit falls inside a character.
        source.take(format!("x{text}\nnext\n").as_bytes());
        let rows = source.finish();
        let mut joined = String::new();
        for row in &rows[..rows.len() - 1] {
            let Taken::Line(bytes) = row else { panic!("{row:?}") };
            assert!(bytes.len() <= MAX_LINE_BYTES);
            joined.push_str(std::str::from_utf8(bytes).unwrap());
        }
        assert_eq!(joined, format!("x{text}"));
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[3], line("next"));

        let exact = "y".repeat(MAX_LINE_BYTES);
        source.take(format!("{exact}\n").as_bytes());
        assert_eq!(source.finish(), [line(&exact)], "no empty row after a line that just fits");
    }

    #[test]
    fn a_flood_is_cut_off_once_and_its_end_is_told_in_bytes() {
        let mut source = Source::new();
        let flood = b"0123456789\n".repeat(500_000);
        source.take(&flood);
        let taken = source.taken.len() as u64;
        assert!(taken * (10 + ROW_COST) <= BURST && taken > 10_000, "{taken}");
        // Too early.
        source.now += Duration::from_millis(900);
        source.take(b"still part of it");
        assert_eq!(source.taken.len() as u64, taken);
        // Time has passed, but this goes on in the middle of a line.
        source.now += REFILL;
        source.take(b"middle");
        source.take(b" of a line\nwhole\n");
        let left_out = flood.len() as u64 - taken * 11 + 16 + 17;
        let rest: Vec<Taken> = source.finish().split_off(usize::try_from(taken).unwrap());
        assert_eq!(rest, [Taken::LeftOut(left_out), line("whole")]);
    }

    #[test]
    fn a_flood_that_ends_with_a_line_costs_no_other() {
        let mut source = Source::new();
        source.take(&b"0123456789\n".repeat(200_000));
        source.now += REFILL;
        source.take(b"next\n");
        let taken = source.finish();
        assert!(
            matches!(taken[taken.len() - 2..], [Taken::LeftOut(_), Taken::Line(_)]),
            "{:?}",
            taken.last()
        );
        assert_eq!(taken.last(), Some(&line("next")));
    }

    #[test]
    fn what_a_flood_left_out_is_told_at_its_end_at_the_latest() {
        let mut source = Source::new();
        source.take(&vec![b'x'; 3_000_000]);
        assert!(source.intake.is_skipping() && source.intake.owes_word());
        let taken = source.finish();
        let (mut kept, mut left_out) = (0, 0);
        for each in &taken {
            match each {
                Taken::Line(bytes) => kept += bytes.len() as u64,
                Taken::LeftOut(count) => left_out += count,
            }
        }
        assert_eq!(kept + left_out, 3_000_000);
        assert_eq!(taken.iter().filter(|each| matches!(each, Taken::LeftOut(_))).count(), 1);
    }

    #[test]
    fn a_modest_source_never_runs_dry() {
        let mut source = Source::new();
        let text = vec![b'x'; 999];
        for _ in 0..10_000 {
            source.take(&text);
            source.take(b"\n");
            source.now += Duration::from_millis(5);
        }
        assert!(!source.finish().iter().any(|taken| matches!(taken, Taken::LeftOut(_))));
    }

    proptest! {
        #[test]
        fn every_byte_is_kept_or_counted(
            pieces in prop::collection::vec(
                (prop::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'\n')], 0..40), 1usize..20_000, 0u64..3000),
                0..12,
            ),
        ) {
            let mut source = Source::new();
            let mut given = 0;
            for (piece, times, pause) in pieces {
                let bytes = piece.repeat(times);
                given += bytes.len() as u64;
                source.take(&bytes);
                source.now += Duration::from_millis(pause);
            }
            let mut seen = 0;
            for taken in source.finish() {
                match taken {
                    // Its line break, which a last line or a cut one may lack.
                    Taken::Line(bytes) => { prop_assert!(bytes.len() <= MAX_LINE_BYTES); seen += bytes.len() as u64 + 1; }
                    Taken::LeftOut(count) => { prop_assert!(count > 0); seen += count; }
                }
            }
            prop_assert!(seen >= given && seen <= given + given / MAX_LINE_BYTES as u64 + 1, "{seen} of {given}");
        }
    }
}
