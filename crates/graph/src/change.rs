//! What can change in a graph, and what a change is said to have moved.

use crate::evidence::{Edge, EdgeKey, Link};
use crate::identifier::{Member, Standing};
use crate::rules::TypeRule;

/// One change of what is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// More evidence; see [`Edge`] for what happens when there is an edge of this key.
    Add(Edge),
    /// The edge is gone, all of it. Nothing happens when there is none.
    Remove(EdgeKey),
    /// This identifier joins nobody.
    Block(u32),
    /// It does again.
    Unblock(u32),
    /// Two identifiers are one customer's, says a person: comes before all evidence, and obeys cannot-links alone. Takes the place of an earlier link of the pair.
    Link(Link),
    /// The link is taken back.
    WithdrawLink {
        /// One end.
        left: u32,
        /// The other.
        right: u32,
    },
    /// Two identifiers are never one customer's, says a person: a cannot-link, which also takes back a link of the pair.
    Unlink {
        /// One end.
        left: u32,
        /// The other.
        right: u32,
    },
    /// The cannot-link is taken back.
    Allow {
        /// One end.
        left: u32,
        /// The other.
        right: u32,
    },
    /// Another rule for one type.
    Rule {
        /// The type.
        rank: u8,
        /// What holds for it from now on.
        rule: TypeRule,
    },
}

/// What a change moved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Touched {
    /// Clusters that are not as they were, together with those they exchanged members with.
    pub groups: Vec<Group>,
    /// Identifiers that join again, or no more.
    pub standings: Vec<StandingChange>,
    /// Identifiers whose lives are others than they were, or begin or end at other moments.
    pub lives: Vec<u32>,
    /// How many nodes were gone through: all of the raw components that the change reaches.
    pub nodes: u64,
    /// How many edges were looked at, each from both ends.
    pub edges: u64,
}

/// Clusters before and after, connected by common members.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The members of each cluster that was, in ascending order.
    pub before: Vec<Vec<Member>>,
    /// Each cluster that is.
    pub after: Vec<Cluster>,
    /// What ties together the parts of new clusters that were apart: a tree over these parts.
    pub joins: Vec<Join>,
    /// What took apart old clusters whose members are not in one cluster any more.
    pub splits: Vec<Split>,
    /// The likeliest cause of it all.
    pub cause: Cause,
}

/// The members of a cluster, the founding one first: the earliest seen, then the one of the strongest type, then by token. Identifiers that changed hands come after all others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// Never empty.
    pub members: Vec<ClusterMember>,
}

/// A member of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterMember {
    /// Which.
    pub member: Member,
    /// Its type.
    pub rank: u8,
    /// Its token.
    pub token: u128,
    /// When it was first seen, in this life.
    pub first_seen: i64,
    /// When it was last seen, in this life.
    pub last_seen: i64,
    /// It has other lives besides.
    pub changed_hands: bool,
}

/// Two parts became one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Join {
    /// A member of one part.
    pub left: Member,
    /// A member of the other.
    pub right: Member,
    /// The edge or link that holds them together.
    pub cause: Cause,
}

/// A cluster was taken apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    /// Its place in [`Group::before`].
    pub before: usize,
    /// The change that did it; of several in one batch, the one nearest to the cluster and most likely.
    pub cause: Cause,
}

/// What made clusters change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cause {
    /// This evidence: it joins, or it is stronger than what joined before.
    Edge(Edge),
    /// This evidence went.
    Removed(Edge),
    /// A person has linked the two.
    Linked(Link),
    /// A person took this link back.
    LinkWithdrawn(Link),
    /// A person has declared these to be two.
    Unlinked(u32, u32),
    /// A person took that back.
    Allowed(u32, u32),
    /// The caller has blocked this identifier.
    Blocked(u32),
    /// The caller blocks it no more.
    Unblocked(u32),
    /// Evidence has changed what this identifier is: shared, a hub, of several lives, or no longer so.
    Standing(u32),
    /// This type got another rule.
    Rule(u8),
    /// The whole graph was compared with an earlier one.
    Compared,
}

/// An identifier joins again, or no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandingChange {
    /// Which.
    pub node: u32,
    /// What it was.
    pub was: Standing,
    /// What it is.
    pub is: Standing,
}

impl ClusterMember {
    /// What decides which member is the founding one. Lives are counted anew when an earlier one comes to light, so a customer is not known by one while it has anything else.
    #[must_use]
    pub fn founding_order(&self) -> (bool, i64, u8, u128, Member) {
        // What carries no date comes last.
        let first_seen = if self.first_seen == crate::UNDATED.0 { i64::MAX } else { self.first_seen };
        (self.changed_hands, first_seen, self.rank, self.token, self.member)
    }
}
