//! Statistics of several rounds.

use serde::Serialize;

/// The median, the minimum and the maximum of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) minimum: f64,
    pub(crate) maximum: f64,
}

impl Summary {
    /// `None` if there are no samples, or if one is not a finite number.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        if samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (minimum, maximum) = (*sorted.first()?, *sorted.last()?);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get((sorted.len() - 1) / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), minimum, maximum })
    }

    /// The ratio of two sides. The median is the ratio of the medians; minimum and maximum are of
    /// the ratios of single rounds, in which both sides ran one after the other.
    pub(crate) fn ratio(of: &[f64], to: &[f64]) -> Option<Self> {
        let rounds: Vec<f64> = of.iter().zip(to).map(|(of, to)| of / to).collect();
        let ends = Self::of(&rounds)?;
        let median = Self::of(of)?.median / Self::of(to)?.median;
        // A ratio of medians may be outside the range of all rounds.
        Some(Self { median, minimum: ends.minimum.min(median), maximum: ends.maximum.max(median) })
            .filter(|summary| summary.median.is_finite())
    }

    /// The difference of two sides, computed in the same way.
    pub(crate) fn difference(of: &[f64], over: &[f64]) -> Option<Self> {
        let rounds: Vec<f64> = of.iter().zip(over).map(|(of, over)| of - over).collect();
        let ends = Self::of(&rounds)?;
        let median = Self::of(of)?.median - Self::of(over)?.median;
        Some(Self { median, minimum: ends.minimum.min(median), maximum: ends.maximum.max(median) })
    }

    /// Converts to another unit.
    pub(crate) fn divided_by(self, unit: f64) -> Self {
        let Self { median, minimum, maximum } = self;
        Self { median: median / unit, minimum: minimum / unit, maximum: maximum / unit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_both() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.minimum, odd.maximum), (2.0, 1.0, 3.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn a_ratio_is_that_of_medians_and_its_ends_those_of_rounds() {
        // The machine was slow in the second round, for both sides.
        let ratio = Summary::ratio(&[10.0, 40.0, 11.0], &[5.0, 20.0, 5.0]).unwrap();
        assert_eq!((ratio.median, ratio.minimum, ratio.maximum), (2.2, 2.0, 2.2));
        assert_eq!(Summary::ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn a_ratio_of_medians_beyond_all_rounds_widens_the_ends() {
        let ratio = Summary::ratio(&[1.0, 4.0, 6.0], &[2.0, 8.0, 3.0]).unwrap();
        assert_eq!((ratio.minimum, ratio.median, ratio.maximum), (0.5, 4.0 / 3.0, 2.0));
        let widened = Summary::ratio(&[1.0, 5.0, 9.0], &[1.0, 9.0, 5.0]).unwrap();
        assert!(widened.minimum <= widened.median && widened.median <= widened.maximum);
    }

    #[test]
    fn a_difference_is_that_of_medians() {
        let difference = Summary::difference(&[5.0, 6.0, 9.0], &[1.0, 2.0, 3.0]).unwrap();
        assert_eq!((difference.minimum, difference.median, difference.maximum), (4.0, 4.0, 6.0));
        assert_eq!(difference.divided_by(2.0).median, 2.0);
    }
}
