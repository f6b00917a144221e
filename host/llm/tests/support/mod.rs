//! A server with scripted answers that records its requests.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The answer to every request, sent once the request is read whole.
#[derive(Clone)]
pub(crate) enum Script {
    /// Sends these bytes and closes the connection.
    Answer(Vec<u8>),
    /// Sends these bytes and then nothing more.
    Stall(Vec<u8>),
    /// Sends the first bytes, then the second ones repeatedly until the client disconnects.
    Endless(Vec<u8>, Vec<u8>),
}

/// An action of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The client sent a request.
    Request(Recorded),
    /// The client closed the connection before the end of the answer.
    Gone,
}

/// A recorded request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// The request line.
    pub(crate) line: String,
    /// The headers, with names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Recorded {
    /// All values of a header.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A server on a free port, which ends with the runtime of its test.
pub(crate) struct Server {
    pub(crate) origin: String,
    seen: UnboundedReceiver<Seen>,
}

impl Server {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (sender, seen) = unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, script.clone(), sender.clone()));
            }
        });
        Self { origin, seen }
    }

    /// Waits for the next action of a client.
    pub(crate) async fn next(&mut self) -> Seen {
        self.seen.recv().await.unwrap()
    }

    /// Waits for the next request.
    pub(crate) async fn request(&mut self) -> Recorded {
        match self.next().await {
            Seen::Request(request) => request,
            Seen::Gone => panic!("the client closed the connection"),
        }
    }

    /// Returns the recorded actions that were not yet taken.
    pub(crate) fn rest(&mut self) -> Vec<Seen> {
        std::iter::from_fn(|| self.seen.try_recv().ok()).collect()
    }
}

async fn serve(mut stream: TcpStream, script: Script, seen: UnboundedSender<Seen>) {
    let Some(request) = read_request(&mut stream).await else { return };
    // Fails if the test has ended.
    let _ = seen.send(Seen::Request(request));
    let gone = match script {
        Script::Answer(answer) => stream.write_all(&answer).await.is_err(),
        Script::Stall(begin) => {
            stream.write_all(&begin).await.is_err() || !matches!(stream.read(&mut [0]).await, Ok(1..))
        }
        Script::Endless(begin, more) => {
            let mut sent = stream.write_all(&begin).await;
            while sent.is_ok() {
                sent = stream.write_all(&more).await;
                tokio::task::yield_now().await;
            }
            true
        }
    };
    if gone {
        let _ = seen.send(Seen::Gone);
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Recorded> {
    let mut bytes = Vec::new();
    let head_bytes = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        read_more(stream, &mut bytes).await?;
    };
    let head = String::from_utf8(bytes[..head_bytes].to_vec()).unwrap();
    let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
    let line = lines.next().unwrap().to_string();
    let headers: Vec<_> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_string()))
        .collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").unwrap().1.parse::<usize>().unwrap();
    while bytes.len() < head_bytes + length {
        read_more(stream, &mut bytes).await?;
    }
    Some(Recorded { line, headers, body: bytes.split_off(head_bytes) })
}

async fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(bytes).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}

/// A complete answer.
pub(crate) fn answer(status: &str, body: &str) -> Script {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    Script::Answer([head.as_bytes(), body.as_bytes()].concat())
}

/// The head of a chunked answer.
pub(crate) const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// A chunk of `bytes` spaces.
pub(crate) fn chunk(bytes: usize) -> Vec<u8> {
    [format!("{bytes:x}\r\n").as_bytes(), &vec![b' '; bytes], b"\r\n"].concat()
}
