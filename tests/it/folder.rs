//! A project in a folder of its own, and the real binary on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{holdfast_binary, succeed};

pub(crate) struct ProjectFolder(tempfile::TempDir);

impl ProjectFolder {
    /// With these files, by their paths in it.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            folder.write(path, text);
        }
        folder
    }

    /// A shop with one source and one stage, `core.<source>`, whose files are in the folder `in/<source>`; its tokens can be compared with those of others.
    pub(crate) fn of_one_source(source: &str, contract: &str, rules: &str, stage: &str) -> Self {
        let folder = Self::new(&[
            ("holdfast.toml", ""),
            ("pipelines/churn/pipeline.toml", "stages = \"sql\"\n"),
            ("pipelines/churn/identity.toml", rules),
            (&format!("pipelines/churn/sources/{source}.toml"), contract),
            (&format!("sql/core/{source}.sql"), stage),
            ("identity.key", &"5".repeat(64)),
        ]);
        std::fs::create_dir_all(folder.path().join("in").join(source)).unwrap();
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(holdfast_binary());
        command.arg("--project").arg(self.path()).args(arguments).current_dir(self.path());
        command.env_remove("HOLDFAST_ABORT_AFTER");
        command
    }

    /// Brings what is in the folder `in`.
    pub(crate) fn ingest(&self) {
        succeed(&mut self.command(&["ingest", "--from", "in"]));
    }

    pub(crate) fn query(&self, sql: &str) -> Vec<Value> {
        let output = succeed(&mut self.command(&["sql", sql, "--output", "json"]));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a command of identity answers.
    pub(crate) fn identity(&self, arguments: &[&str]) -> Value {
        let output = succeed(self.command(&["identity"]).args(arguments).arg("--json"));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}
