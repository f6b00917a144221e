//! The figures of a run.

use std::collections::BTreeMap;

use crate::check::Counts;
use crate::history::{Deed, Event};

#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) rounds: u64,
    pub(crate) kills: u64,
    counts: Counts,
    deeds: BTreeMap<Deed, u64>,
}

impl Figures {
    pub(crate) fn count_deeds(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Did(deed) = event {
                *self.deeds.entry(*deed).or_default() += 1;
            }
        }
    }

    pub(crate) fn count(&mut self, counts: Counts) {
        self.rounds += 1;
        self.counts.add(counts);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.kills += other.kills;
        self.counts.add(other.counts);
        for (deed, count) in &other.deeds {
            *self.deeds.entry(*deed).or_default() += count;
        }
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.conflicts += other.conflicts;
        self.refused += other.refused;
        self.open += other.open;
        self.open_and_made += other.open_and_made;
        self.snapshots += other.snapshots;
        self.dumps += other.dumps;
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts { acknowledged, conflicts, refused, open, open_and_made, snapshots, dumps } = self.counts;
        let did = |deed| self.deeds.get(&deed).copied().unwrap_or_default();
        writeln!(formatter, "rounds                         {}", self.rounds)?;
        writeln!(formatter, "commits acknowledged           {acknowledged}")?;
        writeln!(formatter, "conflicts                      {conflicts}")?;
        writeln!(formatter, "commits refused                {refused}")?;
        writeln!(formatter, "commits without an answer      {open}, of which {open_and_made} were made")?;
        writeln!(formatter, "snapshots checked              {snapshots}")?;
        writeln!(formatter, "whole files checked            {dumps}")?;
        writeln!(formatter, "processes killed               {}", self.kills)?;
        writeln!(formatter, "stores opened                  {}", did(Deed::Opened))?;
        writeln!(formatter, "clock jumps                    {}", did(Deed::ClockJump))?;
        writeln!(formatter, "disks that failed              {}", did(Deed::DiskFault))?;
        writeln!(formatter, "files that could not be opened {}", did(Deed::FileFault))?;
        writeln!(formatter, "sweeps                         {}", did(Deed::Sweep))?;
        writeln!(formatter, "verifications, backups         {}, {}", did(Deed::Verify), did(Deed::Backup))?;
        writeln!(
            formatter,
            "foreign checkpoints, VACUUMs   {}, {}",
            did(Deed::Checkpoint),
            did(Deed::Vacuum)
        )?;
        write!(formatter, "reads by an older SQLite       {}", did(Deed::OlderRelease))
    }
}
