//! Bad input: one clear error with the place and the remedy, an exit code that is not 0, and a lake that is as it was.

use std::path::Path;
use std::process::Command;

use crate::{commits, holdfast, holdfast_binary, succeed};

fn refused(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} succeeded");
    assert_eq!(said.matches("error").count().min(1), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code().unwrap(), said)
}

fn small_lake() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    succeed(holdfast().args(["demo", "--no-serve", "--customers", "40", "--days", "60", "--dir"]).arg(folder.path()));
    folder
}

fn on(folder: &Path) -> Command {
    let mut command = holdfast();
    command.arg("--lake").arg(folder.join("lake")).arg("--identity-key").arg(folder.join("identity.key"));
    command
}

#[test]
fn each_kind_of_bad_input_is_told_clearly_and_changes_nothing() {
    let folder = small_lake();
    let before = commits(folder.path());

    let (code, said) = refused(on(folder.path()).args(["ingest", "--from"]).arg(folder.path().join("nowhere")));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("nowhere"), "{said}");

    let (code, said) = refused(holdfast().args(["sql", "select 1", "--lake"]).arg(folder.path().join("no-lake")));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("no lake at") && said.contains("holdfast ingest"), "{said}");

    let (code, said) = refused(on(folder.path()).args(["run", "--pipeline", "chrn"]));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("there are churn"), "{said}");

    let (code, said) =
        refused(Command::new(holdfast_binary()).args(["run", "--project"]).arg(folder.path().join("sources")));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("holdfast.toml") && said.contains("--project"), "{said}");

    // A key that is none.
    let key = folder.path().join("wrong.key");
    std::fs::write(&key, "secret").unwrap();
    let (code, said) = refused(on(folder.path()).args(["run", "--identity-key"]).arg(&key));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("64 hexadecimal digits") && !said.contains("secret\n"), "{said}");

    assert_eq!(before, commits(folder.path()));
    succeed(on(folder.path()).args(["sql", "select count(*) from core.orders"]));
}

#[test]
fn a_lake_of_a_newer_version_is_left_alone() {
    let folder = small_lake();
    let settings = folder.path().join("lake/_holdfast/lake.json");
    std::fs::write(&settings, r#"{"format_version": 99, "something_new": true}"#).unwrap();
    let before = commits(folder.path());
    for arguments in [vec!["sql", "select 1"], vec!["run"]] {
        let (code, said) = refused(on(folder.path()).args(&arguments));
        assert_eq!(code, 5, "{said}");
        assert!(said.contains("format 99") && said.contains("newer"), "{said}");
    }
    let (code, _) = refused(on(folder.path()).args(["ingest", "--from"]).arg(folder.path().join("sources")));
    assert_eq!(code, 5);
    assert_eq!(before, commits(folder.path()));
}

#[test]
fn malformed_files_of_a_project_are_told_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let run = || refused(Command::new(holdfast_binary()).arg("--project").arg(folder.path()).arg("test"));
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("holdfast.toml", "[lake]\nurl = \"lake\"\nbuckets = 4\n");
    let (code, said) = run();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("holdfast.toml:3:1") && said.contains("buckets"), "{said}");

    write("holdfast.toml", "");
    write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n");
    write("pipelines/churn/identity.toml", "priority = [\"phone\", \"fax\"]\n[types.phone]\n");
    write(
        "pipelines/churn/sources/a.toml",
        "kind = \"x\"\npath = \"a/*.csv\"\nformat = \"csv\"\n[columns]\na = \"strin\"\n",
    );
    std::fs::create_dir_all(folder.path().join("sql")).unwrap();
    let (code, said) = run();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("a.toml:5") && said.contains("strin"), "{said}");

    write(
        "pipelines/churn/sources/a.toml",
        "kind = \"x\"\npath = \"a/*.csv\"\nformat = \"csv\"\n[columns]\na = \"string\"\n",
    );
    let (code, said) = run();
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("identity.toml:1:22") && said.contains("fax"), "{said}");
}

#[test]
fn a_port_in_use_is_named() {
    let folder = small_lake();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (_, said) = refused(on(folder.path()).args(["serve", "--listen", &address]));
    assert!(said.contains(&address), "{said}");
}
