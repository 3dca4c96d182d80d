//! What an identifier's own evidence tells of it: whether it joins anybody, and whether it changed hands.

use crate::evidence::{Evidence, UNDATED};
use crate::node_map::{NodeBits, NodeMap};
use crate::rules::Rules;

/// An identifier, or one life of an identifier that changed hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The identifier.
    pub node: u32,
    /// Which of its lives, in the order of time; 0 when it has one.
    pub life: u16,
}

/// Whether an identifier joins others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Standing {
    /// It does.
    Joins,
    /// The caller has blocked it.
    Blocked,
    /// It has more partners than its type's `hub_above`.
    Hub,
    /// All its lives were seen with too many values of a unique type.
    Shared,
}

/// A period in which an identifier was one person's.
///
/// The unique identifiers it was seen with say when: sorted by their first moment, those that lie less than the type's `life_gap` apart are one era. Between two eras the
/// identifier changed hands if both have a value of the same unique type (then they are different values: one value's evidence is one interval), and neither is a single
/// moment: somebody who used it once may have borrowed it. Eras that do not contradict each other in this way, as when a member id is followed by a union id, are one life. Evidence belongs to the life it meets, or, if it meets none, to the nearest,
/// the earlier of two; evidence that meets several speaks for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The first moment of a unique identifier in it, microseconds since 1970.
    pub from: i64,
    /// The last one.
    pub to: i64,
    /// It was seen with too many values of a unique type: it joins nobody in this life.
    pub is_shared: bool,
}

/// What is found out about an identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) standing: Standing,
    /// Empty when it has one life.
    pub(crate) lives: Vec<Life>,
}

/// What is known of all identifiers.
#[derive(Debug, Clone, Default)]
pub(crate) struct States {
    pub(crate) standing: Vec<Standing>,
    /// Of identifiers with more than one life.
    lives: NodeMap<u32, Vec<Life>>,
    /// Which these are.
    changed_hands: NodeBits,
}

impl States {
    pub(crate) fn new(standing: Vec<Standing>) -> Self {
        Self { standing, ..Self::default() }
    }

    /// Identifiers with more than one life.
    pub(crate) fn all_lives(&self) -> &NodeMap<u32, Vec<Life>> {
        &self.lives
    }

    pub(crate) fn set_lives(&mut self, node: u32, lives: Vec<Life>) {
        if lives.is_empty() {
            self.changed_hands.remove(node);
            self.lives.remove(&node);
        } else {
            self.changed_hands.insert(node);
            self.lives.insert(node, lives);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let lives: usize = self.lives.values().map(|lives| lives.len() * size_of::<Life>() + 64).sum();
        self.standing.capacity() * size_of::<Standing>() + lives + self.changed_hands.memory_bytes()
    }

    pub(crate) fn joins(&self, node: u32) -> bool {
        self.standing[node as usize] == Standing::Joins
    }

    pub(crate) fn lives_of(&self, node: u32) -> &[Life] {
        if self.changed_hands.contains(node) { self.lives.get(&node).map_or(&[], Vec::as_slice) } else { &[] }
    }

    pub(crate) fn set(&mut self, node: u32, state: State) {
        self.standing[node as usize] = state.standing;
        self.set_lives(node, state.lives);
    }
}

/// The life that evidence of an interval belongs to; `None` when it meets several.
pub(crate) fn life_at(lives: &[Life], first: i64, last: i64) -> Option<u16> {
    if lives.is_empty() {
        return Some(0);
    }
    let mut nearest = (u64::MAX, 0);
    let mut met = 0;
    for (life, number) in lives.iter().zip(0_u16..) {
        // How far away: before it, after it, or not at all.
        let away = if last < life.from {
            last.abs_diff(life.from)
        } else if first > life.to {
            first.abs_diff(life.to)
        } else {
            met += 1;
            0
        };
        if away < nearest.0 {
            nearest = (away, number);
        }
    }
    (met <= 1).then_some(nearest.1)
}

/// The first moment that belongs to the later of two lives: the one in the middle belongs to the earlier.
pub(crate) fn boundary(earlier: &Life, later: &Life) -> i64 {
    let sum = i128::from(earlier.to) + i128::from(later.from);
    i64::try_from(sum.div_euclid(2) + 1).unwrap_or(i64::MAX)
}

/// Works out states; keeps its lists from one identifier to the next.
#[derive(Debug, Default)]
pub(crate) struct Examiner {
    partners: Vec<u32>,
    unique: Vec<UniqueValue>,
}

/// A value of a unique type that an identifier was seen with.
#[derive(Debug, Clone, Copy)]
struct UniqueValue {
    node: u32,
    bit: u64,
    first: i64,
    last: i64,
}

impl Examiner {
    /// The state of one identifier. Depends on the edges at it alone, and on which of its partners the caller has blocked: these are nobody's and do not count.
    pub(crate) fn examine(&mut self, evidence: &Evidence, rules: &Rules, node: u32) -> State {
        let plain = |standing| State { standing, lives: Vec::new() };
        let rule = rules.of(evidence.ranks[node as usize]);
        if !evidence.blocked.is_empty() && evidence.blocked.contains(&node) {
            return plain(Standing::Blocked);
        }
        if rule.hub_above.is_some_and(|most| self.has_more_partners(evidence, node, most as usize)) {
            return plain(Standing::Hub);
        }
        if rule.shared_above.is_none() && rule.life_gap.is_none() {
            return plain(Standing::Joins);
        }
        self.collect_unique(evidence, rules, node);
        if self.unique.is_empty() {
            return plain(Standing::Joins);
        }
        let mut lives = self.lives(rule.life_gap);
        if let Some(most) = rule.shared_above {
            self.mark_shared(&mut lives, most as usize);
        }
        // What changed hands more often than lives can be numbered is nobody's.
        let is_shared = lives.len() > usize::from(u16::MAX) || lives.iter().all(|life| life.is_shared);
        let standing = if is_shared { Standing::Shared } else { Standing::Joins };
        if lives.len() == 1 || standing == Standing::Shared {
            // An identifier that joins nobody in any life need not be told apart.
            return plain(standing);
        }
        State { standing, lives }
    }

    fn has_more_partners(&mut self, evidence: &Evidence, node: u32, most: usize) -> bool {
        self.partners.clear();
        for (_, row) in evidence.rows_of(node).filter(|(_, row)| row.left != row.right && row.is_certain()) {
            self.partners.push(row.other(node));
            // Looks at no more than it takes: a bot has millions of edges. Several edges with one partner are rare.
            if self.partners.len() > 2 * most {
                self.partners.sort_unstable();
                self.partners.dedup();
                if self.partners.len() > most {
                    return true;
                }
            }
        }
        self.partners.sort_unstable();
        self.partners.dedup();
        self.partners.len() > most
    }

    /// The unique values seen with the node, each with one interval, by first moment.
    fn collect_unique(&mut self, evidence: &Evidence, rules: &Rules, node: u32) {
        self.unique.clear();
        for (_, row) in evidence.rows_of(node).filter(|(_, row)| row.is_certain()) {
            let partner = row.other(node);
            let bit = rules.unique_bit(evidence.ranks[partner as usize]);
            if partner != node && bit != 0 && !evidence.blocked.contains(&partner) {
                self.unique.push(UniqueValue { node: partner, bit, first: row.first_seen, last: row.last_seen });
            }
        }
        self.unique.sort_unstable_by_key(|value| value.node);
        self.unique.dedup_by(|one, kept| {
            let same = one.node == kept.node;
            if same {
                kept.first = kept.first.min(one.first);
                kept.last = kept.last.max(one.last);
            }
            same
        });
        self.unique.sort_unstable_by_key(|value| value.first);
    }

    /// At least one life; the values must not be empty.
    fn lives(&self, gap: Option<i64>) -> Vec<Life> {
        let mut lives: Vec<Life> = Vec::new();
        let mut held = 0;
        let mut at = 0;
        while at < self.unique.len() {
            let (era, from) = (at, self.unique[at].first);
            let (mut to, mut bits) = (self.unique[at].last, 0);
            while at < self.unique.len() {
                let value = self.unique[at];
                if at > era && gap.is_some_and(|gap| value.first.saturating_sub(to) >= gap) {
                    break;
                }
                to = to.max(value.last);
                bits |= value.bit;
                at += 1;
            }
            match lives.last_mut() {
                Some(life) if held & bits == 0 || life.from == life.to || from == to => {
                    life.to = to;
                    held |= bits;
                }
                _ => {
                    lives.push(Life { from, to, is_shared: false });
                    held = bits;
                }
            }
        }
        lives
    }

    fn mark_shared(&mut self, lives: &mut [Life], most: usize) {
        // Values are in the order of time, and so are lives; a value lies in one of them.
        self.unique.sort_unstable_by_key(|value| (value.bit, value.first));
        for life in lives {
            let mut counted = (0, 0);
            for value in self.unique.iter().filter(|value| value.first >= life.from && value.last <= life.to) {
                counted = if counted.0 == value.bit { (value.bit, counted.1 + 1) } else { (value.bit, 1) };
                life.is_shared |= counted.1 > most;
            }
        }
    }
}

/// The interval of a member: dated evidence if there is any.
pub(crate) fn widen(interval: &mut Option<(i64, i64)>, first: i64, last: i64) {
    *interval = match *interval {
        Some(known) if (first, last) == UNDATED => Some(known),
        Some(known) if known != UNDATED => Some((known.0.min(first), known.1.max(last))),
        _ => Some((first, last)),
    };
}

/// The interval of each life of a node: of its evidence; without any, of the links that speak of it; else the life's own.
pub(crate) fn seen_at(evidence: &Evidence, states: &States, node: u32, edges: &mut u64) -> Vec<(i64, i64)> {
    let lives = states.lives_of(node);
    let mut seen = vec![None; lives.len().max(1)];
    for (_, row) in evidence.rows_of(node) {
        *edges += 1;
        if !row.is_certain() {
            continue;
        }
        if let Some(life) = life_at(lives, row.first_seen, row.last_seen) {
            widen(&mut seen[usize::from(life)], row.first_seen, row.last_seen);
        }
    }
    let mut linked = vec![None; seen.len()];
    for link in evidence.linked_with(node).filter_map(|other| evidence.link(node, other)) {
        if let Some(life) = life_at(lives, link.at, link.at) {
            widen(&mut linked[usize::from(life)], link.at, link.at);
        }
    }
    let own = |life: usize| lives.get(life).map_or(UNDATED, |life| (life.from, life.to));
    let seen = seen.into_iter().zip(linked).enumerate();
    seen.map(|(life, (seen, linked))| seen.or(linked).unwrap_or_else(|| own(life))).collect()
}
