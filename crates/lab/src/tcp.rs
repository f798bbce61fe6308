//! A tiny TCP server: greets every client with the address it sees, then echoes.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Runs until dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    clients: Arc<Mutex<Vec<SocketAddr>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    pub fn on(listener: TcpListener) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let clients = Arc::new(Mutex::new(Vec::new()));
        let (until, seen) = (stop.clone(), clients.clone());
        let acceptor = thread::spawn(move || accept(&listener, &until, &seen));
        Ok(Server { stop, clients, acceptor: Some(acceptor) })
    }

    /// Who has connected, as the server saw them.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &Arc<AtomicBool>, seen: &Mutex<Vec<SocketAddr>>) {
    let mut echoes = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => {
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
                let stop = stop.clone();
                echoes.push(thread::spawn(move || echo(stream, peer, &stop)));
            }
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
    for echo in echoes {
        let _ = echo.join();
    }
}

fn echo(mut stream: TcpStream, peer: SocketAddr, stop: &AtomicBool) {
    let poll = Some(Duration::from_millis(20));
    if stream.set_nonblocking(false).and(stream.set_read_timeout(poll)).is_err() {
        return;
    }
    let mut greeted = writeln!(stream, "{peer}");
    let mut buffer = [0; 4096];
    while greeted.is_ok() && !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => greeted = stream.write_all(&buffer[..len]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// Reads the server's greeting: the address under which it sees the other end.
pub fn greeting(stream: &mut TcpStream) -> io::Result<SocketAddr> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).parse().map_err(io::Error::other)
}

/// Sends the text and waits for its echo.
pub fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
