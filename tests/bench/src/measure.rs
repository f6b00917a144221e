//! Measures a row: runs all sides one after the other, round by round.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::form::Form;
use crate::report::{FigureReport, RowReport, SideReport};
use crate::row::{Comparison, Entrant, Goal, Pace, Row, Work};
use crate::statistics::Summary;

/// The most operations of one measurement.
const COUNT_MAX: u64 = 100_000_000;

/// The measurements of one side.
struct Timed<'a> {
    entrant: &'a mut Entrant,
    count: u64,
    /// Nanoseconds per operation, one sample for each round.
    samples: Vec<f64>,
    /// The digest of the last measurement.
    sum: u64,
}

impl Timed<'_> {
    async fn measure(&mut self, number: u64) -> Result<Duration> {
        let name = self.entrant.name;
        let work = Work { count: self.count, seed: number, salt: number };
        self.entrant.side.before().await.with_context(|| format!("{name}: preparing"))?;
        let since = Instant::now();
        let outcome = self.entrant.side.run(work).await;
        let elapsed = since.elapsed();
        let operations = u32::try_from(self.count).unwrap_or(u32::MAX);
        let elapsed = self.entrant.side.measured().map_or(elapsed, |time| time.saturating_mul(operations));
        self.entrant.side.after().await.with_context(|| format!("{name}: finishing"))?;
        self.sum = outcome.with_context(|| name.to_string())?;
        Ok(elapsed)
    }
}

/// Measures a row.
pub(crate) async fn measure(row: &mut Row, form: &Form) -> Result<RowReport> {
    let sides = row.sides.iter_mut();
    let mut sides: Vec<Timed<'_>> =
        sides.map(|entrant| Timed { entrant, count: 1, samples: Vec::new(), sum: 0 }).collect();
    let mut number = 0;
    warm_up(&mut sides, row.warm_up, &mut number).await?;
    calibrate(&mut sides, form.target, &mut number).await?;
    for round in 0..form.rounds {
        number += 1;
        // The order of sides rotates from round to round, so that no side always follows the same
        // one.
        let places = sides.len();
        for turn in 0..places {
            let Some(side) = sides.get_mut((turn + round) % places) else { continue };
            tokio::time::sleep(form.pause).await;
            let elapsed = side.measure(number).await?;
            side.samples.push(elapsed.as_nanos() as f64 / side.count as f64);
        }
        check_sums(&sides)?;
    }
    let figures = row.goals.iter().map(|goal| figure(goal, &sides)).collect::<Result<_>>()?;
    let reports = sides.iter().map(report).collect::<Result<_>>()?;
    if let Some(evidence) = &mut row.evidence {
        evidence.check().await.context("the sides did different work")?;
    }
    Ok(RowReport { name: row.name.clone(), sides: reports, figures })
}

/// Finds the number of operations for one measurement. All sides run as they will be measured,
/// which also warms them up.
async fn calibrate(sides: &mut [Timed<'_>], target: Duration, number: &mut u64) -> Result<()> {
    loop {
        *number += 1;
        let mut longest_shared = Duration::ZERO;
        let mut is_settled = true;
        for side in sides.iter_mut() {
            let elapsed = side.measure(*number).await?;
            match side.entrant.pace {
                Pace::Shared => longest_shared = longest_shared.max(elapsed),
                Pace::Own => is_settled &= !grow(&mut side.count, elapsed, target),
            }
        }
        check_sums(sides)?;
        for side in sides.iter_mut().filter(|side| side.entrant.pace == Pace::Shared) {
            is_settled &= !grow(&mut side.count, longest_shared, target);
        }
        if is_settled {
            return Ok(());
        }
    }
}

/// Lets each side read `gets` rows.
async fn warm_up(sides: &mut [Timed<'_>], gets: u64, number: &mut u64) -> Result<()> {
    if gets == 0 {
        return Ok(());
    }
    *number += 1;
    for side in sides.iter_mut() {
        side.entrant.side.read_rows(Work { count: gets, seed: *number, salt: *number }).await?;
    }
    Ok(())
}

/// Sets a count for the target time. Returns whether the old count was far below it.
fn grow(count: &mut u64, elapsed: Duration, target: Duration) -> bool {
    let factor = target.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
    // The first runs are slow, and short runs are imprecise.
    let next = (*count as f64 * factor.min(20.0)).round().clamp(1.0, COUNT_MAX as f64) as u64;
    let was_far = factor > 1.5 && next > *count;
    *count = next;
    was_far
}

/// Checks that sides with a shared pace read the same.
fn check_sums(sides: &[Timed<'_>]) -> Result<()> {
    let mut shared = sides.iter().filter(|side| side.entrant.pace == Pace::Shared);
    let Some(first) = shared.next() else { return Ok(()) };
    for other in shared {
        ensure!(
            other.sum == first.sum,
            "{} and {} read different rows in {} operations: {:#x} and {:#x}",
            first.entrant.name,
            other.entrant.name,
            first.count,
            first.sum,
            other.sum
        );
    }
    Ok(())
}

fn report(side: &Timed<'_>) -> Result<SideReport> {
    let time = Summary::of(&side.samples).context("no round was measured")?;
    let (name, count) = (side.entrant.name.to_string(), side.count);
    Ok(SideReport { name, operations: count, nanoseconds: time, samples: side.samples.clone() })
}

fn figure(goal: &Goal, sides: &[Timed<'_>]) -> Result<FigureReport> {
    let samples = |side: usize| -> Result<&[f64]> {
        Ok(&sides.get(side).context("a comparison names a missing side")?.samples)
    };
    let value = match goal.comparison {
        Comparison::Ratio { of, to } => Summary::ratio(samples(of)?, samples(to)?),
        Comparison::OnTop { of, over } => {
            Summary::difference(samples(of)?, samples(over)?).map(|time| time.divided_by(1e3))
        }
        Comparison::OnTopRatio { of, over, to } => {
            let on_top = Summary::difference(samples(of)?, samples(over)?);
            on_top.zip(Summary::of(samples(to)?)).map(|(on_top, to)| on_top.divided_by(to.median))
        }
        Comparison::Milliseconds { of } => Summary::of(samples(of)?).map(|time| time.divided_by(1e6)),
    };
    let Some(value) = value else { bail!("{}: the measurement is not a finite number", goal.label) };
    Ok(FigureReport::new(goal, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Side;
    use async_trait::async_trait;

    /// Takes the given time, and returns the given sum.
    struct Fake {
        nanoseconds: u64,
        sum: u64,
    }

    #[async_trait]
    impl Side for Fake {
        async fn run(&mut self, work: Work) -> Result<u64> {
            std::thread::sleep(Duration::from_nanos(self.nanoseconds * work.count));
            Ok(self.sum * work.seed)
        }
    }

    fn row(sum: u64) -> Row {
        let fast = Fake { nanoseconds: 1_000, sum: 1 };
        Row::against("fake", Fake { nanoseconds: 4_000, sum }, ("quick", fast), 5.0)
    }

    fn form() -> Form {
        Form { target: Duration::from_millis(8), pause: Duration::ZERO, ..Form::short() }
    }

    #[tokio::test]
    async fn both_sides_are_measured_in_every_round() {
        let measured = measure(&mut row(1), &form()).await.unwrap();
        assert!(measured.sides.iter().all(|side| side.samples.len() == form().rounds));
        let [figure] = measured.figures.as_slice() else { panic!("expected one comparison") };
        // The duration of a sleep is not checked.
        assert!(figure.value.minimum > 0.0 && figure.bound == Some(5.0), "{figure:?}");
    }

    #[tokio::test]
    async fn sides_that_read_something_else_fail() {
        let error = measure(&mut row(2), &form()).await.unwrap_err();
        assert!(error.to_string().contains("read different rows"), "{error}");
    }

    #[tokio::test]
    async fn evidence_that_is_missing_fails() {
        struct Missing;

        #[async_trait]
        impl crate::row::Evidence for Missing {
            async fn check(&mut self) -> Result<()> {
                bail!("nothing was written")
            }
        }
        let error = measure(&mut row(1).evidence(Missing), &form()).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "the sides did different work: nothing was written");
    }

    #[test]
    fn counts_grow_to_the_target_in_steps() {
        let mut count = 1;
        assert!(grow(&mut count, Duration::from_micros(1), Duration::from_secs(1)));
        assert_eq!(count, 20);
        let mut count = 1_000;
        assert!(!grow(&mut count, Duration::from_millis(900), Duration::from_secs(1)));
        assert_eq!(count, 1_111);
    }
}
