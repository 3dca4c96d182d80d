//! Policies, users and the audit log from the command line, and the service that the binary is.

use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use tonic::transport::Channel;

use super::{CANARY, texts, ticket};
use crate::folder::ProjectFolder;
use crate::{ended, holdfast_binary, succeed};

const CONTRACT: &str = r#"
kind = "crm"
path = "people/*.csv"
format = "csv"
event_time = "at"

[columns]
id = "int64"
at = "timestamp"
region = "string"
mobile = { type = "string", pii = true }

[[identifiers]]
type = "phone"
value = "mobile"
"#;

const PEOPLE: &str = "-- People, one row each.\n-- @tag pii(mobile)\nselect\n    id,      -- The number\n    region,  -- Where\n    mobile   -- Telephone\nfrom raw.people\n";

const CASES: &str = r#"
[roles.analyst]
tables = ["core.*"]
[[roles.analyst.rows]]
where = "region in (attribute('region'))"
[[roles.analyst.columns]]
tag = "pii"
mask = "partial"
keep_last = 2

[[case]]
name = "a_region_is_seen"
roles = ["analyst"]
attributes = { region = ["north"] }
query = "select id, mobile from core.people"
[case.given]
"core.people" = """
id | region | mobile
1  | north  | 13812345678
2  | south  | 13812345679
"""
[case.expect]
rows = """
id | mobile
1  | ***78
"""

[[case]]
name = "raw_is_not"
roles = ["analyst"]
query = "select * from raw.people"
[case.expect]
refused = "raw.people"
"#;

fn project() -> ProjectFolder {
    let rules = "priority = [\"phone\"]\n[types.phone]\n";
    let folder = ProjectFolder::of_one_source("people", CONTRACT, rules, PEOPLE);
    folder.write("pipelines/churn/policy.toml", CASES);
    folder
}

/// What a command says when it is refused.
fn refused(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_policy_is_checked_tried_and_explained() {
    let folder = project();
    succeed(&mut folder.command(&["policy", "check"]));
    succeed(&mut folder.command(&["check"]));
    let tested = succeed(&mut folder.command(&["policy", "test"]));
    assert!(String::from_utf8_lossy(&tested.stderr).contains("2 of 2 cases passed"));

    folder.write("in/people/1.csv", "id,at,region,mobile\n1,2026-01-01T00:00:00Z,north,13812345678\n");
    folder.ingest();
    succeed(&mut folder.command(&["run"]));
    succeed(&mut folder.command(&[
        "access",
        "token",
        "add",
        "tool",
        "--role",
        "analyst",
        "--attribute",
        "region=o'land",
    ]));
    let said = succeed(&mut folder.command(&["policy", "explain", "tool", "core.people"]));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("region IN ('o''land')") && said.contains("partial (first 0, last 2 characters)"), "{said}");
    let said = succeed(&mut folder.command(&["policy", "explain", "x", "raw.people", "--role", "analyst", "--json"]));
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["visible"], false);

    for (from, to, expected) in [
        ("mask = \"partial\"", "mask = \"partail\"", "policy.toml:8:8"),
        ("\"core.*\"]", "\"core.peple\"]", "did you mean `core.people`?"),
        ("region in (attribute", "regoin in (attribute", "of core.people"),
        ("***78", "***79", "1 of 2 cases failed"),
    ] {
        folder.write("pipelines/churn/policy.toml", &CASES.replace(from, to));
        let command = if from.starts_with("***") { ["policy", "test"] } else { ["policy", "check"] };
        let said = refused(&mut folder.command(&command));
        assert!(said.contains(expected), "{said}");
        if command[1] == "check" {
            assert!(refused(&mut folder.command(&["check"])).contains("1 mistake"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_serves_by_policy_writes_down_who_read_and_tells_its_log_nothing() {
    let folder = project();
    folder.write("in/people/1.csv", &format!("id,at,region,mobile\n1,2026-01-01T00:00:00Z,north,{CANARY}5678\n2,2026-01-01T00:00:00Z,south,{CANARY}5679\n"));
    folder.ingest();
    succeed(&mut folder.command(&["run"]));
    let token = |arguments: &[&str]| {
        let output = succeed(folder.command(&["access"]).args(arguments));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let tool = token(&["token", "add", "tool", "--role", "analyst", "--attribute", "region=north"]);
    let password =
        token(&["user", "add", "ana", "--role", "analyst", "--attribute", "region=south", "--make-password"]);

    let said = refused(&mut folder.command(&["serve", "--users", "nowhere.toml", "--listen", "127.0.0.1:0"]));
    assert!(said.contains("nowhere.toml"), "{said}");
    let mut command =
        folder.command(&["-vv", "serve", "--listen", "127.0.0.1:0", "--users", "users.toml", "--audit", "required"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let lines = crate::lines_of(&mut child);
    let mut log = Vec::new();
    let address = loop {
        let line = lines.recv_timeout(Duration::from_secs(120)).unwrap();
        if let Some((_, rest)) = line.split_once("grpc://") {
            break rest.split(',').next().unwrap().to_owned();
        }
        log.push(line);
    };
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut by_token = FlightSqlServiceClient::new(channel.clone());
    by_token.set_token(tool);
    let mut by_password = FlightSqlServiceClient::new(channel.clone());
    by_password.handshake("ana", &password).await.unwrap();
    for (client, expected) in [(&mut by_token, "***78"), (&mut by_password, "***79")] {
        let info = client.execute("select mobile from core.people".to_owned(), None).await.unwrap();
        let rows: Vec<RecordBatch> = client.do_get(ticket(&info)).await.unwrap().try_collect().await.unwrap();
        assert_eq!(texts(&rows[0], "mobile"), [Some(expected.to_owned())]);
        let failing = "select cast(mobile as bigint) from core.people".to_owned();
        let info = client.execute(failing, None).await.unwrap();
        let ended = client.do_get(ticket(&info)).await.unwrap().try_collect::<Vec<RecordBatch>>().await;
        assert!(!ended.unwrap_err().to_string().contains(CANARY));
    }
    succeed(std::process::Command::new("kill").arg("-TERM").arg(child.id().to_string()));
    assert!(ended(&mut child).success());
    log.extend(lines.iter());
    assert!(!log.iter().any(|line| line.contains(CANARY) || line.contains(&password)), "{log:#?}");

    let verified = succeed(&mut folder.command(&["audit", "verify", "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(report["broken"].as_array().unwrap().len(), 0, "{report}");
    // An opening, and of each of four statements that its columns were told, its beginning and its end.
    assert_eq!(report["rows"], 13, "{report}");
    let rows = folder
        .query("select principal, count(*) as n from audit.accesses where outcome = 'begun' group by 1 order by 1");
    assert_eq!(serde_json::to_string(&rows).unwrap(), r#"[{"n":2,"principal":"ana"},{"n":2,"principal":"tool"}]"#);
    let other_key = folder.write("other.key", &"7".repeat(64));
    let output = std::process::Command::new(holdfast_binary())
        .arg("--project")
        .arg(folder.path())
        .arg("--identity-key")
        .arg(other_key)
        .args(["audit", "verify"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "another key is not the lake's");
}
