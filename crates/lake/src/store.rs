use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use crate::Result;
use crate::error::LakeError;
use crate::profile::complete;

/// Settings of an object store as its own documentation names them: `aws_endpoint`, `aws_region`, `azure_storage_account_name`,
/// `google_service_account` and so on. The binary fills them from the environment.
///
/// Secrets are among them: only names are shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoreOptions(BTreeMap<String, String>);

impl StoreOptions {
    /// No settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets a value, in the place of the one there was.
    pub fn insert(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// The names of what is set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl FromIterator<(String, String)> for StoreOptions {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(settings: T) -> Self {
        Self(settings.into_iter().collect())
    }
}

/// A store and the place in it that a URL names.
#[derive(Debug, Clone)]
pub struct ObjectLocation {
    /// The store, from its root.
    pub store: Arc<dyn ObjectStore>,
    /// The path below that root.
    pub path: Path,
    /// The URL, absolute; a local path given without a scheme has become `file://`.
    pub url: Url,
}

/// Opens the store that a URL or a local path names. `relative_to` resolves a relative local path.
///
/// Schemes: a local path, `file`, `memory`, `s3`, `s3a`, `gs`, `az`, `abfs`, `abfss`. Nothing of the store is read yet.
///
/// # Errors
/// [`LakeError::InvalidUrl`] when the URL cannot be read, or no store answers to its scheme; [`LakeError::Profile`] when credentials for S3 cannot
/// be had from the profile.
pub fn open_store(location: &str, relative_to: &std::path::Path, options: &StoreOptions) -> Result<ObjectLocation> {
    let invalid = |reason: String| LakeError::InvalidUrl { url: location.to_owned(), reason };
    let url = if location.contains("://") {
        Url::parse(location).map_err(|error| invalid(error.to_string()))?
    } else {
        let path = std::path::absolute(relative_to.join(location)).map_err(|error| invalid(error.to_string()))?;
        let path = without_dots(&path);
        Url::from_file_path(&path).map_err(|()| invalid("not an absolute local path".to_owned()))?
    };
    let (scheme, path) = ObjectStoreScheme::parse(&url).map_err(|error| invalid(error.to_string()))?;
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local => Arc::new(object_store::local::LocalFileSystem::new()),
        ObjectStoreScheme::AmazonS3 => amazon_s3(&url, options)?,
        ObjectStoreScheme::Memory | ObjectStoreScheme::GoogleCloudStorage | ObjectStoreScheme::MicrosoftAzure => {
            object_store::parse_url_opts(&url, options.iter())
                .map_err(|error| invalid(describe_store_error(&error)))?
                .0
                .into()
        }
        _ => return Err(invalid(format!("no object store for the scheme `{}`", url.scheme()))),
    };
    Ok(ObjectLocation { store, path, url })
}

/// How what a busy store refused is asked again. The work of a commit is many small requests one after the other: the first try again comes soon, since
/// most refusals are over by then, and the next ones three times later each.
fn retry() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(20), base: 3.0, ..BackoffConfig::default() };
    RetryConfig { backoff, ..RetryConfig::default() }
}

/// The bucket, with settings and credentials from where the tools of AWS have them.
fn amazon_s3(url: &Url, options: &StoreOptions) -> Result<Arc<dyn ObjectStore>> {
    let (options, credentials) = complete(options)?;
    let mut builder = AmazonS3Builder::new().with_url(url.as_str()).with_retry(retry());
    for (name, value) in options.iter() {
        // Of other stores, or of other programs of AWS.
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(credentials) = credentials {
        builder = builder.with_credentials(Arc::new(credentials));
    }
    let built = builder
        .build()
        .map_err(|error| LakeError::InvalidUrl { url: url.to_string(), reason: describe_store_error(&error) })?;
    Ok(Arc::new(built))
}

/// The path with `..` taken out, which object stores do not know. As a shell's `cd` sees it: links are not followed.
fn without_dots(path: &std::path::Path) -> std::path::PathBuf {
    let mut clean = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// What a store error means for the person who reads it, with the remedy where one is known.
pub fn describe_store_error(error: &object_store::Error) -> String {
    let text = describe_chain(error);
    if is_full(&text) {
        return text;
    }
    match error {
        object_store::Error::NotFound { path, .. } => format!("{path} was not found"),
        object_store::Error::PermissionDenied { path, .. } => {
            format!("no permission for {path}: check who may read and write there")
        }
        object_store::Error::Unauthenticated { path, .. } => {
            format!(
                "the store does not accept our credentials for {path}: check the store's settings in the environment"
            )
        }
        _ => text,
    }
}

/// An error and its causes, each that adds something, with the remedy where the disk is full.
pub(crate) fn describe_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let message = cause.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        next = cause.source();
    }
    if is_full(&text) {
        text.push_str(" (the disk is full: free some space and run the same command again, nothing was committed)");
    }
    text
}

fn is_full(text: &str) -> bool {
    ["No space left on device", "StorageFull", "os error 28"].iter().any(|sign| text.contains(sign))
}
