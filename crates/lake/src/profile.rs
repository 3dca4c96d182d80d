use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use crate::Result;
use crate::error::LakeError;
use crate::store::StoreOptions;

/// How old credentials from a file may get before the file is read again: tools that renew them write them there.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What else a profile may name, and object_store knows by itself.
const PASSED_ON: [(&str, &str); 5] = [
    ("region", "aws_region"),
    ("endpoint_url", "aws_endpoint"),
    ("role_arn", "aws_role_arn"),
    ("role_session_name", "aws_role_session_name"),
    ("web_identity_token_file", "aws_web_identity_token_file"),
];

/// Ways to credentials that a profile may name and that are not gone here.
const NOT_SUPPORTED: [(&str, &str); 5] = [
    ("credential_process", "a program"),
    ("sso_session", "single sign-on"),
    ("sso_start_url", "single sign-on"),
    ("source_profile", "a role taken on with another profile"),
    ("credential_source", "a role taken on with other credentials"),
];

/// The files in which the tools of AWS keep profiles, and which one is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Profiles {
    credentials: Option<PathBuf>,
    config: Option<PathBuf>,
    name: String,
    /// It was named, so it has to be there.
    is_named: bool,
}

/// The settings of a profile by their names in lower case.
type Profile = HashMap<String, String>;

/// Completes the settings of an S3 store by those of the profile, as the tools of AWS do: what is set in the environment counts before it. Also answers the
/// credentials that stand in the profile, when there are none in the environment.
///
/// Reads `aws_shared_credentials_file` and `aws_config_file`, section `aws_profile`, else `aws_default_profile`, else `default`.
///
/// # Errors
/// [`LakeError::Profile`] when a file cannot be read, the profile that was named is in neither, or it names a way to credentials that is not gone here.
pub(crate) fn complete(options: &StoreOptions) -> Result<(StoreOptions, Option<ProfileCredentials>)> {
    let mut options = options.clone();
    let Some(profiles) = Profiles::of(&options) else { return Ok((options, None)) };
    let has_keys = options.get("aws_access_key_id").is_some() || options.get("aws_secret_access_key").is_some();
    let profile = match profiles.read()? {
        Some(profile) => profile,
        None if profiles.is_named && !has_keys => {
            return Err(profiles.wrong(&format!("is not in {}", profiles.places())));
        }
        None => return Ok((options, None)),
    };
    for (name, option) in PASSED_ON {
        // A store that was named in the environment by whatever name counts before the profile's.
        let named =
            options.names().any(|known| known == option || option == "aws_endpoint" && known.contains("endpoint"));
        if let Some(value) = profile.get(name).filter(|_| !named) {
            options.insert(option, value);
        }
    }
    if has_keys || options.get("aws_skip_signature").is_some() {
        return Ok((options, None));
    }
    if let Some(credential) = credential(&profile) {
        let kept = Mutex::new((Instant::now(), Arc::new(credential)));
        return Ok((options, Some(ProfileCredentials { profiles, kept })));
    }
    if let Some((_, how)) = NOT_SUPPORTED.into_iter().find(|(name, _)| profile.contains_key(*name)) {
        return Err(profiles.wrong(&format!(
            "gets its credentials by {how}, which holdfast does not do: run `eval \"$(aws configure export-credentials --profile {} --format env)\"` and try again",
            profiles.name
        )));
    }
    Ok((options, None))
}

impl Profiles {
    fn of(options: &StoreOptions) -> Option<Self> {
        let file = |name: &str| options.get(name).map(PathBuf::from);
        let (credentials, config) = (file("aws_shared_credentials_file"), file("aws_config_file"));
        let named = options.get("aws_profile").or_else(|| options.get("aws_default_profile"));
        let found = credentials.is_some() || config.is_some() || named.is_some();
        let name = named.unwrap_or("default").to_owned();
        found.then(|| Self { credentials, config, name, is_named: named.is_some() })
    }

    /// The profile; what stands in the credentials file counts before what stands in the other. `None` when it is in neither.
    fn read(&self) -> Result<Option<Profile>> {
        let in_config = if self.name == "default" { self.name.clone() } else { format!("profile {}", self.name) };
        let config = self.section(self.config.as_deref(), &in_config)?;
        let credentials = self.section(self.credentials.as_deref(), &self.name)?;
        Ok(match (config, credentials) {
            (Some(mut config), Some(credentials)) => {
                config.extend(credentials);
                Some(config)
            }
            (config, credentials) => config.or(credentials),
        })
    }

    fn section(&self, file: Option<&Path>, name: &str) -> Result<Option<Profile>> {
        let Some(file) = file else { return Ok(None) };
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(section(&text, name)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.wrong(&format!("cannot be read from {}: {error}", file.display()))),
        }
    }

    fn places(&self) -> String {
        let files = [&self.credentials, &self.config];
        let files: Vec<String> = files.into_iter().flatten().map(|file| file.display().to_string()).collect();
        if files.is_empty() { "a file: no home folder is known".to_owned() } else { files.join(" or ") }
    }

    fn wrong(&self, reason: &str) -> LakeError {
        LakeError::Profile { profile: self.name.clone(), reason: reason.to_owned() }
    }
}

/// A section of a file as the tools of AWS write it; `None` when it is not there. What is indented belongs to the line above it and is left out.
fn section(text: &str, name: &str) -> Option<Profile> {
    let mut found: Option<Profile> = None;
    let mut is_ours = false;
    for line in text.lines() {
        let content = line.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = content.strip_prefix('[') {
            let heading = rest.split(']').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
            is_ours = heading == name;
            if is_ours {
                found.get_or_insert_default();
            }
            continue;
        }
        if let Some(profile) = found.as_mut().filter(|_| is_ours && !line.starts_with([' ', '\t']))
            && let Some((key, value)) = content.split_once('=')
        {
            let value = value.split(" #").next().unwrap_or_default().trim();
            if !value.is_empty() {
                profile.insert(key.trim().to_lowercase(), value.to_owned());
            }
        }
    }
    found
}

fn credential(profile: &Profile) -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: profile.get("aws_access_key_id")?.clone(),
        secret_key: profile.get("aws_secret_access_key")?.clone(),
        token: profile.get("aws_session_token").cloned(),
    })
}

/// Credentials that stand in a profile, read again from time to time.
#[derive(Debug)]
pub(crate) struct ProfileCredentials {
    profiles: Profiles,
    kept: Mutex<(Instant, Arc<AwsCredential>)>,
}

#[async_trait]
impl CredentialProvider for ProfileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0.elapsed() >= READ_AGAIN_AFTER {
            // Whoever writes the file may not be done: those that we have may still be good.
            if let Some(credential) = self.profiles.read().ok().flatten().as_ref().and_then(credential) {
                kept.1 = Arc::new(credential);
            }
            kept.0 = Instant::now();
        }
        Ok(Arc::clone(&kept.1))
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::ErrorKind;

    use super::*;

    const CREDENTIALS: &str = "
# of the shop
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key=secret/of+default=

[ shop ]
AWS_ACCESS_KEY_ID = AKIASHOP
aws_secret_access_key = secret of shop
aws_session_token = token of shop # until tonight
";
    const CONFIG: &str = "
[default]
region = eu-west-1
s3 =
    addressing_style = path
    region = nowhere
[profile shop]
region = cn-north-1
endpoint_url = http://127.0.0.1:9000
[profile robot]
role_arn = arn:aws:iam::1:role/robot
web_identity_token_file = /token
[profile sso]
sso_session = company
[profile bare]
output = json
";

    fn files() -> (tempfile::TempDir, StoreOptions) {
        let folder = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new();
        for (option, name, text) in
            [("aws_shared_credentials_file", "credentials", CREDENTIALS), ("aws_config_file", "config", CONFIG)]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            options.insert(option, path.to_str().unwrap());
        }
        (folder, options)
    }

    fn with(options: &StoreOptions, more: &[(&str, &str)]) -> StoreOptions {
        let mut options = options.clone();
        more.iter().for_each(|(name, value)| options.insert(name, value));
        options
    }

    #[tokio::test]
    async fn the_profile_that_is_named_gives_keys_region_and_endpoint() {
        let (_folder, options) = files();
        let (completed, credentials) = complete(&options).unwrap();
        let credential = credentials.unwrap().get_credential().await.unwrap();
        assert_eq!((credential.key_id.as_str(), credential.token.as_deref()), ("AKIADEFAULT", None));
        assert_eq!(credential.secret_key, "secret/of+default=");
        assert_eq!(completed.get("aws_region"), Some("eu-west-1"));

        let (completed, credentials) = complete(&with(&options, &[("aws_profile", "shop")])).unwrap();
        let credentials = credentials.unwrap();
        let credential = credentials.get_credential().await.unwrap();
        assert_eq!((credential.key_id.as_str(), credential.token.as_deref()), ("AKIASHOP", Some("token of shop")));
        assert_eq!(completed.get("aws_region"), Some("cn-north-1"));
        assert_eq!(completed.get("aws_endpoint"), Some("http://127.0.0.1:9000"));
        let shown = format!("{credentials:?} {completed:?}");
        assert!(!shown.contains("secret of shop"), "{shown}");
    }

    #[test]
    fn the_environment_counts_before_the_profile() {
        let (_folder, options) = files();
        let environment = [
            ("aws_profile", "shop"),
            ("aws_access_key_id", "AKIAENV"),
            ("aws_region", "us-east-1"),
            ("aws_endpoint_url", "http://elsewhere"),
        ];
        let (completed, credentials) = complete(&with(&options, &environment)).unwrap();
        assert!(credentials.is_none());
        assert_eq!(completed.get("aws_region"), Some("us-east-1"));
        assert_eq!(completed.get("aws_endpoint"), None);
    }

    #[test]
    fn what_a_profile_leaves_to_object_store_is_passed_on() {
        let (_folder, options) = files();
        let (completed, credentials) = complete(&with(&options, &[("aws_profile", "robot")])).unwrap();
        assert!(credentials.is_none());
        assert_eq!(completed.get("aws_web_identity_token_file"), Some("/token"));
        assert!(complete(&with(&options, &[("aws_profile", "bare")])).unwrap().1.is_none());
        assert!(complete(&StoreOptions::new()).unwrap().1.is_none());
    }

    #[test]
    fn a_profile_that_cannot_be_used_is_told_with_the_remedy() {
        let (_folder, options) = files();
        for (profile, words) in [("sso", "export-credentials --profile sso"), ("nobody", "credentials or ")] {
            let error = complete(&with(&options, &[("aws_profile", profile)])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(words), "{error}");
        }
        let missing = with(&StoreOptions::new(), &[("aws_config_file", "/nowhere/config")]);
        assert!(complete(&missing).unwrap().1.is_none(), "nobody asked for a profile");
    }

    #[tokio::test]
    async fn renewed_credentials_are_read() {
        let (folder, options) = files();
        let credentials = complete(&options).unwrap().1.unwrap();
        let key = async || credentials.get_credential().await.unwrap().key_id.clone();
        let file = folder.path().join("credentials");
        std::fs::write(&file, CREDENTIALS.replace("AKIADEFAULT", "AKIARENEWED")).unwrap();
        assert_eq!(key().await, "AKIADEFAULT", "not with every request");
        let long_ago = |credentials: &ProfileCredentials| {
            credentials.kept.lock().unwrap().0 = Instant::now().checked_sub(READ_AGAIN_AFTER).unwrap();
        };
        long_ago(&credentials);
        assert_eq!(key().await, "AKIARENEWED");
        std::fs::write(&file, "[default]\n").unwrap();
        long_ago(&credentials);
        assert_eq!(key().await, "AKIARENEWED", "a file that is being written");
    }
}
