//! The identity graph: from evidence that identifiers belong together to customers, in memory.
//!
//! [`components`] joins whole edge lists. [`IdentityGraph`] knows more: types of which a customer has one value or a few, identifiers that several people share or that change
//! hands, what people have decided. Its clusters depend on the set of evidence alone; [`IdentityGraph::apply`] works out again only the components that a change touches and says what
//! became of their clusters; [`Assignment`] gives clusters ids that last.
//!
//! This crate must not know lakes, tables, SQL or files, what an identifier looks like, or the clock: nodes are numbers, tokens are 128 bits, moments are handed in.

mod assign;
mod change;
mod columns;
mod compare;
mod components;
mod dictionary;
mod error;
mod evidence;
mod explain;
mod greedy;
mod identifier;
mod incremental;
mod node_map;
mod resolution;
mod rules;

pub use assign::{Assignment, CustomerId, Event, Founder, Retired};
pub use change::{Cause, Change, Cluster, ClusterMember, Group, Join, Split, StandingChange, Touched};
pub use columns::{Columns, EdgeColumns, LifeColumns, NodeColumns};
pub use compare::{Difference, GuardPoint};
pub use components::{ComponentBuilder, Components, components};
pub use dictionary::Dictionary;
pub use error::GraphError;
pub use evidence::{Edge, EdgeKey, Link, UNDATED};
pub use explain::{Explanation, Step, Support};
pub use greedy::Refusal;
pub use identifier::{Life, Member, Standing};
pub use incremental::IdentityGraph;
pub use rules::{Guard, Limit, Rules, TypeRule};

/// A result of this crate.
pub type Result<T, E = GraphError> = std::result::Result<T, E>;
