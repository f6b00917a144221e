//! A network link between clients and a server, which can drop all packets.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Forwards the connections to a port of 127.0.0.1 to another port, while the link is up.
#[derive(Debug)]
pub(crate) struct Link {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    is_down: AtomicBool,
    ends: AtomicBool,
    connections: Mutex<Vec<Weak<Connection>>>,
}

/// Both ends of a connection through the link. They close when the last thread that forwards ends.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    /// `None` if the link was down when the client connected.
    server: Option<TcpStream>,
    /// Whether sent bytes were dropped. Such a connection must not continue.
    has_lost: AtomicBool,
}

impl Link {
    /// Starts a link to a port of 127.0.0.1. The server may start to listen later.
    pub(crate) fn start(target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            target,
            is_down: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.ends.load(Ordering::SeqCst) {
                    return;
                }
                // If the server refuses the connection, the client's end is closed.
                let _ = accepting.connect(client);
            }
        });
        Ok(Self { port, shared })
    }

    /// Returns the port for clients.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Drops everything that is sent from now on. Connections stay open, and new ones get no
    /// response.
    pub(crate) fn cut(&self) {
        self.shared.is_down.store(true, Ordering::SeqCst);
    }

    /// Forwards again. Connections on which bytes were dropped are closed.
    pub(crate) fn heal(&self) {
        self.shared.is_down.store(false, Ordering::SeqCst);
        for connection in self.shared.connections() {
            if connection.has_lost.load(Ordering::SeqCst) {
                connection.close();
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        for connection in self.shared.connections() {
            connection.close();
        }
        // Wakes the accepting thread.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn connections(&self) -> Vec<Arc<Connection>> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.iter().filter_map(Weak::upgrade).collect()
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let is_down = self.is_down.load(Ordering::SeqCst);
        let server = if is_down { None } else { Some(self.connect_to_server()?) };
        let connection = Arc::new(Connection { client, server, has_lost: AtomicBool::new(is_down) });
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&connection));
        if is_down && !self.is_down.load(Ordering::SeqCst) {
            // The link was healed before it recorded this connection.
            connection.close();
        }
        for is_request in [true, false] {
            let (shared, connection) = (self.clone(), connection.clone());
            std::thread::spawn(move || {
                // An error ends the connection, as any other end does.
                if shared.copy(&connection, is_request).is_err() {
                    connection.close();
                }
            });
        }
        Ok(())
    }

    fn connect_to_server(&self) -> io::Result<TcpStream> {
        let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.target)))?;
        server.set_nodelay(true)?;
        Ok(server)
    }

    /// Forwards one direction until it ends. While the link is down, drops what it reads.
    fn copy(&self, connection: &Connection, is_request: bool) -> io::Result<()> {
        let Some(server) = &connection.server else {
            return if is_request { swallow(&connection.client) } else { Ok(()) };
        };
        let (mut from, mut to) = (&connection.client, server);
        if !is_request {
            (from, to) = (to, from);
        }
        let mut bytes = vec![0; 1 << 16];
        loop {
            let read = from.read(&mut bytes);
            if self.is_down.load(Ordering::SeqCst) || connection.has_lost.load(Ordering::SeqCst) {
                // The end of the stream is not forwarded either.
                connection.has_lost.store(true, Ordering::SeqCst);
                if !matches!(read, Ok(1..)) {
                    return Ok(());
                }
                continue;
            }
            let read = bytes.get(..read?).unwrap_or_default();
            if read.is_empty() {
                return to.shutdown(Shutdown::Write);
            }
            to.write_all(read)?;
        }
    }
}

/// Reads and discards until the client gives up or the connection is closed.
fn swallow(mut client: &TcpStream) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    while client.read(&mut bytes)? > 0 {}
    Ok(())
}

impl Connection {
    /// Shuts down both directions of both ends.
    fn close(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
        if let Some(server) = &self.server {
            let _ = server.shutdown(Shutdown::Both);
        }
    }
}
