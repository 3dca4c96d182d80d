//! What the three programs of a cluster agree on.

use std::any::Any;

use ballista_core::extension::SessionConfigExt;
use ballista_core::registry::BallistaFunctionRegistry;
use datafusion::common::config::{ConfigEntry, ConfigExtension, ExtensionOptions};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionConfig;

/// The version that plans and functions are of.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The longest message between programs, a plan or a task among them, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: u32 = 64 << 20;

/// What a refusal because of versions begins with, so that it is known for one wherever it comes out.
pub(crate) const VERSIONS_DIFFER: &str = "versions differ:";

/// Travels with every plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct HoldfastOptions {
    /// The version of the driver; empty of a client that is none of ours.
    pub(crate) version: String,
}

// By hand: what the library's macro makes tells its keys without their prefix, and Ballista sends them as they are told.
impl ExtensionOptions for HoldfastOptions {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), DataFusionError> {
        match key {
            "version" => value.clone_into(&mut self.version),
            _ => return Err(DataFusionError::Configuration(format!("there is no setting holdfast.{key}"))),
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let value = Some(self.version.clone());
        vec![ConfigEntry { key: "holdfast.version".to_owned(), value, description: "The version of the driver" }]
    }
}

impl ConfigExtension for HoldfastOptions {
    const PREFIX: &'static str = "holdfast";
}

/// The settings of sessions in the scheduler and in executors, before a plan's own are put over them.
pub(crate) fn worker_config() -> SessionConfig {
    SessionConfig::new_with_ballista().with_option_extension(HoldfastOptions::default())
}

/// The functions of DataFusion, those of arrays and maps among them, which Ballista leaves out by itself.
pub(crate) fn known_functions() -> BallistaFunctionRegistry {
    BallistaFunctionRegistry::from(&SessionStateBuilder::new().with_default_features().build())
}

/// Plans and functions may mean something else in another version.
///
/// # Errors
/// When the driver of the plan that these settings came with is of another version than this program.
pub(crate) fn check_version(config: &SessionConfig, program: &str) -> Result<(), DataFusionError> {
    let driver = config.options().extensions.get::<HoldfastOptions>().map_or("", |options| &options.version);
    if driver.is_empty() || driver == VERSION {
        return Ok(());
    }
    Err(DataFusionError::Execution(format!(
        "{VERSIONS_DIFFER} the driver is holdfast {driver}, the {program} is {VERSION}: run one version everywhere"
    )))
}

#[cfg(test)]
mod tests {
    use ballista_core::extension::SessionConfigHelperExt;

    use super::*;

    #[test]
    fn plans_of_another_version_are_refused() {
        let of = |version: &str| {
            let options = HoldfastOptions { version: version.to_owned() };
            // As they travel.
            let sent = SessionConfig::new_with_ballista().with_option_extension(options).to_key_value_pairs();
            worker_config().update_from_key_value_pair(&sent)
        };
        assert!(check_version(&of(VERSION), "executor").is_ok());
        assert!(check_version(&of(""), "executor").is_ok());
        let told = check_version(&of("99.1.0"), "executor").unwrap_err().to_string();
        assert!(told.contains("99.1.0") && told.contains(VERSION), "{told}");
    }
}
