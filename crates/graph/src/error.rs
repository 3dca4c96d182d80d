/// What can be wrong with what a caller hands in. Nothing has been changed when one is returned, but for [`GraphError::NotLoaded`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GraphError {
    /// A node that was never made.
    #[error("node {node} does not exist: there are {nodes}, counted from 0")]
    NodeOutOfRange {
        /// Which.
        node: u32,
        /// How many there are.
        nodes: u32,
    },
    /// Two columns that should describe the same rows.
    #[error("{what}: {rows} rows were expected, {found} are there")]
    Length {
        /// Which column.
        what: &'static str,
        /// How many rows it should have.
        rows: usize,
        /// How many it has.
        found: usize,
    },
    /// A match weight that has no place in an order.
    #[error("the match weight of edge {left}-{right} is {weight}: a finite number is expected")]
    Weight {
        /// One end.
        left: u32,
        /// The other.
        right: u32,
        /// What was given.
        weight: f32,
    },
    /// Evidence that ends before it begins.
    #[error("edge {left}-{right} was last seen at {last_seen}, before it was first seen at {first_seen}")]
    IntervalReversed {
        /// One end.
        left: u32,
        /// The other.
        right: u32,
        /// Microseconds since 1970.
        first_seen: i64,
        /// Microseconds since 1970.
        last_seen: i64,
    },
    /// A link of a pair that a person has declared to be two people.
    #[error("nodes {left} and {right} may not be linked: they were declared to be two customers; allow the pair first")]
    Forbidden {
        /// One end.
        left: u32,
        /// The other.
        right: u32,
    },
    /// A link, or a cannot-link, of a node with itself.
    #[error("node {0} was paired with itself")]
    SamePair(u32),
    /// One token with two types.
    #[error("token {token:032x} is of type {known}, not of type {given}")]
    TypeDiffers {
        /// The token.
        token: u128,
        /// The rank it came with first.
        known: u8,
        /// The rank it came with now.
        given: u8,
    },
    /// A type that the rules do not know.
    #[error("there is no rule for type {rank}: the rules have {types} types, counted from 0")]
    UnknownType {
        /// Its rank.
        rank: u8,
        /// How many types the rules have.
        types: usize,
    },
    /// A rule that cannot be followed.
    #[error("rule of type {rank}: {reason}")]
    Rule {
        /// The type.
        rank: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// A setting of the whole graph that cannot be followed.
    #[error("{0}")]
    Setting(&'static str),
    /// Node ids and edge numbers have 32 bits.
    #[error("the graph is full: {0} have no more numbers")]
    Full(&'static str),
    /// The change reaches components that were left out when a part of the graph was loaded. The graph is half changed: drop it and load these as well.
    #[error("{} nodes of components that were not loaded are touched, the first is node {}", .0.len(), .0.first().copied().unwrap_or_default())]
    NotLoaded(Vec<u32>),
    /// A mint gave an id that was given before.
    #[error("the new id of a customer has been used before")]
    IdReused,
    /// An assignment that does not fit the graph's change.
    #[error("the assignment does not fit the change: {0}")]
    Assignment(&'static str),
}
