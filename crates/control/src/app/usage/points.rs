//! One sandbox's usage, minute by minute.
//!
//! What was used is a step function: what is seen at one look holds since the look before. In a span, a first look holds since the
//! span began and a last one until it ended; a span without any has used nothing that is known.

use warren_api::usage::SandboxUsagePoint;
use warren_types::Error;

use super::at;
use crate::store::usage::report::{Seen, Span};

const MINUTE: i64 = 60 * 1_000_000;
const SECOND: i64 = 1_000_000;

/// What has come together in one minute, in microseconds and MiB or KiB times microseconds.
#[derive(Debug, Default, Clone, Copy)]
struct Minute {
    start: i64,
    up: i64,
    allocated: i128,
    used: i128,
    allocated_mb: i64,
    peak_kb: i64,
}

/// The points of `from` to `until`. Spans and looks are in order, and spans do not overlap.
pub(super) fn points(
    spans: &[Span],
    seen: &[Seen],
    from: i64,
    until: i64,
) -> Result<Vec<SandboxUsagePoint>, Error> {
    let mut minutes: Vec<Minute> = Vec::new();
    let mut next = 0;
    for span in spans {
        let end = span.ended_at.min(until);
        let mut now = span.started_at.max(from);
        while now < end {
            let start = now.div_euclid(MINUTE) * MINUTE;
            while seen.get(next).is_some_and(|seen| seen.last_at <= now) {
                next += 1;
            }
            let coming = seen.get(next).filter(|seen| seen.first_at <= span.ended_at);
            let before = || {
                next.checked_sub(1)
                    .and_then(|last| seen.get(last))
                    .filter(|seen| seen.last_at >= span.started_at)
            };
            let most = end.min(start + MINUTE);
            let to = coming.map_or(most, |seen| most.min(seen.last_at));
            if minutes.last().is_none_or(|minute| minute.start != start) {
                minutes.push(Minute { start, ..Minute::default() });
            }
            let minute = minutes.last_mut().expect("one was put there if there was none");
            minute.add(to - now, span.memory_mb, coming.or_else(before));
            now = to;
        }
    }
    let mut up = 0;
    minutes.into_iter().map(|minute| minute.point(&mut up)).collect()
}

impl Minute {
    fn add(&mut self, micros: i64, memory_mb: i64, seen: Option<&Seen>) {
        self.up += micros;
        self.allocated += i128::from(memory_mb) * i128::from(micros);
        self.allocated_mb = self.allocated_mb.max(memory_mb);
        if let Some(seen) = seen {
            // A machine's process has a little more than the machine; and before it was scaled a sandbox may have used more.
            let most = memory_mb.saturating_mul(1024);
            self.used += i128::from(seen.mean_kb.min(most)) * i128::from(micros);
            self.peak_kb = self.peak_kb.max(seen.peak_kb.min(most));
        }
    }

    /// `up`: microseconds of all before. Seconds are rounded where the sum of all is, so that they add up.
    fn point(self, up: &mut i64) -> Result<SandboxUsagePoint, Error> {
        let rounded = |micros: i64| (micros + SECOND / 2) / SECOND;
        let before = rounded(*up);
        *up += self.up;
        let average_kb = i64::try_from(self.used / i128::from(self.up.max(1))).unwrap_or(0);
        let mb = |kb: i64| (kb + 512) / 1024;
        Ok(SandboxUsagePoint {
            ts: at(self.start)?,
            memory_allocated_gb_seconds: self.allocated as f64 / (1024.0 * SECOND as f64),
            memory_used_gb_seconds: self.used as f64 / (1024.0 * 1024.0 * SECOND as f64),
            uptime_seconds: rounded(*up) - before,
            allocated_memory_mb: self.allocated_mb,
            used_memory_mb_avg: mb(average_kb),
            used_memory_mb_peak: mb(self.peak_kb),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn seconds(seconds: i64) -> i64 {
        seconds * SECOND
    }

    fn span(start: i64, end: i64, memory_mb: i64) -> Span {
        Span { started_at: seconds(start), ended_at: seconds(end), memory_mb }
    }

    fn look(at: i64, mb: i64) -> Seen {
        Seen { first_at: seconds(at), last_at: seconds(at), mean_kb: mb * 1024, peak_kb: mb * 1024 }
    }

    #[test]
    fn minutes_hold_what_ran_in_them() {
        let spans = [span(90, 130, 1024), span(130, 200, 4096), span(400, 401, 1024)];
        let looks = [look(100, 100), look(150, 300)];
        let points = points(&spans, &looks, 0, seconds(1000)).unwrap();
        let shown: Vec<_> = points
            .iter()
            .map(|p| {
                (
                    p.ts.as_second(),
                    p.uptime_seconds,
                    p.allocated_memory_mb,
                    p.used_memory_mb_avg,
                    p.used_memory_mb_peak,
                )
            })
            .collect();
        // Each look holds for all of its span, being the only one there; the last span had none.
        assert_eq!(
            shown,
            [
                (60, 30, 1024, 100, 100),
                (120, 60, 4096, 267, 300),
                (180, 20, 4096, 300, 300),
                (360, 1, 1024, 0, 0)
            ]
        );
        let allocated: f64 = points.iter().map(|point| point.memory_allocated_gb_seconds).sum();
        assert!((allocated - (41.0 + 4.0 * 70.0)).abs() < 1e-9, "{allocated}");
    }

    #[test]
    fn a_look_at_one_run_says_nothing_of_another() {
        let spans = [span(0, 10, 1024), span(20, 30, 1024), span(40, 50, 1024)];
        let points = points(&spans, &[look(25, 512)], 0, seconds(60)).unwrap();
        let used = points[0].memory_used_gb_seconds;
        assert!((used - 5.0).abs() < 1e-9, "ten seconds of half a GB: {used}");
    }

    #[test]
    fn nobody_uses_more_than_was_given() {
        let points = points(&[span(0, 10, 1024)], &[look(5, 4096)], 0, seconds(60)).unwrap();
        assert_eq!((points[0].used_memory_mb_avg, points[0].used_memory_mb_peak), (1024, 1024));
        assert!((points[0].memory_used_gb_seconds - points[0].memory_allocated_gb_seconds).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn parts_of_a_window_add_up_to_the_whole(
            times in proptest::collection::btree_set(0_i64..2000, 2..12),
            looks in proptest::collection::btree_map(0_i64..2000, 1_i64..4096, 0..12),
            cut in 0_i64..2000,
        ) {
            let times: Vec<i64> = times.into_iter().collect();
            let spans: Vec<Span> = times.chunks_exact(2).map(|pair| span(pair[0], pair[1], 1024)).collect();
            let looks: Vec<Seen> = looks.into_iter().map(|(at, mb)| look(at, mb)).collect();
            let sums = |from: i64, until: i64| {
                let points = points(&spans, &looks, seconds(from), seconds(until)).unwrap();
                points.iter().fold((0.0, 0.0, 0), |sum, point| {
                    (sum.0 + point.memory_allocated_gb_seconds, sum.1 + point.memory_used_gb_seconds, sum.2 + point.uptime_seconds)
                })
            };
            let (whole, first, second) = (sums(0, 2000), sums(0, cut), sums(cut, 2000));
            prop_assert!((whole.0 - first.0 - second.0).abs() < 1e-6);
            prop_assert!((whole.1 - first.1 - second.1).abs() < 1e-6);
            prop_assert_eq!(whole.2, first.2 + second.2);
            let up: i64 = times.chunks_exact(2).map(|pair| pair[1] - pair[0]).sum();
            prop_assert_eq!(whole.2, up);
        }
    }
}
