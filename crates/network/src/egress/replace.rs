//! Texts put in place of others in a stream of bytes, however it is cut.

use std::time::{Duration, Instant};

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind, StartKind, packed};
use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::lines::{self, Joined};

/// Pieces that are looked through by the automaton, after one in which there were too many candidates.
const STEADY_PIECES: u32 = 64;
/// Of a pattern, that make a candidate. The search takes 64 different ones; patterns of one secret often begin alike.
const CANDIDATE_BYTES: usize = 8;
/// Bytes a nanosecond below which the search for candidates does harm. The automaton does 0.45, whatever it reads; the search 6 and
/// more, unless somebody sends the beginning of a secret over and over.
const SLOW: f64 = 0.4;
/// Of shorter pieces the time says nothing.
const TIMED_BYTES: usize = 4096;

/// What is looked for and what takes its place. Where several begin at one place, the longest is meant.
pub struct Table {
    automaton: AhoCorasick,
    /// Finds whether there may be anything at all, by the first bytes of each pattern, many places at once. The automaton has a
    /// search of its own for what may begin a pattern, by single letters: of text in base 64 it does 0.15 bytes a nanosecond.
    candidates: Option<packed::Searcher>,
    patterns: Vec<Zeroizing<Vec<u8>>>,
    replacements: Vec<Zeroizing<Vec<u8>>>,
    longest: usize,
    wrapped: Option<Wrapped>,
}

/// Those of the patterns that may stand in lines.
struct Wrapped {
    table: Box<Table>,
    /// Their places among all.
    places: Vec<usize>,
}

/// Something that was found: from where to where, and its place in the table.
#[derive(Debug, Clone, Copy)]
struct Hit {
    begin: usize,
    end: usize,
    place: usize,
}

/// A stream that passes a [`Table`]. Holds back only what may be the beginning of something that is looked for.
#[derive(Default)]
pub struct Stream {
    held: BytesMut,
    /// Pieces for which there is no search for candidates.
    steady: u32,
    /// Digits of base64 that stand right before what is held.
    digits: usize,
}

impl Table {
    /// `None` without anything to look for. Nothing empty may be looked for.
    pub fn new(pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Option<Self> {
        let (patterns, replacements): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .filter(|(pattern, _)| !pattern.is_empty())
            .map(|(pattern, replacement)| (Zeroizing::new(pattern), Zeroizing::new(replacement)))
            .unzip();
        let longest = patterns.iter().map(|pattern| pattern.len()).max()?;
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Unanchored)
            // The others take hundreds of times the memory of a long pattern.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .prefilter(false)
            .build(patterns.iter().map(|pattern| pattern.as_slice()))
            .ok()?;
        let mut beginnings: Vec<_> =
            patterns.iter().map(|pattern| &pattern[..pattern.len().min(CANDIDATE_BYTES)]).collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        let candidates = packed::Config::new()
            .match_kind(packed::MatchKind::LeftmostLongest)
            .builder()
            .extend(beginnings)
            .build();
        Some(Self { automaton, candidates, patterns, replacements, longest, wrapped: None })
    }

    /// One in which the patterns at these places are digits of base64: streams find them also where lines end in them.
    pub fn with_wrapped(pairs: Vec<(Vec<u8>, Vec<u8>)>, places: Vec<usize>) -> Option<Self> {
        let wrapped = Self::new(places.iter().map(|place| pairs[*place].clone()).collect());
        let mut table = Self::new(pairs)?;
        table.wrapped = wrapped.map(|table| Wrapped { table: Box::new(table), places });
        Some(table)
    }

    /// Of a whole text; `None` when nothing is found. `found` is told the place in the table of each one.
    pub fn replace(&self, text: &[u8], mut found: impl FnMut(usize)) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut done = 0;
        for hit in self.automaton.find_iter(text) {
            found(hit.pattern().as_usize());
            out.extend_from_slice(&text[done..hit.start()]);
            out.extend_from_slice(&self.replacements[hit.pattern().as_usize()]);
            done = hit.end();
        }
        (done > 0).then(|| {
            out.extend_from_slice(&text[done..]);
            out
        })
    }

    pub fn is_in(&self, text: &[u8]) -> bool {
        self.automaton.is_match(text)
    }

    fn joined(&self, text: &[u8], digits: usize) -> Option<(&Wrapped, Joined)> {
        let wrapped = self.wrapped.as_ref()?;
        Some((wrapped, Joined::new(text, digits)?))
    }

    /// The first at or after that place.
    fn find(&self, text: &[u8], from: usize) -> Option<Hit> {
        let hit = self.automaton.find(Input::new(text).range(from..))?;
        Some(Hit { begin: hit.start(), end: hit.end(), place: hit.pattern().as_usize() })
    }

    /// Where the first end of `text` begins that more bytes could make into something that is looked for.
    fn open_end(&self, text: &[u8], from: usize) -> usize {
        let first = from.max((text.len() + 1).saturating_sub(self.longest));
        (first..text.len())
            .find(|&at| {
                self.patterns
                    .iter()
                    .any(|pattern| pattern.len() > text.len() - at && pattern.starts_with(&text[at..]))
            })
            .unwrap_or(text.len())
    }
}

impl Stream {
    /// The next piece; what of the stream can be passed on now.
    pub fn push(&mut self, table: &Table, piece: &Bytes, found: impl FnMut(usize)) -> Bytes {
        // Most pieces have nothing in them: they pass without being copied.
        if self.held.is_empty() && !self.is_in(table, piece) && table.joined(piece, self.digits).is_none() {
            let end = table.open_end(piece, 0);
            self.held.extend_from_slice(&piece[end..]);
            self.passes(&piece[..end]);
            return piece.slice(..end);
        }
        self.held.extend_from_slice(piece);
        self.advance(table, false, found)
    }

    /// Whichever way is faster for what comes: bytes of the internet choose how many candidates there are.
    fn is_in(&mut self, table: &Table, piece: &[u8]) -> bool {
        let Some(candidates) = table.candidates.as_ref().filter(|_| self.steady == 0) else {
            self.steady = self.steady.saturating_sub(1);
            return table.is_in(piece);
        };
        let begun = Instant::now();
        let found = candidates.find(piece).is_some();
        if piece.len() >= TIMED_BYTES && is_slow(piece.len(), begun.elapsed()) {
            self.steady = STEADY_PIECES;
        }
        found
    }

    /// What was held back, after the last piece.
    pub fn finish(&mut self, table: &Table, found: impl FnMut(usize)) -> Bytes {
        self.advance(table, true, found)
    }

    /// What was held back and what comes, as it is: nothing is looked for any more.
    pub fn release(&mut self, piece: Option<&Bytes>) -> Bytes {
        match piece {
            Some(piece) if self.held.is_empty() => piece.clone(),
            piece => {
                self.held.extend_from_slice(piece.map_or(&[], |piece| piece));
                self.held.split().freeze()
            }
        }
    }

    /// How many bytes wait for more.
    pub fn holds(&self) -> usize {
        self.held.len()
    }

    fn advance(&mut self, table: &Table, last: bool, mut found: impl FnMut(usize)) -> Bytes {
        let text = self.held.split().freeze();
        let search = Search { table, text: &text, joined: table.joined(&text, self.digits) };
        let mut out = BytesMut::with_capacity(text.len());
        let mut done = 0;
        let open = |from| if last { text.len() } else { search.open_end(from) };
        let mut end = open(0);
        let (mut plain, mut wrapped) = (search.find(0), search.find_wrapped(0));
        loop {
            // What was found within something else is found anew after that.
            plain = plain.filter(|hit| hit.begin >= done).or_else(|| plain.and_then(|_| search.find(done)));
            wrapped = wrapped
                .filter(|hit| hit.begin >= done)
                .or_else(|| wrapped.and_then(|_| search.find_wrapped(done)));
            let first = plain.into_iter().chain(wrapped).min_by_key(|hit| (hit.begin, usize::MAX - hit.end));
            // What begins before the open end cannot become anything longer.
            let Some(hit) = first.filter(|hit| hit.begin < end) else { break };
            found(hit.place);
            out.extend_from_slice(&text[done..hit.begin]);
            out.extend_from_slice(&table.replacements[hit.place]);
            done = hit.end;
            if done > end {
                end = open(done);
            }
        }
        let end = end.max(done);
        out.extend_from_slice(&text[done..end]);
        self.held.extend_from_slice(&text[end..]);
        self.passes(&text[..end]);
        out.freeze()
    }

    /// Takes note of what is held no more.
    fn passes(&mut self, text: &[u8]) {
        let digits = lines::digits_at_end(text);
        self.digits = if digits == text.len() { self.digits.saturating_add(digits) } else { digits };
    }
}

/// A text, as it is and with its lines of base64 joined.
struct Search<'a> {
    table: &'a Table,
    text: &'a [u8],
    joined: Option<(&'a Wrapped, Joined)>,
}

impl Search<'_> {
    fn find(&self, from: usize) -> Option<Hit> {
        self.table.find(self.text, from)
    }

    fn find_wrapped(&self, from: usize) -> Option<Hit> {
        let (wrapped, joined) = self.joined.as_ref()?;
        let hit = wrapped.table.find(&joined.text, joined.place(from))?;
        let (begin, end) = (joined.origin(hit.begin), joined.origin(hit.end - 1) + 1);
        Some(Hit { begin, end, place: wrapped.places[hit.place] })
    }

    fn open_end(&self, from: usize) -> usize {
        let plain = self.table.open_end(self.text, from);
        let wrapped = self.joined.as_ref().and_then(|(wrapped, joined)| {
            let end = wrapped.table.open_end(&joined.text, joined.place(from));
            (end < joined.text.len()).then(|| joined.origin(end))
        });
        wrapped.map_or(plain, |wrapped| wrapped.min(plain))
    }
}

fn is_slow(bytes: usize, took: Duration) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let speed = bytes as f64 / took.as_nanos() as f64;
    speed < SLOW
}

#[cfg(test)]
mod tests {
    use super::super::forms::in_base64;
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    fn table(pairs: &[(&str, &str)]) -> Table {
        let own = |(from, to): &(&str, &str)| (from.as_bytes().to_vec(), to.as_bytes().to_vec());
        Table::new(pairs.iter().map(own).collect()).unwrap()
    }

    fn streamed(table: &Table, pieces: &[&[u8]]) -> Vec<u8> {
        let either =
            [0, u32::MAX].map(|steady| streamed_with(Stream { steady, ..Stream::default() }, table, pieces));
        assert_eq!(either[0], either[1]);
        either.into_iter().next().unwrap()
    }

    fn streamed_with(mut stream: Stream, table: &Table, pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&stream.push(table, &Bytes::copy_from_slice(piece), |_| {}));
            assert!(stream.held.len() < table.longest);
        }
        out.extend_from_slice(&stream.finish(table, |_| {}));
        out
    }

    #[test]
    fn a_text_over_two_pieces_is_found_and_other_bytes_do_not_wait() {
        let table = table(&[("secret", "SEALED")]);
        assert_eq!(streamed(&table, &[b"a sec", b"ret b"]), b"a SEALED b");
        let mut stream = Stream::default();
        assert_eq!(stream.push(&table, &Bytes::from_static(b"plain s"), |_| {}), "plain ");
        assert_eq!(stream.holds(), 1);
        assert_eq!(stream.push(&table, &Bytes::from_static(b"x"), |_| {}), "sx");
        assert_eq!(stream.holds(), 0);
    }

    #[test]
    fn the_longest_is_meant() {
        let table = table(&[("abcd", "1"), ("abcdef", "2"), ("de", "3")]);
        assert_eq!(streamed(&table, &[b"abcd", b"ef"]), b"2");
        assert_eq!(streamed(&table, &[b"abcd", b"e!"]), b"1e!");
        assert_eq!(streamed(&table, &[b"xd", b"e", b"abcd"]), b"x31");
    }

    #[test]
    fn nothing_to_look_for_is_no_table() {
        assert!(Table::new(Vec::new()).is_none());
        assert!(Table::new(vec![(Vec::new(), b"x".to_vec())]).is_none());
    }

    /// Base64 of a text, in lines.
    fn lines(text: &str, columns: usize, end: &str) -> String {
        let digits = STANDARD.encode(text);
        let lines: Vec<_> =
            digits.as_bytes().chunks(columns).map(|line| str::from_utf8(line).unwrap()).collect();
        lines.join(end)
    }

    proptest! {
        #[test]
        fn digits_in_lines_are_found_however_they_are_cut(
            before in "[a-z]{40,130}", columns in proptest::sample::select(vec![60, 64, 76]), long in 1_usize..6,
            end in proptest::sample::select(vec!["\n", "\r\n", "\\n", "\\r\\n"]),
            cuts in proptest::collection::vec(0_usize..500, 0..12),
        ) {
            let value = "The-Value-0123456789".repeat(long);
            let pairs: Vec<_> = in_base64(&value).into_iter().map(|form| (form, b"<token>".to_vec())).collect();
            let places = (0..pairs.len()).collect();
            let table = Table::with_wrapped(pairs, places).unwrap();
            let written = format!("{{\"x\": \"{}\"}}", lines(&format!("{before}{value} and more"), columns, end));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(written.len())).collect();
            cuts.extend([0, written.len()]);
            cuts.sort_unstable();
            let mut stream = Stream::default();
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                out.extend_from_slice(&stream.push(&table, &Bytes::copy_from_slice(&written.as_bytes()[pair[0]..pair[1]]), |_| {}));
            }
            out.extend_from_slice(&stream.finish(&table, |_| {}));
            let out = String::from_utf8(out).unwrap();
            prop_assert!(out.contains("<token>"), "{out}");
            // All but what the value shares digits with.
            let rest = out.split_once("<token>").unwrap().1;
            prop_assert!(rest.len() < 40, "{out}");
        }

        #[test]
        fn lines_without_a_value_pass_as_they_are(
            parts in proptest::collection::vec("[A-Za-z0-9+/]{0,90}(\n|\r\n|\\\\n|\\\\r\\\\n|\r|\\\\|=|\")", 0..12),
            cut in 1_usize..90,
        ) {
            let pairs: Vec<_> = in_base64("The-Value-0123456789").into_iter().map(|form| (form, Vec::new())).collect();
            let places = (0..pairs.len()).collect();
            let table = Table::with_wrapped(pairs, places).unwrap();
            let text = parts.concat().into_bytes();
            let mut stream = Stream::default();
            let mut out = Vec::new();
            for piece in text.chunks(cut) {
                out.extend_from_slice(&stream.push(&table, &Bytes::copy_from_slice(piece), |_| {}));
            }
            out.extend_from_slice(&stream.finish(&table, |_| {}));
            prop_assert_eq!(out, text);
        }

        #[test]
        fn any_cut_gives_what_the_whole_gives(
            text in "[abc]{0,60}",
            patterns in proptest::collection::vec("[abc]{1,6}", 1..4),
            cuts in proptest::collection::vec(0_usize..60, 0..12),
        ) {
            let pairs: Vec<_> = patterns.iter().enumerate()
                .map(|(place, pattern)| (pattern.as_str(), ["<0>", "<1>", "<2>", "<3>"][place]))
                .collect();
            let table = table(&pairs);
            let text = text.as_bytes();
            let whole = table.replace(text, |_| {}).unwrap_or_else(|| text.to_vec());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(streamed(&table, &pieces), whole);
        }
    }
}
