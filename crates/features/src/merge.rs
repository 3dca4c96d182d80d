//! Finds, for each place of a sorted bucket of the spine, the row of history that counts.

use std::ops::Range;

use arrow::array::BooleanArray;

use crate::keys::{KeyList, Keys, gallop};
use crate::spine::{SpineBucket, index};
use crate::status::Status;

/// What a row of history has to fulfil.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// An event at the very moment is too late.
    pub(crate) strict: bool,
    /// What was not known at the moment is not seen.
    pub(crate) known_only: bool,
    /// How old an event may be, in microseconds.
    pub(crate) ttl: Option<i64>,
    /// What later versions brought is not seen.
    pub(crate) as_of_version: Option<i64>,
}

/// Some rows of history, sorted. A column that is not there does not matter.
#[derive(Debug)]
pub(crate) struct HistoryRows<'a> {
    pub(crate) keys: &'a Keys,
    pub(crate) events: &'a [i64],
    pub(crate) knowns: Option<&'a [i64]>,
    pub(crate) versions: Option<&'a [i64]>,
    pub(crate) deleted: Option<&'a BooleanArray>,
}

/// No row has been gathered for this place.
pub(crate) const NO_PICK: u32 = u32::MAX;

/// The best row so far, by place.
#[derive(Debug)]
pub(crate) struct Best {
    /// [`Status`] codes, never that of a null value.
    pub(crate) status: Vec<i8>,
    /// The row's event time, where one counts.
    pub(crate) events: Vec<i64>,
    knowns: Vec<i64>,
    /// Whether any row was found, a deletion among them.
    found: Vec<bool>,
    /// The number of its values among those gathered, or [`NO_PICK`].
    pub(crate) picks: Vec<u32>,
}

impl Best {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            status: vec![Status::NotFound.code(); places],
            events: vec![0; places],
            knowns: vec![0; places],
            found: vec![false; places],
            picks: vec![NO_PICK; places],
        }
    }

    /// A place whose row was not there yet at its moment. There must be none.
    pub(crate) fn first_ahead_of_time(&self, spine: &SpineBucket, rules: &Rules) -> Option<usize> {
        let strict = i64::from(rules.strict);
        let times = self.found.iter().zip(&self.events).zip(&self.knowns).zip(&spine.moments);
        let ahead = times.map(|(((&found, &event), &known), &moment)| {
            found & ((event > moment.saturating_sub(strict)) | (rules.known_only & (known > moment)))
        });
        // Without a way out in the middle this is a few instructions for several places at once.
        if ahead.clone().fold(false, |any, ahead| any | ahead) {
            return ahead.into_iter().position(|ahead| ahead);
        }
        None
    }
}

/// Looks at one batch after the other of one sorted file.
#[derive(Debug)]
pub(crate) struct Merge<'a> {
    spine: &'a SpineBucket,
    rules: Rules,
    /// The first key that may be in what comes.
    key: usize,
    /// Places with the row of the batch found for them.
    wins: Vec<(usize, usize)>,
}

impl<'a> Merge<'a> {
    pub(crate) fn new(spine: &'a SpineBucket, rules: Rules) -> Self {
        Self { spine, rules, key: 0, wins: Vec::new() }
    }

    /// Whether all keys have been dealt with: the rest of the file does not matter.
    pub(crate) fn is_done(&self) -> bool {
        self.key == self.spine.keys.len()
    }

    /// Looks at the next rows of the file. Files come by version, so that of rows that agree in all times the later one counts. The values of the rows returned, in
    /// this order, are to be gathered; `gathered` is how many were before.
    pub(crate) fn batch(&mut self, rows: &HistoryRows<'_>, best: &mut Best, gathered: u32) -> Vec<u32> {
        self.wins.clear();
        let spine = self.spine;
        match (&spine.keys, rows.keys) {
            (KeyList::Int(ours), Keys::Int(theirs)) => {
                let theirs = theirs.values();
                self.walk(rows, |at| ours[at], |row| theirs[row]);
            }
            (KeyList::Bytes(ours), theirs) => self.walk(rows, |at| ours.get(at), |row| theirs.bytes(row)),
            // A spine's keys have been cast to the type of history.
            (KeyList::Int(_), _) => {}
        }
        let mut chosen = Vec::with_capacity(self.wins.len());
        for &(place, row) in &self.wins {
            let event = rows.events[row];
            let known = rows.knowns.map_or(i64::MIN, |knowns| knowns[row]);
            if best.found[place] && (event, known) < (best.events[place], best.knowns[place]) {
                continue;
            }
            (best.found[place], best.events[place], best.knowns[place]) = (true, event, known);
            best.picks[place] = NO_PICK;
            best.status[place] = if rows.deleted.is_some_and(|deleted| deleted.value(row)) {
                Status::NotFound.code()
            } else if self.rules.ttl.is_some_and(|ttl| event < spine.moments[place].saturating_sub(ttl)) {
                Status::OutsideMaxAge.code()
            } else {
                best.picks[place] = gathered + number(chosen.len());
                chosen.push(number(row));
                Status::Present.code()
            };
        }
        chosen
    }

    /// Goes through keys of both sides, jumping over those that only one has.
    fn walk<K: Ord>(
        &mut self,
        rows: &HistoryRows<'_>,
        spine_key: impl Fn(usize) -> K,
        history_key: impl Fn(usize) -> K,
    ) {
        let (keys, end) = (self.spine.keys.len(), rows.events.len());
        let mut row = 0;
        while self.key < keys && row < end {
            let key = spine_key(self.key);
            match history_key(row).cmp(&key) {
                std::cmp::Ordering::Less => row = gallop(row + 1, end, |at| history_key(at) < key),
                std::cmp::Ordering::Greater => {
                    let theirs = history_key(row);
                    self.key = gallop(self.key + 1, keys, |at| spine_key(at) < theirs);
                }
                std::cmp::Ordering::Equal => {
                    let to = gallop(row + 1, end, |at| history_key(at) == key);
                    self.key_rows(rows, row..to);
                    if to == end {
                        // The key may go on in the next batch, and what is there comes after all of this.
                        return;
                    }
                    self.key += 1;
                    row = to;
                }
            }
        }
    }

    /// All moments of the key at hand against its rows in this batch.
    fn key_rows(&mut self, rows: &HistoryRows<'_>, range: Range<usize>) {
        let places = self.spine.starts[self.key]..self.spine.starts[self.key + 1];
        let before = self.wins.len();
        let mut steps_left = 8 * (range.len() + places.len());
        let mut upper = range.start;
        for place in places.clone() {
            let moment = self.spine.moments[place];
            upper = gallop(upper, range.end, |row| self.is_past(rows.events[row], moment));
            let mut row = upper;
            while row > range.start {
                row -= 1;
                if self.is_known(rows, row, moment) {
                    self.wins.push((place, row));
                    break;
                }
                if steps_left == 0 {
                    // Much of the key's history became known late. Stepping back would look at its rows again for each moment.
                    self.wins.truncate(before);
                    return self.sweep(rows, range, places);
                }
                steps_left -= 1;
            }
        }
    }

    /// The same as [`Self::key_rows`] in `n log n`: rows appear as moments pass, and the last of those there counts.
    fn sweep(&mut self, rows: &HistoryRows<'_>, range: Range<usize>, places: Range<usize>) {
        let appears = |row: usize| {
            let event = rows.events[row].saturating_add(i64::from(self.rules.strict));
            let known =
                if self.rules.known_only { rows.knowns.map_or(i64::MIN, |knowns| knowns[row]) } else { i64::MIN };
            event.max(known)
        };
        let mut order: Vec<(i64, usize)> =
            range.filter(|&row| self.is_in_version(rows, row)).map(|row| (appears(row), row)).collect();
        order.sort_unstable();
        let mut order = order.into_iter().peekable();
        let mut last = None;
        for place in places {
            let moment = self.spine.moments[place];
            while let Some((_, row)) = order.next_if(|&(appears, _)| appears <= moment) {
                last = last.max(Some(row));
            }
            if let Some(row) = last {
                self.wins.push((place, row));
            }
        }
    }

    fn is_past(&self, event: i64, moment: i64) -> bool {
        if self.rules.strict { event < moment } else { event <= moment }
    }

    fn is_known(&self, rows: &HistoryRows<'_>, row: usize, moment: i64) -> bool {
        (!self.rules.known_only || rows.knowns.is_none_or(|knowns| knowns[row] <= moment))
            && self.is_in_version(rows, row)
    }

    fn is_in_version(&self, rows: &HistoryRows<'_>, row: usize) -> bool {
        match (self.rules.as_of_version, rows.versions) {
            (Some(version), Some(versions)) => versions[row] <= version,
            _ => true,
        }
    }
}

/// Rows of a batch, and those gathered for a part of the spine, are counted in 32 bits, as the spine's are.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(NO_PICK)
}

/// Renumbers gathered rows so that only those still picked are left; returns them by their old numbers.
pub(crate) fn renumber(best: &mut Best, gathered: usize) -> Vec<u32> {
    let mut new = vec![NO_PICK; gathered];
    let mut kept = Vec::new();
    for pick in best.picks.iter_mut().filter(|pick| **pick != NO_PICK) {
        let slot = &mut new[index(*pick)];
        if *slot == NO_PICK {
            *slot = number(kept.len());
            kept.push(*pick);
        }
        *pick = *slot;
    }
    kept
}
