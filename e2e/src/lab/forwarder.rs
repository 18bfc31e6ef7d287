//! A TCP forwarder from the host's loopback into the lab's network namespace.

use super::error::{During, LabError};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Forwards until it is dropped.
#[derive(Debug)]
pub struct Forwarder {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Forwarder {
    /// Listens on a free port of the loopback and forwards to `target` in the namespace.
    ///
    /// # Errors
    /// When the namespace or a port cannot be had.
    pub fn start(netns: &str, target: SocketAddr) -> Result<Self, LabError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during("listen on", "the loopback")?;
        let port = listener.local_addr().during("read", "the forwarder's port")?.port();
        let path = format!("/run/netns/{netns}");
        let namespace = File::open(&path).during("open", &path)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        // The listener stays where it was made; the thread, and with it all connections that it makes,
        // is in the namespace.
        std::thread::spawn(move || {
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || forward(client, target));
            }
        });
        Ok(Self { port, stop })
    }

    /// The port on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, so that it leaves the namespace.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// Copies both ways until one side ends; a target that refuses shows as a closed connection.
fn forward(client: TcpStream, target: SocketAddr) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(mut from_client), Ok(mut from_server)) = (client.try_clone(), server.try_clone()) else { return };
    let (mut to_client, mut to_server) = (client, server);
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut from_client, &mut to_server);
    let _ = to_server.shutdown(Shutdown::Both);
    let _ = back.join();
}
