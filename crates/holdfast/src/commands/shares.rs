//! How watching workers share what is to be done in a pipeline: each part is one worker's at a time.
//!
//! A part (a source, or what follows from all of them) is held by a lease in the lake. Beside it every worker holds one of its own, so that all know how many they
//! are and keep to a fair share. Nobody assigns anything: a worker gives back what is above its share, takes what is free below it, and takes
//! above it what stays free, such as the parts of a worker that died.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_lake::{Fence, Lake, LakeError, Lease};
use uuid::Uuid;

/// The parts of a pipeline that this worker may work at, and those it holds.
pub(crate) struct Shares {
    lake: Lake,
    pipeline: String,
    /// Who this is, for people.
    owner: String,
    /// Who this is, for the other workers.
    worker: Uuid,
    duration: Duration,
    parts: Vec<String>,
    presence: Option<Lease>,
    held: BTreeMap<String, Lease>,
    /// Since when a part has been seen without a holder.
    free_since: BTreeMap<String, DateTime<Utc>>,
    others: BTreeMap<String, String>,
    settled_at: Option<DateTime<Utc>>,
    told: Option<String>,
}

impl Shares {
    pub(crate) fn new(lake: &Lake, pipeline: &str, parts: Vec<String>, duration: Duration) -> Self {
        Self {
            lake: lake.clone(),
            pipeline: pipeline.to_owned(),
            owner: super::worker_name(),
            worker: Uuid::new_v4(),
            duration,
            parts,
            presence: None,
            held: BTreeMap::new(),
            free_since: BTreeMap::new(),
            others: BTreeMap::new(),
            settled_at: None,
            told: None,
        }
    }

    /// Holds on to what is held, and settles with the others who does what, once a third of a lease's duration. To be called between two pieces of work.
    pub(crate) async fn settle(&mut self) -> Result<(), LakeError> {
        let now = self.lake.clock().now();
        let third = TimeDelta::from_std(self.duration / 3).unwrap_or(TimeDelta::MAX);
        if self.settled_at.is_some_and(|settled| (TimeDelta::zero()..third).contains(&(now - settled))) {
            return Ok(());
        }
        self.appear().await?;
        let mut lost = Vec::new();
        for (part, lease) in &mut self.held {
            if !lease.renew().await? {
                lost.push(part.clone());
            }
        }
        for part in lost {
            self.held.remove(&part);
        }
        let share = self.parts.len().div_ceil(self.workers().await?.max(1));
        while self.held.len() > share
            && let Some((part, lease)) = self.held.pop_last()
        {
            lease.release().await?;
            self.free_since.insert(part, now);
        }
        let patience = third * 6;
        for part in self.parts.clone() {
            if self.held.contains_key(&part) {
                continue;
            }
            let has_waited = self.free_since.get(&part).is_some_and(|since| now - *since >= patience);
            if (self.held.len() < share || has_waited)
                && let Some(lease) = self.lake.lease(&self.lease_name(&part), &self.owner, self.duration).await?
            {
                self.free_since.remove(&part);
                self.others.remove(&part);
                self.held.insert(part, lease);
                continue;
            }
            match self.lake.lease_holder(&self.lease_name(&part)).await? {
                Some(holder) => {
                    self.free_since.remove(&part);
                    self.others.insert(part, holder.owner);
                }
                None => {
                    self.others.remove(&part);
                    self.free_since.entry(part).or_insert(now);
                }
            }
        }
        self.settled_at = Some(now);
        Ok(())
    }

    /// What commits of this part's work carry; `None` when it is not this worker's.
    pub(crate) fn fence(&self, part: &str) -> Option<Fence> {
        self.held.get(part).map(Lease::fence)
    }

    /// Works at a part while it is held. `None` when it was lost; the work is dropped then.
    pub(crate) async fn hold<T>(&mut self, part: &str, work: impl Future<Output = T>) -> Result<Option<T>, LakeError> {
        let Some(lease) = self.held.get_mut(part) else { return Ok(None) };
        let done = lease.hold(work).await?;
        if done.is_none() {
            self.lose(part);
        }
        Ok(done)
    }

    /// Somebody else has it by now.
    pub(crate) fn lose(&mut self, part: &str) {
        self.held.remove(part);
        // So that the next one to settle does look.
        self.settled_at = None;
    }

    /// Who holds what, if that is news.
    pub(crate) fn news(&mut self) -> Option<String> {
        let list = |parts: Vec<&str>| if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") };
        let mut text = format!("  Holding {}", list(self.held.keys().map(String::as_str).collect()));
        let mut owners: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (part, owner) in &self.others {
            owners.entry(owner).or_default().push(part);
        }
        for (owner, parts) in owners {
            text.push_str(&format!("; {owner} holds {}", list(parts)));
        }
        (self.told.as_ref() != Some(&text)).then(|| {
            self.told = Some(text.clone());
            text
        })
    }

    /// Lets others take everything at once. What the store refuses ends by itself.
    pub(crate) async fn give_back(&mut self) {
        let leases = std::mem::take(&mut self.held).into_values().chain(self.presence.take());
        let released = futures::future::join_all(leases.map(Lease::release)).await;
        for error in released.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "a lease was not given back: it ends by itself");
        }
    }

    /// Lets the others know that this worker lives.
    async fn appear(&mut self) -> Result<(), LakeError> {
        if let Some(lease) = &mut self.presence
            && lease.renew().await?
        {
            return Ok(());
        }
        let name = format!("{}/{}", self.workers_folder(), self.worker);
        self.presence = self.lake.lease(&name, &self.owner, self.duration).await?;
        Ok(())
    }

    async fn workers(&self) -> Result<usize, LakeError> {
        Ok(self.lake.leases_below(&self.workers_folder()).await?.len())
    }

    fn workers_folder(&self) -> String {
        format!("watch/{}/workers", self.pipeline)
    }

    fn lease_name(&self, part: &str) -> String {
        format!("watch/{}/parts/{}", self.pipeline, part.replace(' ', "_"))
    }
}
