use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::watch;

use crate::random::Random;
use crate::rule::{Operation, Rule};

/// When a faulty call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Before anything happened.
    Refused,
    /// After it was done: the answer is lost on the way.
    AnswerLost,
    /// In the middle of an object's bytes. Calls that bring none are refused.
    Truncated,
    /// Not at all; it only takes as long as [`Rule::delayed`] says.
    None,
}

/// What a faulty call is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// That the connection broke, or the store is too busy: it may help to come back.
    Broken,
    /// That the object is there.
    AlreadyExists,
    /// That the object is another one.
    Precondition,
    /// That the object is not there.
    NotFound,
    /// That this is not for us.
    PermissionDenied,
}

impl Failure {
    fn error(self, location: &str) -> Error {
        let (path, source) = (location.to_owned(), "on purpose".into());
        match self {
            Self::Broken => Error::Generic { store: "fault", source: "the connection broke on purpose".into() },
            Self::AlreadyExists => Error::AlreadyExists { path, source },
            Self::Precondition => Error::Precondition { path, source },
            Self::NotFound => Error::NotFound { path, source },
            Self::PermissionDenied => Error::PermissionDenied { path, source },
        }
    }
}

/// A fault, and what its victim is told.
#[derive(Debug, Clone, Copy)]
pub struct StoreFault {
    fault: Fault,
    failure: Failure,
}

impl From<Fault> for StoreFault {
    fn from(fault: Fault) -> Self {
        Self { fault, failure: Failure::Broken }
    }
}

impl Rule<StoreFault> {
    /// What the calls are told, instead of [`Failure::Broken`].
    #[must_use]
    pub const fn told(mut self, failure: Failure) -> Self {
        self.fault.failure = failure;
        self
    }
}

/// On which side of a call somebody dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It does not happen any more.
    Before,
    /// It happens, and nobody hears of it.
    After,
}

/// A call as it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was asked.
    pub operation: Operation,
    /// Of which object or prefix.
    pub path: String,
    /// How it was made to fail, if it was.
    pub fault: Option<Fault>,
}

/// A store over another one that fails as its rules say, and dies when it is told to.
///
/// What it dies for is a process that is killed: from that moment on no call does anything, so that nothing of what the code above still tries, no
/// retry and no cleaning up, has an effect. Whoever holds that code waits for [`FaultStore::died`] and drops it.
#[derive(Debug, Clone)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    dead: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    rules: Vec<Rule<StoreFault>>,
    random: Random,
    death: Option<(u64, Moment)>,
    calls: Vec<Call>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy)]
struct Fate {
    delay: Duration,
    fault: Option<(Fault, Failure)>,
    dies: Option<Moment>,
}

impl FaultStore {
    /// Fails the next `times` PUTs to paths that contain `path_contains`.
    pub fn new(inner: Arc<dyn ObjectStore>, path_contains: &str, fault: Fault, times: u32) -> Self {
        Self::over(inner).with(Rule::on(&Operation::PUTS, fault).path(path_contains).times(times))
    }

    /// Without a rule: it passes everything on, and keeps what was asked.
    pub fn over(inner: Arc<dyn ObjectStore>) -> Self {
        let state = State { rules: Vec::new(), random: Random::new(0), death: None, calls: Vec::new() };
        Self { inner, shared: Arc::new(Shared { state: Mutex::new(state), dead: watch::Sender::new(false) }) }
    }

    /// With one more rule. The first that strikes decides.
    #[must_use]
    pub fn with(self, rule: Rule<StoreFault>) -> Self {
        self.shared.lock().rules.push(rule);
        self
    }

    /// With another seed for rules that strike by chance.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        self.shared.lock().random = Random::new(seed);
        self
    }

    /// With its death at a call, counted from 1.
    #[must_use]
    pub fn dying_at(self, call: u64, moment: Moment) -> Self {
        self.shared.lock().death = Some((call, moment));
        self
    }

    /// Dies now.
    pub fn kill(&self) {
        self.shared.dead.send_replace(true);
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.shared.is_dead()
    }

    /// Waits until it has died.
    pub async fn died(&self) {
        // It cannot be closed: we have the sender.
        let _ = self.shared.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// How many faults are still to come, of rules with a number of them.
    pub fn left(&self) -> u32 {
        self.shared.lock().rules.iter().filter_map(Rule::left).sum()
    }

    /// What was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().calls.clone()
    }

    /// How much was asked so far.
    pub fn call_count(&self) -> u64 {
        u64::try_from(self.shared.lock().calls.len()).unwrap_or(u64::MAX)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, operation: Operation, location: &str) -> Fate {
        let mut state = self.lock();
        let State { rules, random, death, calls } = &mut *state;
        let rule = rules.iter_mut().find_map(|rule| rule.strikes(operation, location, random).then_some(&*rule));
        let fault = rule.map(|rule| (rule.fault.fault, rule.fault.failure)).filter(|(fault, _)| *fault != Fault::None);
        let delay = rule.map_or(Duration::ZERO, |rule| rule.delay);
        calls.push(Call { operation, path: location.to_owned(), fault: fault.map(|(fault, _)| fault) });
        let number = u64::try_from(calls.len()).unwrap_or(u64::MAX);
        let dies = death.and_then(|(call, moment)| (call == number).then_some(moment));
        Fate { delay, fault, dies }
    }

    fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// Does what is asked, or not, as the rules say. Also answers whether the bytes it brings are to break off.
    async fn call<T>(
        &self,
        operation: Operation,
        location: &str,
        act: impl Future<Output = Result<T>>,
    ) -> Result<(T, bool)> {
        // An error, not silence: some of the libraries above wait for a store with a thread of ours.
        let dead = || Error::Generic { store: "fault", source: "whoever asks is dead".into() };
        if self.is_dead() {
            return Err(dead());
        }
        let Fate { delay, fault, dies } = self.fate(operation, location);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if let Some(moment) = dies {
            if moment == Moment::After {
                let _ = act.await;
            }
            self.dead.send_replace(true);
            return Err(dead());
        }
        let done = match fault {
            None | Some((Fault::None, _)) => act.await.map(|done| (done, false)),
            Some((Fault::Truncated, _)) if operation == Operation::Get => act.await.map(|done| (done, true)),
            Some((Fault::Refused | Fault::Truncated, failure)) => Err(failure.error(location)),
            Some((Fault::AnswerLost, failure)) => act.await.and_then(|_| Err(failure.error(location))),
        };
        // Somebody else of the same process may have met its end meanwhile: then nobody is there to hear this.
        if self.is_dead() { Err(dead()) } else { done }
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

const fn put_operation(mode: &PutMode) -> Operation {
    match mode {
        PutMode::Overwrite => Operation::Put,
        PutMode::Create => Operation::PutCreate,
        PutMode::Update(_) => Operation::PutUpdate,
    }
}

/// The first half of the bytes, and then an error.
async fn cut_off(got: GetResult) -> Result<GetResult> {
    let (meta, range, attributes) = (got.meta.clone(), got.range.clone(), got.attributes.clone());
    let bytes = got.bytes().await?;
    let broken = Failure::Broken.error(meta.location.as_ref());
    let parts = vec![Ok(bytes.slice(..bytes.len() / 2)), Err(broken)];
    let payload = GetResultPayload::Stream(futures::stream::iter(parts).boxed());
    Ok(GetResult { payload, meta, range, attributes })
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let operation = put_operation(&options.mode);
        let act = self.inner.put_opts(location, payload, options);
        self.shared.call(operation, location.as_ref(), act).await.map(|(put, _)| put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let act = self.inner.put_multipart_opts(location, options);
        let (inner, _) = self.shared.call(Operation::UploadStart, location.as_ref(), act).await?;
        Ok(Box::new(FaultUpload { inner, shared: Arc::clone(&self.shared), location: location.to_string() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = if options.head { Operation::Head } else { Operation::Get };
        let act = self.inner.get_opts(location, options);
        let (got, breaks_off) = self.shared.call(operation, location.as_ref(), act).await?;
        if breaks_off { cut_off(got).await } else { Ok(got) }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let act = self.inner.get_ranges(location, ranges);
        let (got, breaks_off) = self.shared.call(Operation::Get, location.as_ref(), act).await?;
        if breaks_off { Err(Failure::Broken.error(location.as_ref())) } else { Ok(got) }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        locations
            .and_then(move |location| {
                let store = store.clone();
                async move {
                    let act = store.inner.delete(&location);
                    store.shared.call(Operation::Delete, location.as_ref(), act).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let act = self.inner.list_with_delimiter(prefix);
        let location = prefix.map_or("", Path::as_ref);
        self.shared.call(Operation::List, location, act).await.map(|(listed, _)| listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let act = self.inner.copy_opts(from, to, options);
        self.shared.call(Operation::Copy, to.as_ref(), act).await.map(|((), _)| ())
    }
}

impl FaultStore {
    /// The list, if it is answered. What it says is how things are when it begins.
    fn listed(
        &self,
        prefix: Option<&Path>,
        inner: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (shared, location) = (Arc::clone(&self.shared), prefix.map_or_else(String::new, Path::to_string));
        let list = async move {
            let act = inner.try_collect::<Vec<_>>();
            let (found, _) = shared.call(Operation::List, &location, act).await?;
            Ok::<_, Error>(futures::stream::iter(found.into_iter().map(Ok)))
        };
        list.into_stream().try_flatten().boxed()
    }
}

#[derive(Debug)]
struct FaultUpload {
    inner: Box<dyn MultipartUpload>,
    shared: Arc<Shared>,
    location: String,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let act = self.inner.put_part(data);
        let (shared, location) = (Arc::clone(&self.shared), self.location.clone());
        async move { shared.call(Operation::UploadPart, &location, act).await.map(|((), _)| ()) }.boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let act = self.inner.complete();
        self.shared.call(Operation::UploadComplete, &self.location, act).await.map(|(put, _)| put)
    }

    async fn abort(&mut self) -> Result<()> {
        let act = self.inner.abort();
        self.shared.call(Operation::UploadAbort, &self.location, act).await.map(|((), _)| ())
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn path(name: &str) -> Path {
        Path::from(name)
    }

    #[tokio::test]
    async fn a_lost_answer_is_of_something_that_happened_and_a_refusal_is_not() {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = FaultStore::new(Arc::clone(&inner), "lost", Fault::AnswerLost, 1)
            .with(Rule::on(&[Operation::Put], Fault::Refused).path("refused").times(1))
            .with(Rule::on(&[Operation::PutCreate], Fault::Refused).path("there").told(Failure::AlreadyExists));
        for name in ["lost", "refused"] {
            assert!(store.put(&path(name), "x".into()).await.is_err());
        }
        assert!(inner.get(&path("lost")).await.is_ok() && inner.get(&path("refused")).await.is_err());
        assert_eq!(store.left(), 0);
        assert!(store.put(&path("refused"), "x".into()).await.is_ok(), "once was enough");
        let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let told = store.put_opts(&path("there"), "x".into(), create).await.unwrap_err();
        assert!(matches!(told, Error::AlreadyExists { .. }), "{told}");
        assert!(inner.get(&path("there")).await.is_err());
    }

    #[tokio::test]
    async fn bytes_break_off_in_their_middle() {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        inner.put(&path("a"), "12345678".into()).await.unwrap();
        let store = FaultStore::over(inner).with(Rule::on(&[Operation::Get], Fault::Truncated).times(1));
        let got: Vec<Result<Bytes>> = store.get(&path("a")).await.unwrap().into_stream().collect().await;
        assert_eq!(got[0].as_ref().unwrap(), "1234");
        assert!(got.last().unwrap().is_err());
        assert_eq!(store.get(&path("a")).await.unwrap().bytes().await.unwrap(), "12345678");
    }

    #[tokio::test]
    async fn a_seed_strikes_the_same_calls_again() {
        let struck = async |seed: u64| {
            let store = FaultStore::over(Arc::new(InMemory::new()))
                .with_seed(seed)
                .with(Rule::on(&[], Fault::Refused).percent(10));
            for number in 0..1_000 {
                let _ = store.put(&path(&number.to_string()), "x".into()).await;
            }
            let calls = store.calls();
            calls.iter().enumerate().filter(|(_, call)| call.fault.is_some()).map(|(at, _)| at).collect::<Vec<_>>()
        };
        let first = struck(7).await;
        assert!((50..150).contains(&first.len()), "{}", first.len());
        assert_eq!(struck(7).await, first);
        assert_ne!(struck(8).await, first);
    }

    #[tokio::test]
    async fn the_dead_do_nothing_any_more() {
        for (moment, expected) in [(Moment::Before, 1), (Moment::After, 2)] {
            let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let store = FaultStore::over(Arc::clone(&inner)).dying_at(2, moment);
            for number in 0..9 {
                let put = store.put(&path(&number.to_string()), "x".into()).await;
                assert_eq!(put.is_ok(), number == 0, "{number}");
            }
            store.died().await;
            assert!(store.is_dead());
            assert_eq!(inner.list(None).count().await, expected);
            assert_eq!(store.call_count(), 2);
        }
    }

    #[tokio::test]
    async fn parts_of_an_upload_fail_by_themselves() {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = FaultStore::over(Arc::clone(&inner))
            .with(Rule::on(&[Operation::UploadPart], Fault::Refused).after(1).times(1))
            .with(Rule::on(&[Operation::UploadComplete], Fault::AnswerLost).times(1));
        let mut upload = store.put_multipart(&path("a")).await.unwrap();
        assert!(upload.put_part("1".into()).await.is_ok());
        assert!(upload.put_part("2".into()).await.is_err());
        upload.abort().await.unwrap();
        let mut upload = store.put_multipart(&path("a")).await.unwrap();
        upload.put_part("12".into()).await.unwrap();
        assert!(upload.complete().await.is_err());
        assert_eq!(inner.get(&path("a")).await.unwrap().bytes().await.unwrap(), "12");
    }
}
