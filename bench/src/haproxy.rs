//! The peer for requests: HAProxy with one thread, connections to the backend kept and shared, and its HTTP log on.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::Outcome;

const START_MAX: Duration = Duration::from_secs(5);

pub struct HaProxy {
    process: Child,
    pub address: SocketAddr,
}

impl HaProxy {
    /// Starts one before `backend`, with configuration and log in `dir`.
    pub fn start(dir: &Path, backend: SocketAddr) -> Outcome<HaProxy> {
        // Free a moment ago; nobody else binds ports here while benches run.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = dir.join("haproxy.cfg");
        fs::write(&config, text(address, backend))?;
        let log = File::create(dir.join("haproxy.log"))?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        let process = command.spawn().map_err(|e| format!("cannot start haproxy: {e}"))?;
        let haproxy = HaProxy { process, address };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            if start.elapsed() > START_MAX {
                return Err("haproxy does not listen".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(haproxy)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn text(address: SocketAddr, backend: SocketAddr) -> String {
    format!(
        "global
  nbthread 1
  maxconn 4096
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  option forwardfor
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind {address}
  default_backend b
backend b
  server s1 {backend} pool-max-conn 256
"
    )
}
