//! `holdfast serve` on a project, over all its protocols.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tonic::transport::Channel;

use crate::folder::ProjectFolder;
use crate::{ended, lines_of, succeed};

/// A service that runs until it is stopped, or dropped.
pub(crate) struct Served {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    pub(crate) flight: SocketAddr,
    pub(crate) postgres: SocketAddr,
    pub(crate) http: SocketAddr,
}

impl Served {
    /// Starts the service with these flags and this environment, and returns when it listens.
    pub(crate) fn start(folder: &ProjectFolder, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = folder.command(&["-vv", "serve"]);
        for listen in ["--listen", "--http", "--pg-listen"] {
            command.args([listen, "127.0.0.1:0"]);
        }
        let mut child = command.args(flags).envs(environment.iter().copied()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(&mut child);
        let mut said = Vec::new();
        let told = loop {
            let line = lines.recv_timeout(Duration::from_secs(120)).unwrap_or_else(|_| panic!("{said:#?}"));
            said.push(line.clone());
            if line.contains("grpc://") {
                break line;
            }
        };
        let of = |scheme: &str| -> SocketAddr {
            let rest = told.split_once(scheme).unwrap().1;
            rest.split(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ':')).next().unwrap().parse().unwrap()
        };
        Self { child, lines, said, flight: of("grpc://"), postgres: of("postgresql://"), http: of("http://") }
    }

    /// A connection of its own to Flight.
    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.flight)).unwrap().connect().await.unwrap()
    }

    /// What a body gets over HTTP: all bytes of the answer.
    pub(crate) async fn post(&self, token: &str, body: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
        let request = format!(
            "POST /get-online-features HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-length: {}\r\ncontent-type: application/json\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Memory that the process holds, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Stops the service; all that it has said.
    pub(crate) fn stop(mut self) -> Vec<String> {
        succeed(std::process::Command::new("kill").arg("-TERM").arg(self.child.id().to_string()));
        assert!(ended(&mut self.child).success());
        let mut said = std::mem::take(&mut self.said);
        said.extend(self.lines.iter());
        said
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
