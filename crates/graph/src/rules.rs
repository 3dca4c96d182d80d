//! What may be joined: the rules of each identifier type, checked once when they are made.

use crate::Result;
use crate::error::GraphError;

/// What holds for one identifier type. The default: not unique, never shared, no limit, no lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TypeRule {
    /// A customer has one value of it at most.
    pub unique: bool,
    /// A value that one of its lives shows with more than this many different values of one unique type is shared, and joins nobody.
    pub shared_above: Option<u32>,
    /// A value with more than this many different partners of any kind is a hub (a bot, a shop's phone), and joins nobody.
    pub hub_above: Option<u32>,
    /// How many values of it a customer may have.
    pub limit: Option<Limit>,
    /// A value may change hands when unique identifiers use it in periods that lie at least this many microseconds apart.
    pub life_gap: Option<i64>,
}

/// How many different values of a type a customer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// So many.
    pub values: u32,
    /// Seen within any window of this many microseconds; `None`: ever.
    pub window: Option<i64>,
}

/// What keeps probabilistic evidence from making giants: where a component has more than `cap` members, the bar is raised by `step`, again and again, until each part fits or
/// consists of certain evidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    /// Members a component may have before the bar is raised in it.
    pub cap: u32,
    /// By how much the bar is raised each time, in log2 of the Bayes factor; above 0.
    pub step: f32,
}

/// The rules of a graph, by the rank of each type: 0 is the strongest.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    types: Vec<TypeRule>,
    /// A bit for each unique type, 0 for others.
    unique_bits: Vec<u64>,
    weight_min: f32,
    guard: Option<Guard>,
}

impl Rules {
    /// Rules for types `0..types.len()`; probabilistic evidence counts from weight 0, without a guard.
    ///
    /// # Errors
    /// [`GraphError::Rule`]: more than 256 types or 64 unique ones, lives or sharing for a unique type, a limit of 0 values, a gap or window that is not above 0.
    pub fn new(types: Vec<TypeRule>) -> Result<Self> {
        let mut unique_bits = vec![0; types.len()];
        let mut next_bit = 0;
        for (rank, rule) in types.iter().enumerate() {
            let wrong = |reason| Err(GraphError::Rule { rank, reason });
            if rank > usize::from(u8::MAX) {
                return wrong("there are at most 256 types");
            }
            if rule.unique && (rule.shared_above.is_some() || rule.life_gap.is_some()) {
                return wrong("a unique type is never shared and never changes hands");
            }
            if rule.life_gap.is_some_and(|gap| gap <= 0) {
                return wrong("the gap between two lives is above 0");
            }
            if let Some(limit) = rule.limit {
                if limit.values == 0 {
                    return wrong("a limit is at least 1");
                }
                if limit.window.is_some_and(|window| window <= 0) {
                    return wrong("the window of a limit is above 0");
                }
            }
            if rule.unique {
                if next_bit == u64::BITS {
                    return wrong("there are at most 64 unique types");
                }
                unique_bits[rank] = 1 << next_bit;
                next_bit += 1;
            }
        }
        Ok(Self { types, unique_bits, weight_min: 0.0, guard: None })
    }

    /// Sets the least weight of probabilistic evidence, in log2 of the Bayes factor.
    ///
    /// # Errors
    /// [`GraphError::Setting`] when it is not finite.
    pub fn with_weight_min(mut self, weight_min: f32) -> Result<Self> {
        if !weight_min.is_finite() {
            return Err(GraphError::Setting("the least weight of an edge is a finite number"));
        }
        self.weight_min = weight_min;
        Ok(self)
    }

    /// Sets the guard.
    ///
    /// # Errors
    /// [`GraphError::Setting`] when its step is not a finite number of at least 1/1024, or its cap is 0.
    pub fn with_guard(mut self, guard: Option<Guard>) -> Result<Self> {
        if guard.is_some_and(|guard| guard.cap == 0 || !guard.step.is_finite() || guard.step < 1.0 / 1024.0) {
            return Err(GraphError::Setting("the guard has a cap above 0 and a step of at least 1/1024"));
        }
        self.guard = guard;
        Ok(self)
    }

    /// These rules with another rule for one type.
    ///
    /// # Errors
    /// [`GraphError::UnknownType`], or as [`Rules::new`].
    pub fn with_type(&self, rank: u8, rule: TypeRule) -> Result<Self> {
        let mut types = self.types.clone();
        let size = types.len();
        *types.get_mut(usize::from(rank)).ok_or(GraphError::UnknownType { rank, types: size })? = rule;
        Ok(Self { weight_min: self.weight_min, guard: self.guard, ..Self::new(types)? })
    }

    /// The rules of the types, by rank.
    #[must_use]
    pub fn types(&self) -> &[TypeRule] {
        &self.types
    }

    /// The least weight of probabilistic evidence.
    #[must_use]
    pub fn weight_min(&self) -> f32 {
        self.weight_min
    }

    /// The guard.
    #[must_use]
    pub fn guard(&self) -> Option<Guard> {
        self.guard
    }

    /// The rule of a rank that was checked when its node was made.
    pub(crate) fn of(&self, rank: u8) -> TypeRule {
        self.types.get(usize::from(rank)).copied().unwrap_or_default()
    }

    /// The bit of a unique type, 0 for another.
    pub(crate) fn unique_bit(&self, rank: u8) -> u64 {
        self.unique_bits.get(usize::from(rank)).copied().unwrap_or(0)
    }
}

impl Limit {
    /// The most of these first-to-last intervals that one window meets.
    ///
    /// An interval meets the window that begins at `w` when `first - window <= w <= last`: so it is the greatest number of such ranges over one point.
    pub(crate) fn most_at_once(self, seen: &mut [(i64, i64)]) -> u32 {
        let Some(window) = self.window else { return u32::try_from(seen.len()).unwrap_or(u32::MAX) };
        // At each point where a range opens, count those that are open; the ranges that have closed are found by walking their ends.
        let mut ends: Vec<i64> = seen.iter().map(|&(_, last)| last).collect();
        ends.sort_unstable();
        seen.sort_unstable();
        let (mut closed, mut most) = (0, 0);
        for (opened, &(first, _)) in seen.iter().enumerate() {
            let opens = first.saturating_sub(window);
            while ends[closed] < opens {
                closed += 1;
            }
            most = most.max(opened + 1 - closed);
        }
        u32::try_from(most).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_counts_what_it_meets_at_most() {
        let limit = |window| Limit { values: 1, window };
        assert_eq!(limit(None).most_at_once(&mut [(0, 1), (100, 101), (200, 201)]), 3);
        assert_eq!(limit(Some(10)).most_at_once(&mut [(0, 1), (100, 101), (200, 201)]), 1);
        // A window of 99 begins at 1 and ends at 100: it meets both.
        assert_eq!(limit(Some(99)).most_at_once(&mut [(100, 101), (0, 1), (300, 301)]), 2);
        assert_eq!(limit(Some(98)).most_at_once(&mut [(100, 101), (0, 1), (300, 301)]), 1);
        assert_eq!(limit(Some(1)).most_at_once(&mut [(0, 500), (10, 20), (30, 40)]), 2);
        assert_eq!(limit(Some(1)).most_at_once(&mut [(i64::MIN, i64::MAX), (i64::MIN, i64::MAX)]), 2);
    }

    #[test]
    fn rules_that_cannot_be_followed_are_told() {
        let unique = TypeRule { unique: true, ..TypeRule::default() };
        assert!(Rules::new(vec![unique; 64]).is_ok());
        assert!(Rules::new(vec![unique; 65]).is_err());
        assert!(Rules::new(vec![TypeRule { life_gap: Some(1), ..unique }]).is_err());
        assert!(Rules::new(vec![TypeRule { life_gap: Some(0), ..TypeRule::default() }]).is_err());
        let nothing = Some(Limit { values: 0, window: None });
        assert!(Rules::new(vec![TypeRule { limit: nothing, ..TypeRule::default() }]).is_err());
        let rules = Rules::new(vec![unique]).unwrap();
        assert!(rules.clone().with_weight_min(f32::NAN).is_err());
        assert!(rules.clone().with_guard(Some(Guard { cap: 3, step: 0.0 })).is_err());
        assert_eq!(rules.with_type(1, unique), Err(GraphError::UnknownType { rank: 1, types: 1 }));
    }
}
