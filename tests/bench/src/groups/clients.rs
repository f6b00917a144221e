//! Many guests on one database.

use anyhow::Result;

use crate::crowd::{Guests, NativeClients, WithSleeper};
use crate::form::USUAL;
use crate::row::{Comparison, Row};
use crate::runner::Runner;
use crate::sqlite_fixture::{Durability, SameRows, SqliteFixture};

/// Guests in the rows with a bound.
const CLIENTS: usize = 32;
/// Guests that do not sleep.
const AWAKE: usize = 7;

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let fixture = SqliteFixture::new(USUAL).await?;
    let normal = Crowd { name: "32 guests, NORMAL", clients: CLIENTS, durability: Durability::Normal };
    normal.measure(runner, &fixture, Some(1.20), None).await?;
    let full = Crowd { name: "32 guests, FULL", clients: CLIENTS, durability: Durability::Full };
    full.measure(runner, &fixture, Some(0.60), Some(0.60)).await?;
    measure_sleeper(runner, &fixture).await
}

pub(super) async fn measure_growth(runner: &mut Runner<'_>) -> Result<()> {
    let fixture = SqliteFixture::new(USUAL).await?;
    let crowds = [
        ("1 guest, NORMAL", 1, Durability::Normal),
        ("8 guests, NORMAL", 8, Durability::Normal),
        ("1 guest, FULL", 1, Durability::Full),
        ("8 guests, FULL", 8, Durability::Full),
    ];
    for (name, clients, durability) in crowds {
        Crowd { name, clients, durability }.measure(runner, &fixture, None, None).await?;
    }
    Ok(())
}

/// A number of guests, compared with as many threads.
struct Crowd {
    name: &'static str,
    clients: usize,
    durability: Durability,
}

impl Crowd {
    async fn measure(
        &self,
        runner: &mut Runner<'_>,
        fixture: &SqliteFixture,
        bound: Option<f64>,
        competing_bound: Option<f64>,
    ) -> Result<()> {
        let (clients, durability, shape) = (self.clients, self.durability, fixture.shape);
        let (store, path) = fixture.store("larder", durability).await?;
        let native = fixture.copy("native")?;
        let guests = Guests::new(&runner.bench.larder, &store, shape, clients).await?;
        let sharing = NativeClients::sharing(&native, durability, shape, clients)?;
        let mut row = Row::named(self.name)
            .side("larder", guests)
            .side("Mutex<Connection>", sharing)
            .goal("to the mutex", Comparison::Ratio { of: 0, to: 1 }, bound)
            .evidence(SameRows::changed(&path, &native)?);
        if let Some(bound) = competing_bound {
            let competing =
                NativeClients::competing(&fixture.copy("competing")?, durability, shape, clients)?;
            row = row.side_at_own_pace("competing connections", competing).goal(
                "to competing connections",
                Comparison::Ratio { of: 0, to: 2 },
                bound,
            );
        }
        let measured = runner.measure(row).await;
        store.close().await;
        measured
    }
}

/// Compares seven guests beside one that sleeps inside its updates with seven guests alone.
async fn measure_sleeper(runner: &mut Runner<'_>, fixture: &SqliteFixture) -> Result<()> {
    let (durability, shape) = (Durability::Normal, fixture.shape);
    let (disturbed, disturbed_path) = fixture.store("disturbed", durability).await?;
    let (alone, alone_path) = fixture.store("alone", durability).await?;
    let program = &runner.bench.larder;
    let with_sleeper = WithSleeper::new(program, &disturbed, shape, AWAKE).await?;
    let without = Guests::new(program, &alone, shape, AWAKE).await?;
    let row = Row::named("8 guests, one sleeps inside an update")
        .side("7 beside the sleeper", with_sleeper)
        .side("7 alone", without)
        .goal("ratio", Comparison::Ratio { of: 0, to: 1 }, 1.05)
        .evidence(SameRows::changed(&disturbed_path, &alone_path)?);
    let measured = runner.measure(row).await;
    disturbed.close().await;
    alone.close().await;
    measured
}
