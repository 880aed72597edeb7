//! Measured values and their quantiles.

/// Values of one figure of one system, all in one unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    /// Sorted.
    values: Vec<f64>,
}

impl Samples {
    /// `values` are finite: they come from clocks and counters.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { values }
    }

    pub(crate) fn values(&self) -> &[f64] {
        &self.values
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The nearest rank: always a value that was measured. With fewer than 100 values the 99th percentile is the
    /// largest of them.
    pub(crate) fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (percent * self.values.len()).div_ceil(100).max(1);
        self.values.get(rank - 1).copied()
    }
}

impl From<Vec<f64>> for Samples {
    fn from(values: Vec<f64>) -> Self {
        Self::new(values)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self::new(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values_of_nearest_rank() {
        let hundred: Samples = (1..=100).rev().map(f64::from).collect();
        assert_eq!([50, 90, 99, 100].map(|p| hundred.percentile(p).unwrap()), [50.0, 90.0, 99.0, 100.0]);
        let three: Samples = [30.0, 10.0, 20.0].into_iter().collect();
        assert_eq!([0, 50, 90, 99].map(|p| three.percentile(p).unwrap()), [10.0, 20.0, 30.0, 30.0]);
        assert_eq!(Samples::default().percentile(50), None);
    }
}
