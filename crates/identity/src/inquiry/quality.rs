//! Figures to judge identity by.

use std::collections::{BTreeMap, HashMap};

use holdfast_graph::Standing;
use serde::Serialize;

use super::Inquiry;
use crate::Result;
use crate::customer::CustomerId;
use crate::decisions::in_force;
use crate::known::GUARD_STEP;

/// Caps of the guard that its curve shows.
const GUARD_CAPS: [u32; 5] = [5, 10, 20, 50, 100];

/// Figures to judge identity by.
#[derive(Debug, Clone, Serialize)]
pub struct Quality {
    /// Ids in use.
    pub customers: u64,
    /// Ids out of use.
    pub retired: u64,
    /// By type, the strongest first.
    pub types: Vec<TypeQuality>,
    /// Customers by the number of their identifiers.
    pub sizes: Vec<SizeClass>,
    /// Identifiers of the largest customers, the largest first.
    pub largest: Vec<LargestCustomer>,
    /// Decisions in force.
    pub decisions: u64,
    /// The model by which records are compared; 0: none.
    pub model: i64,
    /// Pairs of identifiers whose records are so alike that they are joined, unless a rule or decision forbids it.
    pub alike: u64,
    /// Pairs for a person to decide.
    pub to_review: u64,
    /// The guard that is in force.
    pub guard_cap: Option<u32>,
    /// What a guard of some cap would leave. It cuts evidence that is not certain, so it is flat while there is none.
    pub guard_curve: Vec<GuardLine>,
}

/// The identifiers of one type.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TypeQuality {
    /// Such as phone.
    pub identifier_type: String,
    /// How many there are.
    pub identifiers: u64,
    /// Of these, shared by several people.
    pub shared: u64,
    /// Of these, hubs.
    pub hubs: u64,
    /// Of these, blocked.
    pub blocked: u64,
    /// Of these, those that changed hands.
    pub recycled: u64,
    /// The most that one customer has.
    pub most_at_one_customer: u64,
}

/// Customers of about one size.
#[derive(Debug, Clone, Serialize)]
pub struct SizeClass {
    /// From so many identifiers.
    pub identifiers_min: u64,
    /// To so many; `None` is no bound.
    pub identifiers_max: Option<u64>,
    /// How many customers.
    pub customers: u64,
}

/// A customer with many identifiers.
#[derive(Debug, Clone, Serialize)]
pub struct LargestCustomer {
    /// Which.
    pub customer_id: CustomerId,
    /// How many.
    pub identifiers: u64,
}

/// A point of the guard's curve.
#[derive(Debug, Clone, Serialize)]
pub struct GuardLine {
    /// The most identifiers a component may have before the bar is raised in it.
    pub cap: u32,
    /// Customers there would be.
    pub customers: u64,
    /// Identifiers of the largest.
    pub largest: u64,
    /// Pieces of evidence that would be cut.
    pub edges_cut: u64,
}

impl Inquiry {
    /// Figures to judge identity by.
    ///
    /// # Errors
    /// [`IdentityError::Graph`].
    pub fn quality(&self) -> Result<Quality> {
        let mut types: BTreeMap<u8, TypeQuality> = BTreeMap::new();
        let mut of_customer: HashMap<CustomerId, (u64, HashMap<u8, u64>)> = HashMap::new();
        for (member, id) in self.known.assignment.members() {
            let rank = self.known.graph.rank(member.node).unwrap_or_else(|| self.known.tokens.rules().resting_rank());
            let counted = types.entry(rank).or_default();
            counted.identifiers += u64::from(member.life == 0);
            counted.recycled += u64::from(member.life == 1);
            match self.known.standing(member)? {
                Standing::Joins => {}
                Standing::Shared => counted.shared += 1,
                Standing::Hub => counted.hubs += 1,
                Standing::Blocked => counted.blocked += 1,
            }
            let (size, by_rank) = of_customer.entry(id).or_default();
            *size += 1;
            *by_rank.entry(rank).or_default() += 1;
        }
        for (rank, counted) in &mut types {
            counted.identifier_type = self.known.tokens.rules().type_of(*rank).to_owned();
            let most = of_customer.values().filter_map(|(_, by_rank)| by_rank.get(rank)).max();
            counted.most_at_one_customer = most.copied().unwrap_or(0);
        }
        let mut sizes: Vec<(u64, CustomerId)> = of_customer.iter().map(|(&id, (size, _))| (*size, id)).collect();
        sizes.sort_unstable_by(|one, two| two.0.cmp(&one.0).then(one.1.cmp(&two.1)));
        let class = |min: u64, max: Option<u64>| SizeClass {
            identifiers_min: min,
            identifiers_max: max,
            customers: sizes.iter().filter(|(size, _)| *size >= min && max.is_none_or(|max| *size <= max)).count()
                as u64,
        };
        let largest = sizes.iter().take(5);
        let curve = self.known.graph.guard_curve(&GUARD_CAPS, GUARD_STEP)?;
        Ok(Quality {
            customers: of_customer.len() as u64,
            retired: self.known.assignment.retired().count() as u64,
            types: types.into_values().collect(),
            sizes: vec![
                class(1, Some(1)),
                class(2, Some(5)),
                class(6, Some(10)),
                class(11, Some(20)),
                class(21, Some(50)),
                class(51, None),
            ],
            largest: largest.map(|&(identifiers, customer_id)| LargestCustomer { customer_id, identifiers }).collect(),
            decisions: in_force(&self.known.decisions).count() as u64,
            model: self.known.taken.model,
            alike: self.known.alike.values().filter(|alike| self.is_joining(alike)).count() as u64,
            to_review: self.to_review().len() as u64,
            guard_cap: self.known.graph.rules().guard().map(|guard| guard.cap),
            guard_curve: curve
                .into_iter()
                .map(|point| GuardLine {
                    cap: point.cap,
                    customers: point.clusters,
                    largest: point.largest,
                    edges_cut: point.edges_cut,
                })
                .collect(),
        })
    }
}
