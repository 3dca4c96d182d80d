//! An S3 server for benchmarks, with a share of its requests refused: prints its endpoint and runs until its standard input ends.
//!
//! ```text
//! cargo run --example s3_server -- --throttle 10 --log requests.txt
//! ```
//!
//! With `--log` it writes what it was asked to a file when it ends, a line each, to count the requests of some work.

use std::io::Read;

use holdfast_testkit::{Asked, Rule, S3Fault, S3Server, S3Settings};

#[expect(clippy::print_stdout, reason = "whoever started it reads its endpoint there")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut percent, mut log) = (0, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match (name.as_str(), arguments.next()) {
            ("--throttle", Some(value)) => percent = value.parse()?,
            ("--log", Some(value)) => log = Some(value),
            _ => {
                return Err(
                    "s3_server [--throttle PERCENT] [--log FILE]: so many of a hundred requests are answered with 503"
                        .into(),
                );
            }
        }
    }
    let settings = S3Settings::default();
    let keys = (settings.access_key.clone(), settings.secret_key.clone());
    let server =
        S3Server::start(S3Settings { rules: vec![Rule::on(&[], S3Fault::Refused(503)).percent(percent)], ..settings })?;
    println!("{} bucket shop, key {}, secret {}", server.endpoint(), keys.0, keys.1);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let asked = server.asked();
    let refused = asked.iter().filter(|asked| asked.status == Some(503)).count();
    println!("{} requests, {refused} of them refused", asked.len());
    if let Some(log) = log {
        let line = |asked: &Asked| format!("{:?} {} {}\n", asked.operation, asked.path, asked.status.unwrap_or(0));
        std::fs::write(log, asked.iter().map(line).collect::<String>())?;
    }
    Ok(())
}
