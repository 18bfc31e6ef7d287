use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// What a server of these tests does with each request.
#[derive(Clone, Copy)]
enum Manner {
    /// Sends the request's body back.
    Echo,
    /// Sends the head and the beginning of a body, then nothing.
    Begin,
    /// Takes the connection and says nothing.
    Silent,
    /// Says nothing to what has a body; begins an answer to all else.
    Slow,
    /// 503.
    Busy,
    /// Says nothing to what has a body; says this of itself.
    Says(u16),
}

async fn server(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let length = stream.read(&mut buffer).await.unwrap();
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
                let answer = match manner {
                    Manner::Echo => format!(
                        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    ),
                    Manner::Slow | Manner::Says(_) if !body.is_empty() => String::new(),
                    Manner::Says(status) => format!("HTTP/1.1 {status} Said\r\ncontent-length: 0\r\n\r\n"),
                    Manner::Begin | Manner::Slow => {
                        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbegun".to_owned()
                    }
                    Manner::Silent => String::new(),
                    Manner::Busy => "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_owned(),
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
                if !matches!(manner, Manner::Echo) {
                    // The connection stays open until the other side goes.
                    let _ = stream.read(&mut buffer).await;
                }
            });
        }
    });
    address
}

async fn closed() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

async fn access(endpoints: &[&String]) -> ApiServers {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
        users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n";
    std::fs::write(&path, text).unwrap();
    let endpoints = endpoints.iter().map(ToString::to_string).collect();
    ApiServers::new(&Access { kubeconfig: Some(path), endpoints, ..Access::default() }).await.unwrap()
}

fn hello() -> Request<Body> {
    Request::post("/x").body(b"hello".to_vec().into()).unwrap()
}

async fn text(answer: Response<Body>) -> Bytes {
    answer.into_body().collect_bytes().await.unwrap()
}

#[tokio::test]
async fn a_server_that_is_down_is_passed_over_and_stays_so() {
    let (down, up) = (closed().await, server(Manner::Echo).await);
    let servers = access(&[&down, &up]).await;
    assert_eq!(servers.in_use(), down);
    for _ in 0..3 {
        // A body too must arrive whole at the second server.
        assert_eq!(text(servers.client().send(hello()).await.unwrap()).await, "hello");
        assert_eq!(servers.in_use(), up);
    }
    assert_eq!(servers.requests(), 4);
}

#[tokio::test]
async fn an_error_is_the_callers_where_no_server_is_up() {
    let (one, two) = (closed().await, closed().await);
    let servers = access(&[&one, &two]).await;
    let error = servers.client().send(hello()).await.err().unwrap();
    assert!(unanswered(&error), "{error:?}");
    assert_eq!(servers.requests(), 2);
}

#[tokio::test]
async fn a_server_that_takes_connections_and_answers_nothing_is_left() {
    let (silent, up) = (server(Manner::Silent).await, server(Manner::Echo).await);
    let servers = access(&[&silent, &up]).await;
    let client = servers.client();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.send(hello()).await.map(|_| ()) }
    });
    let patient = PATIENCE + Duration::from_millis(100);
    assert!(tokio::time::timeout(patient, client.send(hello())).await.is_err());
    // What else waits for that server does not wait on.
    assert!(unanswered(&waiting.await.unwrap().unwrap_err()));
    assert_eq!(servers.in_use(), up);
    assert_eq!(text(client.send(hello()).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn a_stream_ends_when_its_server_is_given_up() {
    let only = server(Manner::Begin).await;
    let servers = access(&[&only]).await;
    let body = servers.client().send(hello()).await.unwrap().into_body();
    let reading = tokio::spawn(body.collect_bytes());
    servers.give_up();
    let read = tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
    assert!(read.is_err(), "the stream went on: {read:?}");
}

#[tokio::test]
async fn a_busy_server_is_left_and_its_streams_go_on() {
    let (busy, up) = (server(Manner::Busy).await, server(Manner::Echo).await);
    let servers = access(&[&busy, &up]).await;
    let stream = servers.servers.list[0].given_up.subscribe();
    let answer = servers.client().send(hello()).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(servers.in_use(), up);
    assert!(!stream.has_changed().unwrap());
}

/// Whether the streams of a server end which left a request without an answer.
async fn is_given_up(manner: Manner) -> bool {
    let only = server(manner).await;
    let servers = access(&[&only]).await;
    let client = servers.client();
    let stream = servers.servers.list[0].given_up.subscribe();
    let patient = PATIENCE + Duration::from_millis(100);
    assert!(tokio::time::timeout(patient, client.send(hello())).await.is_err());
    while servers.servers.list[0].asked.load(Ordering::Relaxed) {
        tokio::task::yield_now().await;
    }
    stream.has_changed().unwrap()
}

#[tokio::test]
async fn a_request_that_a_living_server_left_unanswered_severs_nothing() {
    assert!(!is_given_up(Manner::Slow).await);
    for refused in [401, 403, 404, 429] {
        assert!(!is_given_up(Manner::Says(refused)).await, "{refused}: it lives, and is asked the wrong way");
    }
}

#[tokio::test]
async fn a_server_that_says_of_itself_that_it_does_not_live_is_given_up() {
    for broken in [500, 503] {
        assert!(is_given_up(Manner::Says(broken)).await, "{broken}");
    }
}
