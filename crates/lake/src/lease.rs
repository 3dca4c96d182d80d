use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Result;
use crate::error::LakeError;
use crate::lake::{Lake, SYSTEM_FOLDER};

/// A lease that is over stays respected for this part of its duration: the clock that wrote it may be that much ahead.
const SKEW_PART: i32 = 10;

/// How often generations are listed again when one of them is deleted while it is looked at.
const LOOKS_MAX: u32 = 10;

/// How long what is left of a lease that nobody takes again stays.
const LEFT_BEHIND_MAX: TimeDelta = TimeDelta::hours(1);

/// What a commit says about the lease it is made under: see [`crate::Change::fence`].
#[derive(Debug, Clone)]
pub struct Fence {
    /// The lease's name.
    pub lease: String,
    /// The generation in which its holder took it: higher with every holder, the same for all renewals of one.
    pub generation: u64,
    /// When the lease ends as far as its holder knows, in UTC microseconds; moves with every renewal.
    until: Arc<AtomicI64>,
}

impl PartialEq for Fence {
    fn eq(&self, other: &Self) -> bool {
        (&self.lease, self.generation) == (&other.lease, other.generation)
    }
}

impl Eq for Fence {}

impl Fence {
    /// Under which name tables keep the highest generation that committed.
    pub(crate) fn app_id(&self) -> String {
        format!("lease/{}", self.lease)
    }

    pub(crate) fn version(&self) -> i64 {
        i64::try_from(self.generation).unwrap_or(i64::MAX)
    }

    /// Whether its lease is over for all that its holder knows: it stalled, or could not renew it.
    pub(crate) fn is_over(&self, now: DateTime<Utc>) -> bool {
        now.timestamp_micros() >= self.until.load(Ordering::Acquire)
    }
}

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseHolder {
    /// As it named itself.
    pub owner: String,
    /// When the lease ends, unless it is renewed before.
    pub expires_at: DateTime<Utc>,
}

/// The right to do some work alone, for a while.
///
/// It is a chain of small objects, `_holdfast/leases/<name>/<generation>.json`, each created on the condition that it is not there: the one
/// kind of write that is atomic on every store, the local disk included. The next generation may be created by the holder, to renew or to
/// release, and by anybody once the newest is over.
///
/// Whether it is over is judged by the taker's clock, a tenth of the duration late. Where clocks differ by more, or where a holder stalls past the end of
/// its lease, two workers may both believe that they hold it. So a lease saves work; what keeps tables right is its [`Fence`] in the commits: with it a commit is refused
/// once the lease is over by the holder's clock, and whatever that says once a successor has committed.
///
/// Dropping it does nothing: it ends by itself, or by [`Lease::release`].
#[derive(Debug)]
pub struct Lease {
    lake: Lake,
    name: String,
    claim: Claim,
    generation: u64,
    duration: Duration,
    until: Arc<AtomicI64>,
}

/// One generation, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    /// Who holds it, for people.
    owner: String,
    /// Who holds it, for certain: drawn when it was taken.
    holder: Uuid,
    /// The generation in which the holder took it.
    held_since: u64,
    claimed_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    /// The holder gave it back.
    released: bool,
}

impl Claim {
    fn is_over(&self, now: DateTime<Utc>) -> bool {
        let margin = (self.expires_at - self.claimed_at) / SKEW_PART;
        self.released || now >= self.expires_at + margin
    }
}

impl Lake {
    /// Takes the lease `name` for `duration`, or answers `None` while somebody else holds it. `owner` is for those who wonder who does: a host and a
    /// process, no person.
    ///
    /// The name is a path of words (`maintain/raw.orders`). May be repeated; a lease that was taken by a call whose answer was lost ends by itself.
    ///
    /// # Errors
    /// What the store answers; [`LakeError::Damaged`] when a generation cannot be read.
    pub async fn lease(&self, name: &str, owner: &str, duration: Duration) -> Result<Option<Lease>> {
        let newest = newest(self, name).await?;
        if newest.as_ref().is_some_and(|(_, claim)| !claim.is_over(self.clock().now())) {
            return Ok(None);
        }
        let generation = newest.map_or(0, |(generation, _)| generation) + 1;
        let mut lease = Lease {
            lake: self.clone(),
            name: name.to_owned(),
            claim: Claim {
                owner: owner.to_owned(),
                holder: Uuid::new_v4(),
                held_since: generation,
                claimed_at: DateTime::UNIX_EPOCH,
                expires_at: DateTime::UNIX_EPOCH,
                released: false,
            },
            generation: 0,
            duration,
            until: Arc::new(AtomicI64::new(i64::MIN)),
        };
        Ok(lease.claim(generation, false).await?.then_some(lease))
    }

    /// Who holds the lease `name`, as far as this clock can tell; `None` when it could be taken.
    ///
    /// # Errors
    /// What the store answers; [`LakeError::Damaged`] when a generation cannot be read.
    pub async fn lease_holder(&self, name: &str) -> Result<Option<LeaseHolder>> {
        let held = newest(self, name).await?.filter(|(_, claim)| !claim.is_over(self.clock().now()));
        Ok(held.map(|(_, claim)| LeaseHolder { owner: claim.owner, expires_at: claim.expires_at }))
    }

    /// The names of the leases right below `name` that somebody holds, in their order. What is left of others there is deleted once it is long over: to be used where
    /// every holder has a name of its own that nobody takes again.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn leases_below(&self, name: &str) -> Result<Vec<String>> {
        let folder = folder(self, name);
        let listed = match self.store().list_with_delimiter(Some(&folder)).await {
            Ok(listed) => listed.common_prefixes,
            Err(object_store::Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(LakeError::store(format!("cannot list {folder}"))(error)),
        };
        let now = self.clock().now();
        let mut held = Vec::new();
        for below in listed.iter().filter_map(Path::filename) {
            let lease = format!("{name}/{below}");
            match newest(self, &lease).await? {
                Some((_, claim)) if !claim.is_over(now) => held.push(lease),
                Some((generation, claim)) if now >= claim.expires_at + LEFT_BEHIND_MAX => {
                    for generation in generations(self, &lease).await?.into_iter().filter(|old| *old <= generation) {
                        delete(self, &lease, generation).await;
                    }
                }
                _ => {}
            }
        }
        held.sort();
        Ok(held)
    }
}

impl Lease {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What commits made under it carry, so that they are refused once a successor has committed.
    pub fn fence(&self) -> Fence {
        Fence { lease: self.name.clone(), generation: self.claim.held_since, until: Arc::clone(&self.until) }
    }

    /// When it ends, unless it is renewed before.
    pub fn expires_at(&self) -> DateTime<Utc> {
        self.claim.expires_at
    }

    /// Whether it is still running, by the lake's clock.
    pub fn is_running(&self) -> bool {
        !self.claim.released && self.lake.clock().now() < self.claim.expires_at
    }

    /// Holds it for its duration from now on. `false`: somebody else has it, stop working. Once a third of the duration is a good time; late is
    /// fine as long as nobody took it.
    ///
    /// # Errors
    /// What the store answers. The lease goes on as it was; try again while it is running.
    #[must_use = "a lease that was lost must not be worked under"]
    pub async fn renew(&mut self) -> Result<bool> {
        self.claim(self.generation + 1, false).await
    }

    /// Works while the lease is held: renews it every third of its duration until `work` is done. `None` when it was lost; the work is dropped then,
    /// where it last waited.
    ///
    /// # Errors
    /// What the store answers when the lease could not be renewed before its end.
    pub async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return Ok(Some(result)),
                () = tokio::time::sleep(self.duration / 3) => {}
            }
            match self.renew().await {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) if self.is_running() => {
                    tracing::debug!(lease = self.name, %error, "a lease could not be renewed, trying again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets others take it at once. Does nothing when somebody else has it.
    ///
    /// # Errors
    /// What the store answers: then it ends by itself.
    pub async fn release(mut self) -> Result<()> {
        self.claim(self.generation + 1, true).await.map(|_| ())
    }

    /// Creates `generation`. `false` when somebody else did, or is past it already.
    async fn claim(&mut self, generation: u64, released: bool) -> Result<bool> {
        let now = self.lake.clock().now();
        let claim = Claim {
            claimed_at: now,
            expires_at: now + TimeDelta::from_std(self.duration).unwrap_or(TimeDelta::MAX),
            released,
            ..self.claim.clone()
        };
        let path = object(&self.lake, &self.name, generation);
        let damaged =
            |error: serde_json::Error| LakeError::Damaged { path: path.to_string(), reason: error.to_string() };
        let body = serde_json::to_vec_pretty(&claim).map_err(damaged)?;
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let created = self.lake.store().put_opts(&path, body.into(), create).await;

        // Whatever the answer was: the newest generation decides. Old ones are deleted, so one that could be created
        // may have been passed long ago; and one that is said to exist may be ours, its answer lost on the way.
        if let Some((newest, found)) = newest(&self.lake, &self.name).await?
            && newest == generation
            && found.holder == claim.holder
        {
            // As it is stored, which is what others go by: an earlier try may have left it.
            let until = if found.released { i64::MIN } else { found.expires_at.timestamp_micros() };
            self.until.store(until, Ordering::Release);
            self.claim = found;
            self.generation = generation;
            self.delete_passed().await;
            return Ok(true);
        }
        match created {
            Ok(_) => {
                delete(&self.lake, &self.name, generation).await;
                Ok(false)
            }
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(LakeError::store(format!("cannot take the lease {path}"))(error)),
        }
    }

    /// Deletes all generations but the newest two. What stays behind is deleted by the next holder.
    async fn delete_passed(&self) {
        match generations(&self.lake, &self.name).await {
            Ok(all) => {
                for generation in all.into_iter().filter(|generation| generation + 1 < self.generation) {
                    delete(&self.lake, &self.name, generation).await;
                }
            }
            Err(error) => tracing::debug!(lease = self.name, %error, "old generations stay behind"),
        }
    }
}

async fn delete(lake: &Lake, name: &str, generation: u64) {
    let path = object(lake, name, generation);
    if let Err(error) = lake.store().delete(&path).await {
        tracing::debug!(%path, %error, "an old generation stays behind");
    }
}

fn folder(lake: &Lake, name: &str) -> Path {
    name.split('/').fold(lake.root().clone().join(SYSTEM_FOLDER).join("leases"), |path, part| path.join(part))
}

fn object(lake: &Lake, name: &str, generation: u64) -> Path {
    folder(lake, name).join(format!("{generation:020}.json"))
}

/// The generations that are there, the oldest first. Leases whose names go on below this one's are others.
async fn generations(lake: &Lake, name: &str) -> Result<Vec<u64>> {
    let folder = folder(lake, name);
    let listed = match lake.store().list_with_delimiter(Some(&folder)).await {
        Ok(listed) => listed.objects,
        Err(object_store::Error::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(LakeError::store(format!("cannot list {folder}"))(error)),
    };
    let mut generations: Vec<u64> =
        listed.iter().filter_map(|found| found.location.filename()?.strip_suffix(".json")?.parse().ok()).collect();
    generations.sort_unstable();
    Ok(generations)
}

async fn newest(lake: &Lake, name: &str) -> Result<Option<(u64, Claim)>> {
    let mut looks = 1;
    loop {
        let Some(generation) = generations(lake, name).await?.pop() else { return Ok(None) };
        let path = object(lake, name, generation);
        let found = async { lake.store().get(&path).await?.bytes().await }.await;
        match found {
            Ok(body) => {
                let claim = serde_json::from_slice(&body)
                    .map_err(|error| LakeError::Damaged { path: path.to_string(), reason: error.to_string() })?;
                return Ok(Some((generation, claim)));
            }
            // Its holder went on two generations meanwhile and deleted it.
            Err(object_store::Error::NotFound { .. }) if looks < LOOKS_MAX => looks += 1,
            Err(error) => return Err(LakeError::store(format!("cannot read {path}"))(error)),
        }
    }
}
