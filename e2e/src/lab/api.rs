//! Fast writes to the API server: HTTP through `kubectl proxy`, many at once. kubectl itself takes 50 ms a
//! call and limits its own rate.

use super::cluster::Cluster;
use super::error::{During, LabError};
use super::process::{Process, wait_for};
use super::site::Site;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A running proxy. Dropping it ends it.
#[derive(Debug)]
pub struct Api {
    _proxy: Process,
    port: u16,
}

/// An answer of the API server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers and body as they came.
    pub text: String,
}

impl Api {
    /// Starts the proxy.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(site: &Site, cluster: &Cluster) -> Result<Self, LabError> {
        let log = site.log("kubectl-proxy");
        let kubectl = cluster.kubectl_program().display().to_string();
        let kubeconfig = cluster.kubeconfig().display().to_string();
        let proxy =
            Process::start(None, &log, &[&kubectl, "--kubeconfig", &kubeconfig, "proxy", "--port=0"])?;
        let port = wait_for("kubectl proxy", Duration::from_secs(20), &log, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(text.lines().next().and_then(|line| line.rsplit(':').next()?.trim().parse().ok()))
        })?;
        Ok(Self { _proxy: proxy, port })
    }

    /// Sends one request.
    ///
    /// # Errors
    /// When the proxy does not answer; an answer that says no is an answer.
    pub fn send(&self, method: &str, path: &str, content_type: &str, body: &str) -> Result<Answer, LabError> {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).during("connect to", "kubectl proxy")?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).during("write to", "kubectl proxy")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text).during("read from", "kubectl proxy")?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok(Answer { status, text })
    }

    /// Sends a GET whose answer does not end, and returns the connection it comes by: head, then chunks.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub fn stream(&self, path: &str) -> Result<TcpStream, LabError> {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).during("connect to", "kubectl proxy")?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).during("write to", "kubectl proxy")?;
        Ok(stream)
    }

    /// Creates objects, eight at a time.
    ///
    /// # Errors
    /// The first that is refused.
    pub fn create(&self, objects: &[(String, Value)]) -> Result<(), LabError> {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((path, object)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                let answer = self.send("POST", path, "application/json", &object.to_string())?;
                accepted(path, &answer)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
        })
    }

    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    /// When it is refused.
    pub fn merge(&self, path: &str, patch: &Value) -> Result<(), LabError> {
        let answer = self.send("PATCH", path, "application/merge-patch+json", &patch.to_string())?;
        accepted(path, &answer)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When it is refused.
    pub fn delete(&self, path: &str) -> Result<(), LabError> {
        let answer = self.send("DELETE", path, "application/json", "")?;
        accepted(path, &answer)
    }
}

fn accepted(path: &str, answer: &Answer) -> Result<(), LabError> {
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    Err(LabError::Command {
        command: format!("write {path}"),
        code: answer.status.to_string(),
        output: answer.text.lines().last().unwrap_or_default().to_owned(),
    })
}
