//! The identity tables as they are, row by row: a resolution writes what differs from them.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use holdfast_engine::TableRows;
use holdfast_graph::{Member, Standing, Touched, UNDATED};
use holdfast_lake::RowChanges;

use crate::Result;
use crate::customer::CustomerId;
use crate::known::Known;
use crate::tables::{self, batch, moments};

/// Rows are written in batches of this many.
const ROWS_PER_BATCH: usize = 64 * 1024;

/// A row of `identity.identifiers`; its key is a life of an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdentifierRow {
    pub(crate) customer: CustomerId,
    pub(crate) first_seen: Option<i64>,
    pub(crate) standing: Standing,
    /// From when, and until when.
    pub(crate) period: (Option<i64>, Option<i64>),
}

/// A row of `identity.customers`; its key is the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CustomerRow {
    /// The founding identifier.
    pub(crate) founder: Member,
    pub(crate) first_seen: Option<i64>,
    pub(crate) resolves_to: Option<CustomerId>,
    pub(crate) retired_at: Option<i64>,
}

/// What the tables hold.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) identifiers: HashMap<Member, IdentifierRow>,
    pub(crate) customers: HashMap<CustomerId, CustomerRow>,
    /// How many of the identifiers join nobody.
    pub(crate) shared: u64,
    /// Whether a table was made by a version that wrote other columns, and is to be written as a whole.
    pub(crate) is_outdated: bool,
}

/// Of which rows it is not certain that they are as the tables have them.
#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    all: bool,
    nodes: HashSet<u32>,
    customers: HashSet<CustomerId>,
}

/// Rows that go and rows that come, each with its key. One that changes does both.
#[derive(Debug)]
struct Differing<Key, Row> {
    removed: Vec<(Key, Row)>,
    added: Vec<(Key, Row)>,
}

impl Written {
    /// A row of `identity.identifiers` as it was read.
    pub(crate) fn note_identifier(&mut self, member: Member, row: IdentifierRow) {
        self.shared += shared(&[(member, row)]);
        self.identifiers.insert(member, row);
    }

    /// Which life of an identifier an id was founded by: the customer's own that was there at the moment, or else any of its own, or of somebody else then.
    pub(crate) fn founding_life(&self, node: u32, id: CustomerId, first_seen: Option<i64>) -> Member {
        let member = |life| Member { node, life };
        let lives = (0..=u16::MAX).map_while(|life| Some((life, self.identifiers.get(&member(life))?)));
        let rank = |row: &IdentifierRow| {
            let is_then = first_seen
                .is_some_and(|at| row.period.0.is_none_or(|from| from <= at) && row.period.1.is_none_or(|to| at < to));
            (row.customer == id, is_then)
        };
        // The first of the best.
        let best = lives.max_by_key(|&(life, row)| (rank(row), std::cmp::Reverse(life)));
        member(best.map_or(0, |(life, _)| life))
    }
}

fn shared(rows: &[(Member, IdentifierRow)]) -> u64 {
    rows.iter().filter(|(_, row)| row.standing != Standing::Joins).count() as u64
}

impl Unwritten {
    /// All of them: after identity was loaded, perhaps under other rules.
    pub(crate) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// This identifier.
    pub(crate) fn node(&mut self, node: u32) {
        self.nodes.insert(node);
    }
}

impl<Key: Copy + Eq + Hash, Row: Copy + PartialEq> Differing<Key, Row> {
    /// What makes the rows of `keys` those that `now` gives, and makes them so.
    fn taken(
        rows: &mut HashMap<Key, Row>,
        keys: impl IntoIterator<Item = Key>,
        mut now: impl FnMut(Key) -> Result<Option<Row>>,
    ) -> Result<Self> {
        let mut differing = Self { removed: Vec::new(), added: Vec::new() };
        for key in keys {
            let is = now(key)?;
            let was = match is {
                Some(row) => rows.insert(key, row),
                None => rows.remove(&key),
            };
            if was != is {
                differing.removed.extend(was.map(|row| (key, row)));
                differing.added.extend(is.map(|row| (key, row)));
            }
        }
        Ok(differing)
    }

    /// Whether so many rows go that it is cheaper to write all of them, `rows` in number.
    fn is_most_of(&self, rows: usize) -> bool {
        self.removed.len() > rows / 2
    }

    /// Whether nothing differs.
    fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }
}

impl Known {
    /// Notes what a change of the graph concerns: its identifiers, their customers, and the ids that answer to those. Called before and after customers are assigned, because both who an
    /// identifier belonged to and who it belongs to have other rows.
    pub(crate) fn note_unwritten(&mut self, touched: &Touched) {
        let nodes = touched.standings.iter().map(|change| change.node).chain(touched.lives.iter().copied());
        self.unwritten.nodes.extend(nodes);
        for &node in &touched.lives {
            let lives: Vec<Member> = self.lives_of(node).into_iter().flatten().collect();
            lives.into_iter().for_each(|member| self.note_unwritten_customer_of(member));
        }
        for group in &touched.groups {
            let after = group.after.iter().flat_map(|cluster| &cluster.members).map(|member| member.member);
            for member in group.before.iter().flatten().copied().chain(after) {
                self.unwritten.nodes.insert(member.node);
                self.note_unwritten_customer_of(member);
            }
        }
    }

    /// Notes the customer of an identifier and the ids that answer to it.
    pub(crate) fn note_unwritten_customer_of(&mut self, member: Member) {
        let Some(id) = self.customer_of(member) else { return };
        self.unwritten.customers.insert(id);
        self.unwritten.customers.extend(self.assignment.absorbed(id));
    }

    /// What makes `identity.customers` as it should be, which counts as written from here on; `None` when it is.
    pub(crate) fn customers_to_write(&mut self) -> Result<Option<TableRows>> {
        let differing = self.differing_customers()?;
        if self.written.is_outdated || differing.is_most_of(self.written.customers.len()) {
            let all = self.written.customers.iter().map(|(&id, &row)| (id, row));
            return Ok(Some(TableRows::All(self.customer_batches(all)?)));
        }
        if differing.is_empty() {
            return Ok(None);
        }
        let removed = self.customer_batches(differing.removed)?;
        let added = self.customer_batches(differing.added)?;
        Ok(Some(TableRows::Changed(RowChanges { removed, added })))
    }

    /// As [`Known::customers_to_write`], of `identity.identifiers`: no rows when it is as it should be, because it is committed to all the same.
    pub(crate) fn identifiers_to_write(&mut self) -> Result<TableRows> {
        let differing = self.differing_identifiers()?;
        if self.written.is_outdated || differing.is_most_of(self.written.identifiers.len()) {
            let all = self.written.identifiers.iter().map(|(&member, &row)| (member, row));
            return Ok(TableRows::All(self.identifier_batches(all)?));
        }
        let removed = self.identifier_batches(differing.removed)?;
        let added = self.identifier_batches(differing.added)?;
        Ok(TableRows::Changed(RowChanges { removed, added }))
    }

    fn differing_identifiers(&mut self) -> Result<Differing<Member, IdentifierRow>> {
        let nodes = std::mem::take(&mut self.unwritten.nodes);
        let mut written = std::mem::take(&mut self.written.identifiers);
        let mut members: HashSet<Member> = HashSet::new();
        if self.unwritten.all {
            members.extend(written.keys());
            members.extend(self.assignment.members().map(|(member, _)| member));
        }
        for node in nodes {
            members.extend(self.lives_of(node)?);
            // Lives that it has no more.
            let were = (0..=u16::MAX).map(|life| Member { node, life });
            members.extend(were.take_while(|member| written.contains_key(member)));
        }
        let differing = Differing::taken(&mut written, members, |member| self.identifier_row(member));
        self.written.identifiers = written;
        let differing = differing?;
        self.written.shared -= shared(&differing.removed);
        self.written.shared += shared(&differing.added);
        Ok(differing)
    }

    fn differing_customers(&mut self) -> Result<Differing<CustomerId, CustomerRow>> {
        let mut ids = std::mem::take(&mut self.unwritten.customers);
        if self.unwritten.all {
            ids.extend(self.written.customers.keys());
            ids.extend(self.assignment.customers().map(|(id, _)| id));
            ids.extend(self.assignment.retired().map(|(id, _)| id));
        }
        let mut written = std::mem::take(&mut self.written.customers);
        let differing = Differing::taken(&mut written, ids, |id| self.customer_row(id));
        self.written.customers = written;
        differing
    }

    /// All is written.
    pub(crate) fn is_written(&mut self) {
        self.unwritten = Unwritten::default();
        self.written.is_outdated = false;
    }

    fn identifier_row(&self, member: Member) -> Result<Option<IdentifierRow>> {
        let Some(customer) = self.customer_of(member) else { return Ok(None) };
        let standing = self.standing(member)?;
        let (first_seen, _, _) = self.seen(member)?;
        Ok(Some(IdentifierRow { customer, first_seen, standing, period: self.graph.period(member)? }))
    }

    /// Whether an identifier joins others in one of its lives.
    pub(crate) fn standing(&self, member: Member) -> Result<Standing> {
        let is_shared = self.graph.lives(member.node)?.get(usize::from(member.life)).is_some_and(|life| life.is_shared);
        if is_shared { Ok(Standing::Shared) } else { Ok(self.graph.standing(member.node)?) }
    }

    fn customer_row(&mut self, id: CustomerId) -> Result<Option<CustomerRow>> {
        if let Some(founder) = self.assignment.founder(id) {
            let first_seen = (founder.first_seen != UNDATED.0).then_some(founder.first_seen);
            let founder = founder.member;
            return Ok(Some(CustomerRow { founder, first_seen, resolves_to: Some(id), retired_at: None }));
        }
        let Some(retired) = self.assignment.retired_id(id) else { return Ok(None) };
        let founder = retired.founder;
        let (first_seen, _, _) = self.seen(founder)?;
        let resolves_to = self.assignment.resolve(id);
        let retired_at = self.retired_at.get(&id).copied();
        Ok(Some(CustomerRow { founder, first_seen, resolves_to, retired_at }))
    }

    /// These rows for `identity.identifiers`, in the order of its files.
    fn identifier_batches(&self, rows: impl IntoIterator<Item = (Member, IdentifierRow)>) -> Result<Vec<RecordBatch>> {
        let mut rows: Vec<(Member, IdentifierRow)> = rows.into_iter().collect();
        rows.sort_unstable_by_key(|&(member, row)| (row.customer, self.graph.token(member.node), member));
        let spec = tables::identifiers()?;
        let batches = rows.chunks(ROWS_PER_BATCH).map(|rows| {
            let identifiers: Vec<_> = rows.iter().map(|(member, _)| self.identifier(member.node)).collect();
            let is_shared = rows.iter().map(|(_, row)| Some(row.standing != Standing::Joins));
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(identifiers.iter().map(|i| &i.identifier_type))),
                Arc::new(StringArray::from_iter_values(identifiers.iter().map(|i| &i.token))),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, row)| row.customer.to_string()))),
                Arc::new(is_shared.collect::<BooleanArray>()),
                moments(rows.iter().map(|(_, row)| row.first_seen)),
                Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, row)| standing_text(row.standing)))),
                moments(rows.iter().map(|(_, row)| row.period.0)),
                moments(rows.iter().map(|(_, row)| row.period.1)),
            ];
            batch(&spec, columns)
        });
        batches.collect()
    }

    /// These rows for `identity.customers`, in the order of its files.
    fn customer_batches(&self, rows: impl IntoIterator<Item = (CustomerId, CustomerRow)>) -> Result<Vec<RecordBatch>> {
        let mut rows: Vec<(CustomerId, CustomerRow)> = rows.into_iter().collect();
        rows.sort_unstable_by_key(|&(id, _)| id);
        let spec = tables::customers()?;
        let batches = rows.chunks(ROWS_PER_BATCH).map(|rows| {
            let founders: Vec<_> = rows.iter().map(|(_, row)| self.identifier(row.founder.node)).collect();
            let living = |row: &CustomerRow| row.resolves_to.map(|id| id.to_string());
            let merged_into =
                |(id, row): &(CustomerId, CustomerRow)| living(row).filter(|_| row.resolves_to != Some(*id));
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(rows.iter().map(|(id, _)| id.to_string()))),
                Arc::new(StringArray::from_iter_values(founders.iter().map(|founder| &founder.identifier_type))),
                Arc::new(StringArray::from_iter_values(founders.iter().map(|founder| &founder.token))),
                moments(rows.iter().map(|(_, row)| row.first_seen)),
                Arc::new(rows.iter().map(merged_into).collect::<StringArray>()),
                Arc::new(rows.iter().map(|(_, row)| living(row)).collect::<StringArray>()),
                moments(rows.iter().map(|(_, row)| row.retired_at)),
            ];
            batch(&spec, columns)
        });
        batches.collect()
    }
}

/// As it is stored.
pub(crate) const fn standing_text(standing: Standing) -> &'static str {
    match standing {
        Standing::Joins => "joins",
        Standing::Blocked => "blocked",
        Standing::Hub => "hub",
        Standing::Shared => "shared",
    }
}

/// As it was stored.
pub(crate) fn standing_of(text: &str) -> Option<Standing> {
    [Standing::Joins, Standing::Blocked, Standing::Hub, Standing::Shared]
        .into_iter()
        .find(|&standing| standing_text(standing) == text)
}
