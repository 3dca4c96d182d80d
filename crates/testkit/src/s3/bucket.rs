use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CommonPrefix, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, CreateBucketInput,
    CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput,
    DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output,
    Object, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};

/// As many as S3 lists at once.
const KEYS_MAX: usize = 1_000;

/// How a server treats a write that is made on a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// It happens if the condition holds at the moment it happens: never twice.
    Honoured,
    /// The condition is passed over: two writers both win.
    Ignored,
    /// The answer is that such writes are not known.
    Unknown,
}

/// Buckets in memory. Every request is one step under one lock, so that nothing comes between a look and a write.
#[derive(Debug, Clone)]
pub(super) struct Buckets {
    state: Arc<Mutex<State>>,
    conditions: Conditions,
}

#[derive(Debug, Default)]
struct State {
    buckets: HashMap<String, BTreeMap<String, Stored>>,
    uploads: HashMap<String, Upload>,
    uploads_begun: u64,
}

#[derive(Debug, Clone)]
struct Stored {
    bytes: Bytes,
    e_tag: String,
    modified: Timestamp,
}

#[derive(Debug)]
struct Upload {
    bucket: String,
    key: String,
    parts: BTreeMap<i32, Bytes>,
}

impl Stored {
    #[expect(clippy::disallowed_methods, reason = "a store stamps its objects with its own time")]
    fn new(bytes: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let first = hasher.finish();
        bytes.len().hash(&mut hasher);
        let e_tag = format!("{first:016x}{:016x}", hasher.finish());
        Self { bytes, e_tag, modified: Timestamp::from(SystemTime::now()) }
    }

    fn size(&self) -> i64 {
        i64::try_from(self.bytes.len()).unwrap_or(i64::MAX)
    }

    fn e_tag(&self) -> ETag {
        ETag::Strong(self.e_tag.clone())
    }

    fn is(&self, condition: &ETagCondition) -> bool {
        match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(e_tag) => e_tag.value() == self.e_tag,
        }
    }
}

impl State {
    fn bucket(&mut self, name: &str) -> S3Result<&mut BTreeMap<String, Stored>> {
        self.buckets.get_mut(name).ok_or_else(|| s3_error!(NoSuchBucket))
    }

    fn object(&mut self, bucket: &str, key: &str) -> S3Result<Stored> {
        self.bucket(bucket)?.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }
}

impl Buckets {
    pub(super) fn new(names: &[String], conditions: Conditions) -> Self {
        let buckets = names.iter().map(|name| (name.clone(), BTreeMap::new())).collect();
        Self { state: Arc::new(Mutex::new(State { buckets, ..State::default() })), conditions }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keys(&self, bucket: &str) -> Vec<String> {
        self.lock().buckets.get(bucket).map(|objects| objects.keys().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn bytes(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.lock().buckets.get(bucket)?.get(key).map(|stored| stored.bytes.clone())
    }

    pub(super) fn insert(&self, bucket: &str, key: &str, bytes: Bytes) {
        self.lock().buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), Stored::new(bytes));
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    /// Writes an object if the conditions hold, and answers what it has become.
    fn write(
        &self,
        state: &mut State,
        (bucket, key): (&str, &str),
        bytes: Bytes,
        if_none_match: Option<&ETagCondition>,
        if_match: Option<&ETagCondition>,
    ) -> S3Result<Stored> {
        let is_conditional = if_none_match.is_some() || if_match.is_some();
        if is_conditional && self.conditions == Conditions::Unknown {
            return Err(s3_error!(NotImplemented, "a header that is not implemented"));
        }
        let objects = state.bucket(bucket)?;
        if self.conditions == Conditions::Honoured {
            let found = objects.get(key);
            let is_refused = if_none_match.is_some_and(|condition| found.is_some_and(|stored| stored.is(condition)))
                || if_match.is_some_and(|condition| found.is_some_and(|stored| !stored.is(condition)));
            if is_refused {
                return Err(s3_error!(PreconditionFailed));
            }
            if if_match.is_some() && found.is_none() {
                return Err(s3_error!(NoSuchKey));
            }
        }
        let stored = Stored::new(bytes);
        objects.insert(key.to_owned(), stored.clone());
        Ok(stored)
    }
}

async fn read(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let chunks: Vec<Bytes> = body.try_collect().await.map_err(|error| s3_error!(IncompleteBody, "{error}"))?;
    Ok(chunks.concat().into())
}

fn check(stored: &Stored, if_match: Option<&ETagCondition>, if_none_match: Option<&ETagCondition>) -> S3Result<()> {
    if if_match.is_some_and(|condition| !stored.is(condition)) {
        return Err(s3_error!(PreconditionFailed));
    }
    if if_none_match.is_some_and(|condition| stored.is(condition)) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

#[async_trait::async_trait]
impl S3 for Buckets {
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.lock().buckets.entry(request.input.bucket).or_default();
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.lock().bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let PutObjectInput { bucket, key, body, if_none_match, if_match, .. } = request.input;
        let bytes = read(body).await?;
        let place = (bucket.as_str(), key.as_str());
        let stored = self.write(&mut self.lock(), place, bytes, if_none_match.as_ref(), if_match.as_ref())?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(stored.e_tag()), ..PutObjectOutput::default() }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let stored = self.lock().object(&input.bucket, &input.key)?;
        check(&stored, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let mut output = GetObjectOutput {
            e_tag: Some(stored.e_tag()),
            last_modified: Some(stored.modified.clone()),
            content_length: Some(stored.size()),
            ..GetObjectOutput::default()
        };
        let mut bytes = stored.bytes.clone();
        if let Some(range) = input.range {
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let range = range.check(length)?;
            output.content_range = Some(format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1)));
            output.content_length = i64::try_from(range.end - range.start).ok();
            let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
            bytes = bytes.slice(start.unwrap_or(0)..end.unwrap_or(0));
        }
        output.body = Some(StreamingBlob::from(Body::from(bytes)));
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let stored = self.lock().object(&input.bucket, &input.key)?;
        check(&stored, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            e_tag: Some(stored.e_tag()),
            last_modified: Some(stored.modified.clone()),
            content_length: Some(stored.size()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn copy_object(&self, request: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let mut state = self.lock();
        let bytes = state.object(bucket, key)?.bytes;
        let stored = self.write(&mut state, (&input.bucket, &input.key), bytes, None, None)?;
        let result = CopyObjectResult {
            e_tag: Some(stored.e_tag()),
            last_modified: Some(stored.modified),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        // One that is not there is deleted just as well.
        self.lock().bucket(&request.input.bucket)?.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut state = self.lock();
        let objects = state.bucket(&request.input.bucket)?;
        let mut deleted = Vec::new();
        for object in request.input.delete.objects {
            objects.remove(&object.key);
            deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..DeleteObjectsOutput::default() }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        // A token is the last key or common prefix of the page before.
        let after = input.continuation_token.clone().or_else(|| input.start_after.clone()).unwrap_or_default();
        let limit = input.max_keys.and_then(|max| usize::try_from(max).ok()).unwrap_or(KEYS_MAX).min(KEYS_MAX);
        let mut state = self.lock();
        let (mut contents, mut prefixes) = (Vec::new(), BTreeSet::new());
        let (mut last, mut is_truncated) = (String::new(), false);
        for (key, stored) in state.bucket(&input.bucket)?.range(prefix.clone()..) {
            let Some(rest) = key.strip_prefix(&prefix) else { break };
            let folded = delimiter
                .as_ref()
                .and_then(|delimiter| rest.find(delimiter.as_str()).map(|at| at + delimiter.len()))
                .map(|length| format!("{prefix}{}", &rest[..length]));
            let name = folded.as_ref().unwrap_or(key);
            if *name <= after || prefixes.contains(name) {
                continue;
            }
            if contents.len() + prefixes.len() >= limit {
                is_truncated = true;
                break;
            }
            last.clone_from(name);
            match folded {
                Some(folded) => {
                    prefixes.insert(folded);
                }
                None => contents.push(Object {
                    key: Some(key.clone()),
                    e_tag: Some(stored.e_tag()),
                    last_modified: Some(stored.modified.clone()),
                    size: Some(stored.size()),
                    ..Object::default()
                }),
            }
        }
        let prefixes = prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect::<Vec<_>>();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            delimiter,
            start_after: input.start_after,
            key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
            is_truncated: Some(is_truncated),
            next_continuation_token: is_truncated.then_some(last),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, .. } = request.input;
        let mut state = self.lock();
        state.bucket(&bucket)?;
        state.uploads_begun += 1;
        let upload_id = format!("upload-{}", state.uploads_begun);
        let upload = Upload { bucket: bucket.clone(), key: key.clone(), parts: BTreeMap::new() };
        state.uploads.insert(upload_id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(upload_id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let UploadPartInput { upload_id, part_number, body, .. } = request.input;
        let bytes = read(body).await?;
        let e_tag = Stored::new(bytes.clone()).e_tag();
        let mut state = self.lock();
        let upload = state.uploads.get_mut(&upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(part_number, bytes);
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(e_tag), ..UploadPartOutput::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let mut state = self.lock();
        let upload = state.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let (bucket, key) = (upload.bucket.clone(), upload.key.clone());
        let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let mut bytes = BytesMut::new();
        for part in &named {
            let found = part.part_number.and_then(|number| upload.parts.get(&number));
            bytes.extend_from_slice(found.ok_or_else(|| s3_error!(InvalidPart))?);
        }
        let (if_none_match, if_match) = (input.if_none_match.as_ref(), input.if_match.as_ref());
        let stored = self.write(&mut state, (&bucket, &key), bytes.freeze(), if_none_match, if_match)?;
        state.uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            e_tag: Some(stored.e_tag()),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.lock().uploads.remove(&request.input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
