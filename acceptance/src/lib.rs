//! A whole cloud for one test, used as its users use it: through the `tombolo` command and the public doors.
//!
//! The cloud is on a leash: when the test ends, also by a panic or by `kill -9`, its standard input closes and it takes
//! itself down. Start with [`Cloud::up`].

#![allow(clippy::unwrap_used)]

pub mod journey;
pub mod line;
pub mod tunnel;
pub mod wire;

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub const REGION: &str = "asia-northeast1";
pub const ZONE: &str = "asia-northeast1-b";

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cloud {
    pub name: String,
    pub door: SocketAddr,
    pub token: String,
    process: Child,
    leash: Option<ChildStdin>,
}

/// What one command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: &Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// The standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.out
    }
}

/// An answer of an API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

/// The program under test: next to this test's own binary.
pub fn tombolo() -> PathBuf {
    let me = std::env::current_exe().expect("a test knows its own path");
    // Tests lie in target/<profile>/deps, programs one directory above.
    let near = me.ancestors().skip(1).take(2).map(|dir| dir.join("tombolo")).find(|path| path.is_file());
    near.unwrap_or_else(|| panic!("no tombolo near {}: run `cargo build --package tombolo` first", me.display()))
}

impl Cloud {
    /// A throwaway cloud with nothing in it.
    pub fn up() -> Cloud {
        Cloud::start(&fresh_name(), true, &[])
    }

    pub fn up_with(args: &[&str]) -> Cloud {
        Cloud::start(&fresh_name(), true, args)
    }

    /// A cloud that keeps its state between [`Cloud::down`] and the next `start` of the same name; the test removes it.
    pub fn start(name: &str, ephemeral: bool, args: &[&str]) -> Cloud {
        let mut command = Command::new(tombolo());
        command.args(["up", "--leash", "--cloud", name]).args(args);
        if ephemeral {
            command.arg("--ephemeral");
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tombolo starts");
        let leash = process.stdin.take();
        let mut lines = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        // From here on it is taken down also when something below panics.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut cloud = Cloud { name: name.to_owned(), door: nowhere, token: String::new(), process, leash };
        let ready = lines.next().and_then(Result::ok).unwrap_or_default();
        let door = ready.rsplit("http://").next().and_then(|d| d.parse().ok());
        cloud.door = door.unwrap_or_else(|| panic!("no ready line but {ready:?}"));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let token =
            std::fs::read_to_string(cloud.state_dir().join("control/admin-token")).expect("the operator's token");
        cloud.token = token.trim().to_owned();
        cloud
    }

    /// A cloud that keeps its state, under a fresh name. Ends with [`Cloud::forget`].
    pub fn kept() -> Cloud {
        Cloud::start(&fresh_name(), false, &[])
    }

    /// Takes the cloud down in order and waits for it.
    pub fn down(mut self) {
        self.end();
    }

    /// Takes the cloud down and its state away.
    pub fn forget(mut self) {
        self.end();
        self.remove_state();
    }

    fn remove_state(&self) {
        let state = self.state_dir();
        drop(std::fs::remove_dir_all(&state));
        // Shared by all clouds of the machine; the last one removes it.
        drop(state.parent().map(std::fs::remove_dir));
    }

    fn end(&mut self) {
        drop(self.leash.take());
        let deadline = Instant::now() + PATIENCE;
        while self.process.try_wait().is_ok_and(|s| s.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(self.process.kill());
        drop(self.process.wait());
    }

    /// The process id of the supervisor.
    pub fn supervisor(&self) -> u32 {
        self.process.id()
    }

    /// Process ids of a role, by the name it gives itself.
    pub fn pids(&self, role: &str) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
            let named = words.first().is_some_and(|w| w.ends_with(format!("tombolo-{role}").as_bytes()));
            if named && words.contains(&self.name.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// `kill -9` of a role; it is gone when this returns.
    pub fn kill(&self, role: &str) {
        let pids = self.pids(role);
        assert_eq!(pids.len(), 1, "one {role} process");
        signal("-9", pids[0]);
        until("the end of a killed process", || if is_dead(pids[0]) { Ok(()) } else { Err(format!("{role} lives")) });
    }

    /// Keeps the supervisor from starting again what dies, until the answer is dropped.
    pub fn hold_supervisor(&self) -> Held {
        let pid = i32::try_from(self.supervisor()).expect("a pid");
        signal("-STOP", pid);
        Held(pid)
    }

    /// Waits until exactly one process has the role.
    #[track_caller]
    pub fn is_back(&self, role: &str) {
        until(&format!("the next {role}"), || match self.pids(role).len() {
            1 => Ok(()),
            count => Err(format!("{count} of them")),
        });
    }

    /// Waits until the kernel, read anew by netlink dumps, holds what the plans say.
    #[track_caller]
    pub fn kernel_equals_plan(&self) {
        until("kernel and plans to be equal", || match self.tombolo("verify", &[]) {
            said if said.code == Some(0) => Ok(()),
            said => Err(said.out + &said.err),
        });
    }

    /// `tombolo <args>` against this cloud.
    pub fn tombolo(&self, command: &str, args: &[&str]) -> Said {
        let mut words = vec![command, "--cloud", &self.name];
        words.extend(args);
        Said::of(&Command::new(tombolo()).args(words).stdin(Stdio::null()).output().expect("tombolo starts"))
    }

    /// A command in a VM.
    pub fn in_vm(&self, vm: &str, script: &str) -> Said {
        self.tombolo("ssh", &[vm, "--", "sh", "-c", script])
    }

    /// The environment of `tombolo env`, as pairs.
    pub fn env(&self) -> Vec<(String, String)> {
        let text = self.tombolo("env", &[]).ok();
        let pairs = text.lines().filter_map(|l| l.strip_prefix("export ")?.split_once('='));
        pairs.map(|(k, v)| (k.to_owned(), v.trim_matches('\'').to_owned())).collect()
    }

    /// The real `gcloud`, unmodified, pointed at this cloud.
    pub fn gcloud(&self, args: &str) -> Said {
        self.gcloud_with(&[], args)
    }

    /// The same with a home directory of its own: SSH keys and known hosts are kept there.
    pub fn gcloud_at_home(&self, home: &Path, args: &str) -> Said {
        self.gcloud_with(&[("HOME", home)], args)
    }

    fn gcloud_with(&self, env: &[(&str, &Path)], args: &str) -> Said {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("gcloud {args}")]).envs(env.iter().copied());
        command.env("CLOUDSDK_CORE_DISABLE_PROMPTS", "1").env_remove("NO_PROXY").env_remove("no_proxy");
        Said::of(&command.envs(self.env()).stdin(Stdio::null()).output().expect("sh starts"))
    }

    /// One call with the operator's token.
    pub fn call(&self, method: &str, host: &str, path: &str, body: Option<Value>) -> Answer {
        self.call_as(Some(&self.token), method, host, path, body)
    }

    pub fn call_as(&self, token: Option<&str>, method: &str, host: &str, path: &str, body: Option<Value>) -> Answer {
        self.exchange(token, method, host, path, body.as_ref()).expect("the door answers")
    }

    /// As [`Cloud::call`] where there may be nobody to answer; None when no whole answer came.
    pub fn try_call(&self, method: &str, host: &str, path: &str, body: &Value) -> Option<Answer> {
        self.exchange(Some(&self.token), method, host, path, Some(body)).ok()
    }

    fn exchange(
        &self,
        token: Option<&str>,
        method: &str,
        host: &str,
        path: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let authorization = token.map(|t| format!("Authorization: Bearer {t}\r\n")).unwrap_or_default();
        let mut stream = TcpStream::connect(self.door)?;
        stream.set_read_timeout(Some(PATIENCE * 3))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Content-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(cut)?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let text = String::from_utf8_lossy(&answer[end + 4..]).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(cut)?;
        Ok(Answer { status, head, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    /// A Compute call that must succeed, awaited until its operation is done; returns the operation.
    #[track_caller]
    pub fn compute(&self, method: &str, path: &str, body: Value) -> Value {
        let operation = self.compute_fails(method, path, body);
        assert!(operation["error"].is_null(), "{method} {path}: {operation}");
        operation
    }

    /// As [`Cloud::compute`], but the operation may have failed.
    #[track_caller]
    pub fn compute_fails(&self, method: &str, path: &str, body: Value) -> Value {
        let first = self.call(method, "compute.googleapis.com", &format!("/compute/v1/{path}"), Some(body));
        assert_eq!(first.status, 200, "{method} {path}: {}", first.body);
        let link = first.body["selfLink"].as_str().expect("an operation").to_owned();
        let at = link.find("/compute/v1/").expect("a compute link");
        let mut operation = first.body;
        while operation["status"] != "DONE" {
            operation =
                self.call("POST", "compute.googleapis.com", &format!("{}/wait", &link[at..]), Some(json!({}))).body;
        }
        operation
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.call("GET", "compute.googleapis.com", &format!("/compute/v1/{path}"), None);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.body
    }

    /// Reads the bindings of a resource's policy, and writes them back as `edit` leaves them.
    #[track_caller]
    pub fn change_policy(&self, host: &str, resource: &str, edit: impl FnOnce(&mut Vec<Value>)) {
        let read = self.call("POST", host, &format!("{resource}:getIamPolicy"), Some(json!({})));
        assert_eq!(read.status, 200, "{resource}: {}", read.body);
        let mut policy = read.body;
        let mut bindings = policy["bindings"].as_array().cloned().unwrap_or_default();
        edit(&mut bindings);
        policy["bindings"] = bindings.into();
        let written = self.call("POST", host, &format!("{resource}:setIamPolicy"), Some(json!({"policy": policy})));
        assert_eq!(written.status, 200, "{resource}: {}", written.body);
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            // The supervisor may be dead already, and what it kept still standing.
            drop(self.tombolo("down", &[]));
            self.remove_state();
        }
    }
}

/// A supervisor that does nothing.
pub struct Held(i32);

impl Drop for Held {
    fn drop(&mut self) {
        signal("-CONT", self.0);
    }
}

pub fn signal(signal: &str, pid: i32) {
    assert!(
        Command::new("kill").args([signal, &pid.to_string()]).status().is_ok_and(|s| s.success()),
        "kill {signal} {pid}"
    );
}

/// Also while its parent has not looked yet.
pub fn is_dead(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z') || rest.starts_with('X'))
}

/// Whether a stock client is installed; a test that needs it and does not find it says so and is counted.
pub fn installed(program: &str, test: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).output().is_ok_and(|o| o.status.success());
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// A home directory for one user of one test: keys and configuration of clients are kept there.
pub struct Home(PathBuf);

impl Home {
    pub fn of(cloud: &Cloud) -> Home {
        let home = std::env::temp_dir().join(format!("tombolo-home-{}", cloud.name));
        std::fs::create_dir_all(home.join(".ssh")).expect("a directory for temporary files");
        Home(home)
    }
}

impl std::ops::Deref for Home {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Says that something was not tested. The harness captures what tests print; the counter reads the real standard output.
pub fn skip(test: &str, why: &str) {
    tell(&format!("SKIPPED {test}: {why}"));
}

/// Prints past the harness.
pub fn tell(line: &str) {
    let mut stdout = std::fs::File::options().append(true).open("/dev/stdout").expect("stdout");
    drop(writeln!(stdout, "{line}"));
}

/// Asks until the answer is there; panics with the last one when patience ends.
#[track_caller]
pub fn until<T: std::fmt::Debug>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) if Instant::now() > deadline => panic!("{what}: still {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

pub fn fresh_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 64;
    let mut name = String::from("t");
    let mut rest = n % 36_u32.pow(5);
    for _ in 0..5 {
        name.push(char::from_digit(rest % 36, 36).expect("below 36"));
        rest /= 36;
    }
    name
}
