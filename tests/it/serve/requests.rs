//! Requests that do not come whole.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use holdfast_serve::ServeSettings;
use tonic::body::Body;
use tonic::codegen::{Service as _, http};

use super::Service;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_announced_and_never_comes_is_refused_in_time() {
    let settings = ServeSettings { request_timeout: Duration::from_millis(500), ..ServeSettings::default() };
    let service = Service::start_with(settings).await;
    // The head of a message of a thousand bytes, one of them, and then one every now and then.
    let head = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(&[0, 0, 0, 3, 232, 10]))]);
    let rest = futures::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Some((Ok(Bytes::from_static(b"x")), ()))
    });
    let request = http::Request::post("/arrow.flight.protocol.FlightService/GetFlightInfo")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(axum::body::Body::from_stream(head.chain(rest))))
        .unwrap();
    let began = Instant::now();
    let mut channel = service.channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), channel.call(request)).await;
    let answer = answer.unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert_eq!(answer.headers()["grpc-status"], "4", "{answer:?}");
    assert!(answer.headers()["grpc-message"].to_str().unwrap().contains("within"), "{answer:?}");
    // Others are served over the same connection.
    service.select("select 1 as one").await.unwrap();
    service.shut_down().await;
}
