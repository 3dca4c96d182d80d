use std::fmt;
use std::str::FromStr;

/// A place in PostgreSQL's log: the byte that a record begins at, or ends before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Lsn(pub(crate) u64);

impl Lsn {
    /// Both halves with all digits: sorts as the log does, and PostgreSQL reads it as a `pg_lsn`.
    pub(crate) fn padded(self) -> String {
        format!("{:08X}/{:08X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(())?;
        let half = |text: &str| u32::from_str_radix(text, 16).map_err(|_| ());
        Ok(Self(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

/// How far a source has been read. Its text sorts as it does: `000001-s-000000001234` is behind 1,234 rows of the first
/// snapshot, `000001-w-00000000016B3748-0000000000` behind all transactions that were committed before that place in the
/// log, and with another number at its end behind as many changes of the transaction committed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// How many snapshots were begun, from 1.
    pub(crate) generation: u32,
    pub(crate) place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Behind so many rows of the snapshot.
    Snapshot { rows: u64 },
    /// Behind the transactions committed before `lsn`, and `changes` of the one committed there.
    Log { lsn: Lsn, changes: u64 },
}

impl Position {
    pub(crate) const START: Self = Self { generation: 1, place: Place::Snapshot { rows: 0 } };
    const GENERATION_MAX: u32 = 999_999;
    const COUNT_MAX: u64 = 9_999_999_999;
    const ROWS_MAX: u64 = 999_999_999_999;

    pub(crate) fn log(generation: u32, lsn: Lsn, changes: u64) -> Self {
        Self { generation, place: Place::Log { lsn, changes } }
    }

    /// Where the generation after this one begins; `None` when the numbers are used up.
    pub(crate) fn next_generation(self) -> Option<Self> {
        let generation = self.generation + 1;
        (generation <= Self::GENERATION_MAX).then_some(Self { generation, place: Place::Snapshot { rows: 0 } })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Snapshot { rows } => write!(f, "{:06}-s-{rows:012}", self.generation),
            Place::Log { lsn, changes } => write!(f, "{:06}-w-{:016X}-{changes:010}", self.generation, lsn.0),
        }
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let decimal = |text: &str, digits: usize| {
            let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
            if plain { text.parse::<u64>().map_err(|_| ()) } else { Err(()) }
        };
        let parts: Vec<&str> = text.split('-').collect();
        let (generation, place) = match parts[..] {
            [generation, "s", rows] => (generation, Place::Snapshot { rows: decimal(rows, 12)? }),
            [generation, "w", lsn, changes] if lsn.len() == 16 => {
                let lsn = Lsn(u64::from_str_radix(lsn, 16).map_err(|_| ())?);
                (generation, Place::Log { lsn, changes: decimal(changes, 10)? })
            }
            _ => return Err(()),
        };
        let generation = u32::try_from(decimal(generation, 6)?).map_err(|_| ())?;
        if generation == 0 { Err(()) } else { Ok(Self { generation, place }) }
    }
}

/// Whether a count still fits into a position's text, so that no order is broken in silence.
pub(crate) fn fits(place: Place) -> bool {
    match place {
        Place::Snapshot { rows } => rows <= Position::ROWS_MAX,
        Place::Log { changes, .. } => changes <= Position::COUNT_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_sorts_as_positions_do_and_says_the_same() {
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        let sorted = [
            Position::START,
            Position { generation: 1, place: Place::Snapshot { rows: 9 } },
            Position { generation: 1, place: Place::Snapshot { rows: 10 } },
            Position::log(1, lsn("0/9"), 0),
            Position::log(1, lsn("0/16B3748"), 2),
            Position::log(1, lsn("0/16B3748"), 10),
            Position::log(1, lsn("0/FFFFFFFF"), 0),
            Position::log(1, lsn("1/0"), 0),
            Position::log(1, lsn("A/0"), 0),
            Position { generation: 2, place: Place::Snapshot { rows: 0 } },
            Position::log(10, lsn("0/1"), 0),
        ];
        assert!(sorted.is_sorted());
        let texts: Vec<String> = sorted.iter().map(Position::to_string).collect();
        assert!(texts.is_sorted(), "{texts:?}");
        for (position, text) in sorted.iter().zip(&texts) {
            assert_eq!(text.parse::<Position>(), Ok(*position));
        }
        for wrong in ["", "1-s-0", "000000-s-000000000000", "000001-w-16B3748-0000000000", "000001-s-+00000000001"] {
            assert!(wrong.parse::<Position>().is_err(), "{wrong}");
        }
        assert_eq!(lsn("1/16B3748").padded(), "00000001/016B3748");
        assert_eq!(lsn("1/16B3748").to_string(), "1/16B3748");
    }
}
