//! Is somebody there, and who? A scheduler answers HTTP on the port of its gRPC.

use std::time::Duration;

use ballista_core::BALLISTA_VERSION;
use ballista_core::version::check_compatibility;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::address::Address;

/// How long a scheduler may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// No answer is longer.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// Who answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probed {
    /// A scheduler with executors.
    Ready,
    /// A scheduler that has none.
    NoExecutors,
    /// Nobody: why.
    Nobody(String),
    /// Somebody that this version cannot work with: who.
    Stranger(String),
}

/// Asks a scheduler whether it has executors.
pub(crate) async fn probe(address: &Address) -> Probed {
    match tokio::time::timeout(ANSWER_MAX, ask(address)).await {
        Ok(Ok(answer)) => read(&answer),
        Ok(Err(error)) => Probed::Nobody(error.to_string()),
        Err(_) => Probed::Nobody(format!("no answer within {} s", ANSWER_MAX.as_secs())),
    }
}

async fn ask(address: &Address) -> std::io::Result<String> {
    let place = format!("{}:{}", address.host, address.port);
    let mut connection = TcpStream::connect(&place).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = connection.take(ANSWER_BYTES_MAX);
    limited.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn read(answer: &str) -> Probed {
    let mut lines = answer.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let server = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("server"))
        .map(|(_, value)| value.trim().to_owned());
    let Some(version) = server.as_deref().and_then(|server| server.strip_prefix("ballista/")) else {
        return Probed::Stranger("what answers there is no Ballista scheduler".to_owned());
    };
    if check_compatibility(Some(BALLISTA_VERSION), Some(version)).is_err() {
        return Probed::Stranger(format!(
            "the scheduler is Ballista {version}, and this holdfast works with {BALLISTA_VERSION}: run one version everywhere"
        ));
    }
    match status.as_str() {
        "200" => Probed::Ready,
        "503" => Probed::NoExecutors,
        other => Probed::Stranger(format!("the scheduler answers with HTTP status {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_is_told_from_what_it_says() {
        let answer = |status: &str, server: &str| format!("HTTP/1.1 {status}\r\nServer: {server}\r\n\r\nready: 2\n");
        assert_eq!(read(&answer("200 OK", "ballista/55.0.0")), Probed::Ready);
        assert_eq!(read(&answer("503 Service Unavailable", "ballista/55.3.1")), Probed::NoExecutors);
        for (answer, told) in [
            (answer("200 OK", "ballista/54.0.0"), "Ballista 54.0.0"),
            (answer("200 OK", "nginx"), "no Ballista scheduler"),
            (answer("404 Not Found", "ballista/55.0.0"), "404"),
            (String::new(), "no Ballista scheduler"),
        ] {
            assert!(matches!(read(&answer), Probed::Stranger(reason) if reason.contains(told)), "{told}");
        }
    }
}
