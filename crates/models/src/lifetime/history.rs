use std::collections::HashMap;

use crate::{ModelError, Result};

/// What a customer has done, in the models' three numbers. The first purchase makes a customer and is not counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct History {
    /// Purchases after the first, x; those of one day are one.
    pub repeats: u32,
    /// Time from the first purchase to the last, tₓ; 0 without a repeat.
    pub last: f64,
    /// Time from the first purchase to now, T.
    pub observed: f64,
}

impl History {
    /// A history that can be.
    ///
    /// # Errors
    ///
    /// Times that are negative or not finite, a last purchase after now, or a repeat without a time and a time without a repeat. The row is
    /// only named in the message.
    pub fn new(repeats: u32, last: f64, observed: f64, row: usize) -> Result<Self> {
        let wrong = |problem| Err(ModelError::Value { what: "purchase histories".to_owned(), row, problem });
        match (repeats, last) {
            _ if !(last.is_finite() && observed.is_finite() && last >= 0.0) => {
                wrong("has a time below 0 or not finite")
            }
            _ if last > observed => wrong("has its last purchase after the end of observation"),
            (0, last) if last > 0.0 => wrong("has a time of the last repeat and no repeat"),
            (1.., last) if last <= 0.0 => wrong("has repeats and no time of the last: purchases of one day are one"),
            _ => Ok(Self { repeats, last, observed }),
        }
    }
}

/// Customers grouped by history: what the likelihood is worked out on.
#[derive(Debug, Clone)]
pub struct Cohort {
    groups: Vec<(History, f64)>,
    customers: f64,
    most_repeats: u32,
}

impl Cohort {
    /// Groups customers who did the same.
    ///
    /// # Errors
    ///
    /// No customers.
    pub fn new(histories: impl IntoIterator<Item = History>) -> Result<Self> {
        let mut counts: HashMap<(u32, u64, u64), f64> = HashMap::new();
        for history in histories {
            *counts.entry((history.repeats, history.last.to_bits(), history.observed.to_bits())).or_default() += 1.0;
        }
        let groups = counts.into_iter().map(|((repeats, last, observed), count)| {
            (History { repeats, last: f64::from_bits(last), observed: f64::from_bits(observed) }, count)
        });
        let mut groups: Vec<(History, f64)> = groups.collect();
        // Sums must not depend on the order in which customers come.
        groups.sort_unstable_by(|(a, _), (b, _)| {
            a.repeats.cmp(&b.repeats).then(a.last.total_cmp(&b.last)).then(a.observed.total_cmp(&b.observed))
        });
        Self::of_groups(groups)
    }

    fn of_groups(groups: Vec<(History, f64)>) -> Result<Self> {
        let Some((last, _)) = groups.last() else { return Err(ModelError::Empty { what: "the cohort" }) };
        let most_repeats = last.repeats;
        let customers = groups.iter().map(|(_, count)| count).sum();
        Ok(Self { groups, customers, most_repeats })
    }

    /// How many customers it has.
    pub fn customers(&self) -> f64 {
        self.customers
    }

    /// Each history and how many customers have it.
    pub fn groups(&self) -> &[(History, f64)] {
        &self.groups
    }

    /// The most repeats any customer has.
    pub fn most_repeats(&self) -> u32 {
        self.most_repeats
    }

    /// Every n-th group, so that about `groups` are left: enough to find a start for the search.
    pub(crate) fn thinned(&self, groups: usize) -> Option<Self> {
        let step = self.groups.len() / groups;
        if step < 2 {
            return None;
        }
        Self::of_groups(self.groups.iter().skip(step / 2).step_by(step).copied().collect()).ok()
    }

    /// The sum of `of` over all customers, on all threads and the same on any number of them.
    pub(crate) fn sum(&self, of: impl Fn(&History) -> f64 + Sync) -> f64 {
        use rayon::prelude::*;
        let chunk = |groups: &[(History, f64)]| groups.iter().map(|(history, count)| count * of(history)).sum::<f64>();
        let sums: Vec<f64> = self.groups.par_chunks(2048).map(chunk).collect();
        sums.into_iter().sum()
    }
}
