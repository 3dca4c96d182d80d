//! Ids that last: which customer each cluster is, after a change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

use crate::Result;
use crate::change::{Cause, Cluster, ClusterMember, Group, Touched};
use crate::error::GraphError;
use crate::identifier::Member;

/// What can be a customer's id.
pub trait CustomerId: Copy + Ord + Hash + Debug {}

impl<Id: Copy + Ord + Hash + Debug> CustomerId for Id {}

/// The identifier a customer is known by: the first of its cluster when the id was minted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Founder {
    /// Which.
    pub member: Member,
    /// Its type.
    pub rank: u8,
    /// Its token.
    pub token: u128,
    /// When it was first seen, as is known now. The smaller, the older the customer.
    pub first_seen: i64,
}

/// An id that is no customer's any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retired<Id> {
    /// The founding identifier it had.
    pub founder: Member,
    /// The id that took its place, which may be retired as well; `None`: its last identifier is gone.
    pub into: Option<Id>,
}

/// What happened to a customer. In the order they are given, events can be replayed: see [`Assignment::replay`].
#[derive(Debug, Clone, PartialEq)]
pub enum Event<Id> {
    /// Identifiers that were nobody's are a new customer.
    Minted {
        /// The new id.
        id: Id,
        /// The founding identifier.
        founder: Founder,
        /// All its identifiers.
        members: Vec<Member>,
        /// Why.
        cause: Cause,
    },
    /// Identifiers of a customer are a new customer.
    Split {
        /// The new id.
        id: Id,
        /// The id they had.
        from: Id,
        /// The founding identifier of the new one.
        founder: Founder,
        /// Those that went.
        members: Vec<Member>,
        /// Why.
        cause: Cause,
    },
    /// Identifiers of a customer are another's.
    Moved {
        /// Whose they are.
        id: Id,
        /// Whose they were.
        from: Id,
        /// Which.
        members: Vec<Member>,
        /// Why.
        cause: Cause,
    },
    /// A customer went up in an older one.
    Merged {
        /// The older one, which stays.
        id: Id,
        /// The younger one, which is retired.
        from: Id,
        /// What the younger one had.
        members: Vec<Member>,
        /// Why.
        cause: Cause,
    },
    /// Identifiers that were nobody's are a known customer's.
    Joined {
        /// Whose they are.
        id: Id,
        /// Which.
        members: Vec<Member>,
        /// Why.
        cause: Cause,
    },
    /// Nothing speaks of these identifiers any more.
    Left {
        /// Whose they were.
        id: Id,
        /// Which.
        members: Vec<Member>,
        /// Why.
        cause: Cause,
    },
    /// A customer's last identifier is gone.
    Ended {
        /// The retired id.
        id: Id,
        /// Why.
        cause: Cause,
    },
    /// The founding identifier was seen earlier or later than was known, or it is gone and another takes its place.
    Refounded {
        /// Whose.
        id: Id,
        /// The founding identifier as it is now.
        founder: Founder,
    },
}

/// Which customer each identifier belongs to, and what became of ids (promise IDN-2).
///
/// - An id is given once. On a merge the older customer's stays: the founding identifier that was seen first, then of the stronger type, then of the smaller token.
/// - On a split the part with the founding identifier keeps the id; when that is gone or changed hands, the part with the identifier of the strongest type, then the earliest seen. Other
///   parts get ids from the mint.
/// - A retired id answers to the living customer that has its founding identifier: when a merged customer is split again later, the ids that went up in it go with theirs. When the
///   identifier is gone, the id answers to the customer it was last in. It never lives again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment<Id: CustomerId> {
    of: HashMap<Member, Id>,
    customers: HashMap<Id, Customer<Id>>,
    retired: HashMap<Id, Retired<Id>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Customer<Id> {
    founder: Founder,
    size: usize,
    /// Retired ids that answer to it.
    absorbed: Vec<Id>,
}

impl<Id: CustomerId> Default for Assignment<Id> {
    fn default() -> Self {
        Self { of: HashMap::new(), customers: HashMap::new(), retired: HashMap::new() }
    }
}

impl<Id: CustomerId> Assignment<Id> {
    /// An assignment as it was kept.
    ///
    /// # Errors
    /// [`GraphError::Assignment`]: an identifier of an unknown customer, an id that is both living and retired, retired ids that answer to each other in a circle or to an unknown one.
    pub fn restore(
        members: impl IntoIterator<Item = (Member, Id)>,
        customers: impl IntoIterator<Item = (Id, Founder)>,
        retired: impl IntoIterator<Item = (Id, Retired<Id>)>,
    ) -> Result<Self> {
        let customer = |founder| Customer { founder, size: 0, absorbed: Vec::new() };
        let mut assignment = Self {
            of: members.into_iter().collect(),
            customers: customers.into_iter().map(|(id, founder)| (id, customer(founder))).collect(),
            retired: retired.into_iter().collect(),
        };
        for id in assignment.of.values() {
            let Some(customer) = assignment.customers.get_mut(id) else {
                return Err(GraphError::Assignment("an identifier belongs to a customer that does not exist"));
            };
            customer.size += 1;
        }
        if assignment.retired.keys().any(|id| assignment.customers.contains_key(id)) {
            return Err(GraphError::Assignment("an id is both living and retired"));
        }
        let mut ids: Vec<Id> = assignment.retired.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let mut steps = 0;
            let mut at = Some(id);
            while let Some(retired) = at.and_then(|at| assignment.retired.get(&at)) {
                steps += 1;
                at = retired.into;
                if steps > assignment.retired.len() {
                    return Err(GraphError::Assignment("retired ids answer to each other in a circle"));
                }
            }
            if let Some(living) = at {
                let Some(customer) = assignment.customers.get_mut(&living) else {
                    return Err(GraphError::Assignment("a retired id answers to one that does not exist"));
                };
                customer.absorbed.push(id);
                assignment.resolve(id);
            }
        }
        Ok(assignment)
    }

    /// The customer of an identifier.
    #[must_use]
    pub fn customer_of(&self, member: Member) -> Option<Id> {
        self.of.get(&member).copied()
    }

    /// Every identifier with its customer, in no order.
    pub fn members(&self) -> impl Iterator<Item = (Member, Id)> {
        self.of.iter().map(|(&member, &id)| (member, id))
    }

    /// The founding identifier of a living customer.
    #[must_use]
    pub fn founder(&self, id: Id) -> Option<Founder> {
        self.customers.get(&id).map(|customer| customer.founder)
    }

    /// The retired ids that answer to a living customer, in no order.
    #[must_use]
    pub fn absorbed(&self, id: Id) -> &[Id] {
        self.customers.get(&id).map_or(&[], |customer| &customer.absorbed)
    }

    /// What is kept of a retired id.
    #[must_use]
    pub fn retired_id(&self, id: Id) -> Option<Retired<Id>> {
        self.retired.get(&id).copied()
    }

    /// Every living customer with its founding identifier, in no order.
    pub fn customers(&self) -> impl Iterator<Item = (Id, Founder)> {
        self.customers.iter().map(|(&id, customer)| (id, customer.founder))
    }

    /// How many living customers there are.
    #[must_use]
    pub fn living(&self) -> usize {
        self.customers.len()
    }

    /// Every retired id, in no order.
    pub fn retired(&self) -> impl Iterator<Item = (Id, Retired<Id>)> {
        self.retired.iter().map(|(&id, &retired)| (id, retired))
    }

    /// The living customer that an id answers to; `None` when it was never given or its last identifier is gone. Shortens the way for the next time.
    pub fn resolve(&mut self, id: Id) -> Option<Id> {
        let mut passed = Vec::new();
        let mut at = id;
        let living = loop {
            if self.customers.contains_key(&at) {
                break Some(at);
            }
            match self.retired.get(&at).and_then(|retired| retired.into) {
                None => break None,
                Some(next) => {
                    passed.push(at);
                    at = next;
                }
            }
        };
        if living.is_some() {
            for id in passed {
                if let Some(retired) = self.retired.get_mut(&id) {
                    retired.into = living;
                }
            }
        }
        living
    }

    /// Gives every touched cluster its customer; returns what happened, in the order in which it can be replayed. The mint is asked with the founding identifier and must give an id
    /// that was never given.
    ///
    /// # Errors
    /// [`GraphError::IdReused`]; [`GraphError::Assignment`] when it does not know the identifiers that were. Nothing has changed then.
    pub fn assign(&mut self, touched: &Touched, mut mint: impl FnMut(&ClusterMember) -> Id) -> Result<Vec<Event<Id>>> {
        let mut minted = HashSet::new();
        let mut events = Vec::new();
        for group in &touched.groups {
            let mut mint_new = |founder: &ClusterMember| {
                let id = mint(founder);
                let is_known = self.customers.contains_key(&id) || self.retired.contains_key(&id);
                if is_known || !minted.insert(id) { Err(GraphError::IdReused) } else { Ok(id) }
            };
            self.plan(group, &mut mint_new, &mut events)?;
        }
        for event in &events {
            self.replay(event)?;
        }
        Ok(events)
    }

    /// Does what an event says. All events of an assignment in order, from an empty one, give the same assignment.
    ///
    /// # Errors
    /// [`GraphError::Assignment`] when an event speaks of a customer or identifier that is not there, [`GraphError::IdReused`] when it makes one that was.
    pub fn replay(&mut self, event: &Event<Id>) -> Result<()> {
        match *event {
            Event::Minted { id, founder, ref members, .. } => {
                self.found(id, founder)?;
                self.carry(None, Some(id), members)
            }
            Event::Split { id, from, founder, ref members, .. } => {
                self.found(id, founder)?;
                self.carry(Some(from), Some(id), members)
            }
            Event::Moved { id, from, ref members, .. } => self.carry(Some(from), Some(id), members),
            Event::Merged { id, from, ref members, .. } => {
                self.carry(Some(from), Some(id), members)?;
                self.retire(from, Some(id))
            }
            Event::Joined { id, ref members, .. } => self.carry(None, Some(id), members),
            Event::Left { id, ref members, .. } => self.carry(Some(id), None, members),
            Event::Ended { id, .. } => self.retire(id, None),
            Event::Refounded { id, founder } => {
                self.customer(id)?.founder = founder;
                Ok(())
            }
        }
    }

    fn customer(&mut self, id: Id) -> Result<&mut Customer<Id>> {
        self.customers.get_mut(&id).ok_or(GraphError::Assignment("a customer does not exist"))
    }

    fn found(&mut self, id: Id, founder: Founder) -> Result<()> {
        if self.customers.contains_key(&id) || self.retired.contains_key(&id) {
            return Err(GraphError::IdReused);
        }
        self.customers.insert(id, Customer { founder, size: 0, absorbed: Vec::new() });
        Ok(())
    }

    /// Takes identifiers from one customer, or from nobody, to another, or to nobody; retired ids go with their founding identifier.
    fn carry(&mut self, from: Option<Id>, to: Option<Id>, members: &[Member]) -> Result<()> {
        for &member in members {
            if self.customer_of(member) != from {
                return Err(GraphError::Assignment("an identifier is not the customer's it should be"));
            }
            match to {
                Some(id) => _ = self.of.insert(member, id),
                None => _ = self.of.remove(&member),
            }
        }
        if let Some(id) = to {
            self.customer(id)?.size += members.len();
        }
        let Some(from) = from else { return Ok(()) };
        let customer = self.customer(from)?;
        customer.size -= members.len();
        let Some(to) = to else { return Ok(()) };
        if customer.absorbed.is_empty() {
            return Ok(());
        }
        let moved: HashSet<Member> = members.iter().copied().collect();
        let (gone, kept): (Vec<Id>, Vec<Id>) = std::mem::take(&mut customer.absorbed)
            .into_iter()
            .partition(|id| self.retired.get(id).is_some_and(|retired| moved.contains(&retired.founder)));
        // None may stay behind on a way through one that goes.
        for (ids, answers_to) in [(&gone, to), (&kept, from)] {
            for id in ids {
                if let Some(retired) = self.retired.get_mut(id) {
                    retired.into = Some(answers_to);
                }
            }
        }
        self.customer(to)?.absorbed.extend(gone);
        self.customer(from)?.absorbed = kept;
        Ok(())
    }

    fn retire(&mut self, id: Id, into: Option<Id>) -> Result<()> {
        let customer = self.customer(id)?;
        if customer.size > 0 {
            return Err(GraphError::Assignment("a customer that has identifiers is retired"));
        }
        let (founder, absorbed) = (customer.founder.member, std::mem::take(&mut customer.absorbed));
        self.customers.remove(&id);
        self.retired.insert(id, Retired { founder, into });
        if let Some(into) = into {
            let heir = self.customer(into)?;
            heir.absorbed.push(id);
            heir.absorbed.extend(absorbed);
        }
        Ok(())
    }

    /// The events of one group.
    fn plan(
        &self,
        group: &Group,
        mint: &mut dyn FnMut(&ClusterMember) -> Result<Id>,
        events: &mut Vec<Event<Id>>,
    ) -> Result<()> {
        // What each id had, by the cluster it is in now; what is gone has no cluster.
        let mut parts: BTreeMap<Id, BTreeMap<usize, Vec<&ClusterMember>>> = BTreeMap::new();
        let mut new: Vec<Vec<Member>> = vec![Vec::new(); group.after.len()];
        for (place, cluster) in group.after.iter().enumerate() {
            for member in &cluster.members {
                match self.customer_of(member.member) {
                    Some(id) => parts.entry(id).or_default().entry(place).or_default().push(member),
                    None => new[place].push(member.member),
                }
            }
        }
        let present: HashSet<Member> =
            group.after.iter().flat_map(|cluster| &cluster.members).map(|member| member.member).collect();
        let mut gone: BTreeMap<Id, Vec<Member>> = BTreeMap::new();
        for &member in group.before.iter().flatten().filter(|member| !present.contains(member)) {
            let id = self.customer_of(member);
            gone.entry(id.ok_or(GraphError::Assignment("an identifier had no customer"))?).or_default().push(member);
        }
        for (id, members) in gone {
            let cause = group.cause_of_splitting(&members);
            events.push(Event::Left { id, members, cause });
            if !parts.contains_key(&id) {
                events.push(Event::Ended { id, cause });
            }
        }

        // Founding identifiers as they are known now, and the cluster that keeps each id.
        let mut claims: Vec<Vec<(Founder, Id)>> = vec![Vec::new(); group.after.len()];
        let mut kept_by: BTreeMap<Id, usize> = BTreeMap::new();
        for (&id, clusters) in &parts {
            let Some(customer) = self.customers.get(&id) else {
                return Err(GraphError::Assignment("a customer does not exist"));
            };
            let (founder, place) = keeper(&customer.founder, clusters)?;
            if founder != customer.founder {
                events.push(Event::Refounded { id, founder });
            }
            claims[place].push((founder, id));
            kept_by.insert(id, place);
        }

        let mut ids = Vec::with_capacity(group.after.len());
        let mut split_from = vec![None; group.after.len()];
        for (place, cluster) in group.after.iter().enumerate() {
            let oldest = claims[place].iter().min_by_key(|(founder, id)| (founder.age(), *id));
            ids.push(match oldest {
                Some(&(_, id)) => id,
                None => {
                    let (id, from) = Self::plan_new(group, cluster, place, &parts, &mut new[place], mint, events)?;
                    split_from[place] = from;
                    id
                }
            });
        }
        // First what goes elsewhere, then what goes up in another as a whole.
        for (&id, clusters) in &parts {
            for (&place, members) in clusters {
                if Some(&place) != kept_by.get(&id) && split_from[place] != Some(id) {
                    let members = names(members);
                    let cause = group.cause_of_joining(&members);
                    events.push(Event::Moved { id: ids[place], from: id, members, cause });
                }
            }
        }
        for (&from, &place) in &kept_by {
            if ids[place] != from {
                let members = names(&parts[&from][&place]);
                let cause = group.cause_of_joining(&members);
                events.push(Event::Merged { id: ids[place], from, members, cause });
            }
        }
        for (place, members) in new.into_iter().enumerate().filter(|(_, members)| !members.is_empty()) {
            let cause = group.cause_of_joining(&members);
            events.push(Event::Joined { id: ids[place], members, cause });
        }
        Ok(())
    }

    /// The id of a cluster that keeps none, and whose it was: split from the customer that had its first known identifier, else minted. Takes what is new to a minted one.
    fn plan_new(
        group: &Group,
        cluster: &Cluster,
        place: usize,
        parts: &BTreeMap<Id, BTreeMap<usize, Vec<&ClusterMember>>>,
        new: &mut Vec<Member>,
        mint: &mut dyn FnMut(&ClusterMember) -> Result<Id>,
        events: &mut Vec<Event<Id>>,
    ) -> Result<(Id, Option<Id>)> {
        let Some(first) = cluster.members.first() else {
            return Err(GraphError::Assignment("a cluster has no members"));
        };
        let id = mint(first)?;
        let founder = Founder::of(first);
        let from = parts
            .iter()
            .filter_map(|(&from, clusters)| Some((clusters.get(&place)?, from)))
            .min_by_key(|(members, from)| (members.first().map(|member| member.founding_order()), *from));
        match &from {
            Some((members, from)) => {
                let from = *from;
                let members = names(members);
                let cause = group.cause_of_splitting(&members);
                events.push(Event::Split { id, from, founder, members, cause });
            }
            None => {
                let members = std::mem::take(new);
                let cause = group.cause_of_joining(&members);
                events.push(Event::Minted { id, founder, members, cause });
            }
        }
        Ok((id, from.map(|(_, from)| from)))
    }
}

fn names(members: &[&ClusterMember]) -> Vec<Member> {
    members.iter().map(|member| member.member).collect()
}

/// The cluster that keeps an id, and the founding identifier as it is known now.
fn keeper(known: &Founder, clusters: &BTreeMap<usize, Vec<&ClusterMember>>) -> Result<(Founder, usize)> {
    let all = || clusters.iter().flat_map(|(&place, members)| members.iter().map(move |member| (place, *member)));
    if let Some((place, member)) = all().find(|(_, one)| one.member == known.member && !one.changed_hands) {
        return Ok((Founder::of(member), place));
    }
    let strongest = all().min_by_key(|(_, one)| {
        let (changed_hands, first_seen, rank, token, member) = one.founding_order();
        // Of lives, the founding one as long as it is there.
        (changed_hands, one.member != known.member, rank, first_seen, token, member)
    });
    let (place, member) = strongest.ok_or(GraphError::Assignment("a customer has no identifiers"))?;
    // The customer is as old as it was.
    Ok((Founder { first_seen: known.first_seen, ..Founder::of(member) }, place))
}

impl Founder {
    fn of(member: &ClusterMember) -> Self {
        Self { member: member.member, rank: member.rank, token: member.token, first_seen: member.first_seen }
    }

    /// What decides which of two customers is the older: the smaller.
    #[must_use]
    pub fn age(&self) -> (i64, u8, u128, Member) {
        let first_seen = if self.first_seen == crate::UNDATED.0 { i64::MAX } else { self.first_seen };
        (first_seen, self.rank, self.token, self.member)
    }
}

impl Group {
    /// The edge that ties these members to others.
    fn cause_of_joining(&self, members: &[Member]) -> Cause {
        let ties = |member: &Member| members.contains(member);
        let join = self.joins.iter().find(|join| ties(&join.left) || ties(&join.right));
        join.map_or(self.cause, |join| join.cause)
    }

    /// What took these members away from where they were.
    fn cause_of_splitting(&self, members: &[Member]) -> Cause {
        let was = |split: &&crate::Split| {
            self.before.get(split.before).is_some_and(|before| before.iter().any(|member| members.contains(member)))
        };
        self.splits.iter().find(was).map_or(self.cause, |split| split.cause)
    }
}
