//! A client of the public doors, as small as they allow: one request, one connection, JSON in and out.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};

use crate::Outcome;

/// An answer that takes longer is a defect; `operations.wait` may take two minutes.
const ANSWER_MAX: Duration = Duration::from_secs(130);

pub struct Client {
    pub door: SocketAddr,
    pub token: String,
}

pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Client {
    /// Sends one request to `host` through the door.
    pub fn call(&self, method: &str, host: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = TcpStream::connect(self.door)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nUser-Agent: tombolo-demo\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.token,
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
    }

    /// A GET through the door as a transparent proxy: CONNECT, then TLS that ends at a leaf under the cloud's own CA.
    pub fn get_tls(&self, host: &str, path: &str, ca: &Path) -> Outcome<Answer> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(host.to_owned())?;
        let mut stream = TcpStream::connect(self.door)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let connection = ClientConnection::new(Arc::new(config), name)?;
        let mut tls = StreamOwned::new(connection, stream);
        write!(
            tls,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
            self.token
        )?;
        let mut answer = Vec::new();
        match tls.read_to_end(&mut answer) {
            // The other side may close without TLS's own goodbye; the answer says where it ends.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error.into()),
        }
        parse(&answer).ok_or_else(|| "not an HTTP answer".into())
    }

    /// A call that must succeed.
    pub fn ok(&self, method: &str, host: &str, path: &str, body: Option<&Value>) -> Outcome<Value> {
        let answer = self.call(method, host, path, body)?;
        if answer.status >= 300 {
            let message =
                answer.body["error"]["message"].as_str().map_or_else(|| answer.body.to_string(), str::to_owned);
            return Err(format!("{method} https://{host}{path} answered {}: {message}", answer.status).into());
        }
        Ok(answer.body)
    }

    /// A Compute mutation, awaited until packets obey it.
    pub fn compute(&self, method: &str, path: &str, body: &Value) -> Outcome<Value> {
        let operation = self.ok(method, COMPUTE, &format!("/compute/v1/{path}"), Some(body))?;
        let link = operation["selfLink"].as_str().ok_or("an operation without a selfLink")?;
        let at = link.find("/compute/v1/").ok_or("a selfLink of another API")?;
        let wait = format!("{}/wait", &link[at..]);
        let mut operation = operation.clone();
        let deadline = Instant::now() + ANSWER_MAX;
        while operation["status"] != "DONE" && Instant::now() < deadline {
            operation = self.ok("POST", COMPUTE, &wait, Some(&json!({})))?;
        }
        match operation["error"]["errors"][0]["message"].as_str() {
            Some(message) => Err(format!("{method} {path}: {message}").into()),
            None => Ok(operation),
        }
    }

    pub fn get(&self, path: &str) -> Outcome<Value> {
        self.ok("GET", COMPUTE, &format!("/compute/v1/{path}"), None)
    }
}

pub const COMPUTE: &str = "compute.googleapis.com";

fn parse(bytes: &[u8]) -> Option<Answer> {
    let head_end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..head_end]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[head_end + 4..];
    let body =
        serde_json::from_slice(body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()));
    Some(Answer { status, body })
}
