//! The log against a plain vector of bytes.

use std::path::Path;

use proptest::prelude::*;

use super::*;

const SMALL: Limits = Limits { segment: 64, in_memory: 2, pending: 2, slots: 6 };

/// What a log should hold: every byte ever appended, and the stream it came from.
#[derive(Default)]
struct Model(Vec<(u8, u8)>);

struct Reader {
    id: ReaderId,
    at: u64,
    first: u64,
    seen: Vec<(u8, u8)>,
}

#[derive(Debug, Clone)]
enum Step {
    Append { stderr: bool, length: usize },
    Spill { fails: bool },
    Attach { back: u64 },
    Read { reader: usize, most: u64 },
    Detach { reader: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 1usize..90).prop_map(|(stderr, length)| Step::Append { stderr, length }),
        4 => prop::bool::weighted(0.05).prop_map(|fails| Step::Spill { fails }),
        1 => (0u64..400).prop_map(|back| Step::Attach { back }),
        6 => (any::<usize>(), 1u64..200).prop_map(|(reader, most)| Step::Read { reader, most }),
        1 => any::<usize>().prop_map(|reader| Step::Detach { reader }),
    ]
}

fn note(batch: Batch, into: &mut Vec<(u8, u8)>) -> u64 {
    let promised = batch.output();
    let before = into.len();
    batch.for_each(|stream, bytes| into.extend(bytes.iter().map(|&byte| (stream.kind(), byte))));
    assert_eq!((into.len() - before) as u64, promised);
    promised
}

fn read_once(log: &mut Log, reader: &mut Reader, most: u64) -> bool {
    let batch = match log.read(reader.at, reader.at + most) {
        Read::Now(batch) => batch,
        Read::Later(job) => job.run().expect("the file can be read"),
        Read::Nothing => return false,
    };
    let taken = note(batch, &mut reader.seen);
    assert!(taken > 0 && taken <= most);
    reader.at += taken;
    log.advance(reader.id, reader.at);
    true
}

fn spill_once(log: &mut Log, fails: bool) -> bool {
    let Some(mut job) = log.take_spill() else { return false };
    let result = job.run();
    let result = if fails { Err(std::io::ErrorKind::StorageFull.into()) } else { result };
    log.spilled(job, &result);
    true
}

fn check_reader(reader: &Reader, model: &Model) {
    let first = usize::try_from(reader.first).unwrap();
    assert_eq!(reader.seen, model.0[first..first + reader.seen.len()]);
}

fn run(steps: Vec<Step>, limits: Limits, folder: &Path) {
    let mut log = Log::new(limits, folder.join("log"));
    let mut model = Model::default();
    let mut readers: Vec<Reader> = Vec::new();
    let mut counter = 0u8;
    for step in steps {
        match step {
            Step::Append { stderr, length } => {
                let length = length.min(log.room());
                let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
                let bytes: Vec<u8> =
                    (0..length).map(|_| (counter = counter.wrapping_add(1), counter).1).collect();
                model.0.extend(bytes.iter().map(|&byte| (stream.kind(), byte)));
                log.append(stream, Bytes::from(bytes));
            }
            Step::Spill { fails } => {
                spill_once(&mut log, fails);
            }
            Step::Attach { back } => {
                let (id, at) = log.attach(log.end().saturating_sub(back));
                assert!(at >= log.start() && at <= log.end());
                readers.push(Reader { id, at, first: at, seen: Vec::new() });
            }
            Step::Read { reader, most } => {
                if let Some(index) = reader.checked_rem(readers.len()) {
                    read_once(&mut log, &mut readers[index], most);
                }
            }
            Step::Detach { reader } => {
                if let Some(index) = reader.checked_rem(readers.len()) {
                    let reader = readers.swap_remove(index);
                    check_reader(&reader, &model);
                    log.detach(reader.id);
                }
            }
        }
        assert_eq!(log.end(), model.0.len() as u64);
        assert!(readers.iter().all(|reader| reader.at >= log.start()), "a reader lost bytes");
        assert!(
            log.memory() <= (limits.in_memory + limits.pending + 1) * limits.segment,
            "memory is bounded"
        );
    }
    // Whoever is left gets the rest, and while somebody reads there is room again.
    for reader in &mut readers {
        while read_once(&mut log, reader, 1000) {}
        assert_eq!(reader.at, log.end());
        check_reader(reader, &model);
    }
    while spill_once(&mut log, false) {}
    assert!(
        log.room() > 0,
        "readers are done, so there must be room: waiting {} segments {} readers {:?} oldest end {}",
        log.waiting(),
        log.segments.len(),
        log.readers,
        log.segments[0].end()
    );
    let kept = log.start();
    log.flush();
    while spill_once(&mut log, false) {}
    assert_eq!(log.start(), kept, "the end costs no output");
    assert!(limits.slots == 0 || log.memory() == 0 || !log.spill.is_usable(), "and no memory");
    let (id, at) = log.attach(0);
    assert_eq!(at, log.start());
    let mut last = Reader { id, at, first: at, seen: Vec::new() };
    while read_once(&mut log, &mut last, 77) {}
    assert_eq!(last.at, log.end());
    check_reader(&last, &model);
}

proptest! {
    #[test]
    fn readers_see_every_byte_once_and_in_order(steps in prop::collection::vec(any_step(), 0..400)) {
        let folder = tempfile::tempdir().unwrap();
        run(steps, SMALL, folder.path());
    }

    #[test]
    fn a_log_without_a_file_keeps_its_promises(steps in prop::collection::vec(any_step(), 0..300)) {
        run(steps, Limits { slots: 0, pending: 0, ..SMALL }, Path::new("/nowhere"));
    }

    #[test]
    fn frames_are_cut_anywhere(runs in prop::collection::vec((any::<bool>(), 1usize..20), 1..20), low in 0u64..200, high in 0u64..200) {
        let mut segment = Segment::new(7);
        let mut model = Vec::new();
        for (index, (stderr, length)) in runs.into_iter().enumerate() {
            let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
            let byte = u8::try_from(index).unwrap();
            segment.push(stream, Bytes::from(vec![byte; length]));
            model.extend(std::iter::repeat_n((stream.kind(), byte), length));
        }
        let (mut at, end) = (7 + low.min(model.len() as u64), 7 + high.min(model.len() as u64));
        while at < end {
            let mut seen = Vec::new();
            let taken = note(segment.read(at, end).expect("it is there"), &mut seen);
            let from = usize::try_from(at - 7).unwrap();
            prop_assert!(taken > 0 && at + taken <= end);
            prop_assert_eq!(&seen[..], &model[from..from + seen.len()]);
            at += taken;
        }
    }

    #[test]
    fn a_damaged_file_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200), from in 0u64..100, to in 0u64..200) {
        let _ = segment::cut(&Bytes::from(noise), 3, from, to);
    }
}

#[test]
fn segments_begin_and_pieces_end_between_characters() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::new(SMALL, folder.path().join("log"));
    let text = "é☃𝄞x".repeat(20);
    for _ in 0..3 {
        let mut left = Bytes::copy_from_slice(text.as_bytes());
        while !left.is_empty() {
            let length = whole_characters(&left[..left.len().min(log.room())]);
            log.append(Stream::Stdout, left.split_to(length));
            while spill_once(&mut log, false) {}
        }
    }
    for back in 0..200 {
        let start = log.seam(log.end().saturating_sub(back));
        assert!(start >= log.end().saturating_sub(back));
        let (id, at) = log.attach(start);
        let mut reader = Reader { id, at, first: at, seen: Vec::new() };
        while reader.at < log.end() {
            let before = reader.seen.len();
            assert!(read_once(&mut log, &mut reader, u64::MAX / 2));
            let piece: Vec<u8> = reader.seen[before..].iter().map(|(_, byte)| *byte).collect();
            assert!(std::str::from_utf8(&piece).is_ok(), "{piece:?} from {start}");
        }
        log.detach(id);
    }
    assert_eq!(log.seam(0), log.start());
}

#[test]
fn without_readers_the_oldest_output_goes_and_the_start_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::new(SMALL, folder.path().join("log"));
    for round in 0..100u8 {
        assert!(log.room() >= 40, "nobody reads, so nothing is held back");
        log.append(Stream::Stdout, Bytes::from(vec![round; 40]));
        while spill_once(&mut log, false) {}
    }
    assert!(log.start() > 3000 && log.end() == 4000, "{}", log.start());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
}

#[test]
fn a_reader_who_stops_holds_the_writer_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::new(SMALL, folder.path().join("log"));
    let (id, at) = log.attach(0);
    let mut reader = Reader { id, at, first: 0, seen: Vec::new() };
    let mut written = 0;
    while log.room() > 0 {
        let length = log.room().min(50);
        log.append(Stream::Stdout, Bytes::from(vec![1; length]));
        written += length;
        spill_once(&mut log, false);
        assert!(written < 10_000, "the writer is never held back");
    }
    assert!(written > 6 * 50, "all slots are used first");
    assert_eq!(log.start(), 0);
    while read_once(&mut log, &mut reader, 100) {}
    assert_eq!(reader.seen.len(), written);
    while spill_once(&mut log, false) {}
    assert!(log.room() > 0);
}
