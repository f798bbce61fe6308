//! The program of the built-in images, in one static file without dependencies. Its name decides what it is:
//!
//! - `/hello` serves a page on `$PORT`, as the well-known hello container does;
//! - `/job` prints what a job is told and succeeds;
//! - `/init` is pid 1 of a VM: it waits and reaps, and keeps a service running that it is told of.
//!
//! With `HELLO_TEST=1` the server has more paths, for tests of whoever runs it: see `test_page`.

use std::{
    collections::BTreeMap,
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::exit,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

/// Connections served at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1_024;
/// Largest request head, in bytes, and longest wait for the next request.
const HEAD_BYTES_MAX: u64 = 64 << 10;
const IDLE_MAX: Duration = Duration::from_secs(620);

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

fn main() {
    let name = env::args().next().unwrap_or_default();
    match name.rsplit('/').next() {
        Some("init") => init::run(),
        Some("job") => job(),
        Some(_) | None => serve(),
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn job() {
    println!("Starting task #{}, attempt #{}", variable("CLOUD_RUN_TASK_INDEX"), variable("CLOUD_RUN_TASK_ATTEMPT"));
    println!("Completed task #{} of {}", variable("CLOUD_RUN_TASK_INDEX"), variable("CLOUD_RUN_JOB"));
}

fn serve() {
    let port = variable("PORT").parse().unwrap_or(8080);
    let listener = match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Ok(listener) => listener,
        // A machine without IPv6.
        Err(_) => match TcpListener::bind(("0.0.0.0", port)) {
            Ok(listener) => listener,
            Err(e) => {
                eprintln!("cannot listen on port {port}: {e}");
                exit(1);
            }
        },
    };
    println!("Hello from Cloud Run! The container started and listens for HTTP requests on port {port}");
    for stream in listener.incoming().flatten() {
        while CONNECTIONS.load(Ordering::Acquire) >= CONNECTIONS_MAX {
            thread::sleep(Duration::from_millis(1));
        }
        CONNECTIONS.fetch_add(1, Ordering::AcqRel);
        let converse = move || {
            // A client that goes away is its own business.
            converse(stream).ok();
            CONNECTIONS.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().stack_size(128 << 10).spawn(converse).is_err() {
            CONNECTIONS.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The head of one request. Its body has been read and dropped.
struct Request {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    keep_alive: bool,
    body_bytes: u64,
}

fn converse(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_MAX))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader, &mut writer)? {
        let page = match variable("HELLO_TEST") == "1" {
            true => test_page(&request, &mut writer)?,
            false => Some(hello_page()),
        };
        if let Some(page) = page {
            writer.write_all(&render(&page, &request))?;
        }
        if !request.keep_alive {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream) -> io::Result<Option<Request>> {
    let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut words = line.split_ascii_whitespace();
    let (method, target) = (words.next().ok_or_else(bad)?.to_owned(), words.next().ok_or_else(bad)?.to_owned());
    let version = words.next().ok_or_else(bad)?.to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_ascii_lowercase());
    if header("expect").is_some_and(|v| v == "100-continue") {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let body_bytes = match header("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        true => skip_chunks(reader)?,
        false => {
            let len = header("content-length").map_or(Ok(0), |v| v.parse()).map_err(|_| bad())?;
            io::copy(&mut reader.by_ref().take(len), &mut io::sink())?
        }
    };
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let keep_alive = version == "HTTP/1.1" && header("connection").is_none_or(|v| v != "close");
    Ok(Some(Request { method, path: path.into(), query: query.into(), headers, keep_alive, body_bytes }))
}

fn skip_chunks(reader: &mut BufReader<TcpStream>) -> io::Result<u64> {
    let mut total = 0;
    loop {
        let mut line = String::new();
        reader.by_ref().take(HEAD_BYTES_MAX).read_line(&mut line)?;
        let size = u64::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        total += io::copy(&mut reader.by_ref().take(size), &mut io::sink())?;
        line.clear();
        // The end of the chunk; after the last one, trailers until an empty line.
        while reader.by_ref().take(HEAD_BYTES_MAX).read_line(&mut line)? > 2 && size == 0 {
            line.clear();
        }
        if size == 0 {
            return Ok(total);
        }
    }
}

struct Page {
    status: &'static str,
    kind: &'static str,
    body: String,
}

fn text(body: String) -> Page {
    Page { status: "200 OK", kind: "text/plain; charset=utf-8", body }
}

fn render(page: &Page, request: &Request) -> Vec<u8> {
    let connection = if request.keep_alive { "keep-alive" } else { "close" };
    let body = if request.method == "HEAD" { "" } else { page.body.as_str() };
    let (status, kind, len) = (page.status, page.kind, page.body.len());
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len}\r\nconnection: {connection}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn hello_page() -> Page {
    let escape = |text: String| text.replace('&', "&amp;").replace('<', "&lt;");
    let (service, revision) = (escape(variable("K_SERVICE")), escape(variable("K_REVISION")));
    let body = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <title>Congratulations | Cloud Run</title>\n\
         <style>body{{font:18px/1.5 system-ui,sans-serif;max-width:34em;margin:4em auto;padding:0 1em;color:#222}}\
         h1{{font-size:1.9em;line-height:1.2}}dt{{color:#777;font-size:.8em}}dd{{margin:0 0 1em;font-family:monospace}}\
         </style>\n</head>\n<body>\n<h1>It runs.</h1>\n\
         <p>A container of yours answered this request. It was started for it, and it sleeps when nobody asks.</p>\n\
         <dl>\n<dt>Service</dt><dd>{service}</dd>\n<dt>Revision</dt><dd>{revision}</dd>\n</dl>\n</body>\n</html>\n"
    );
    Page { status: "200 OK", kind: "text/html; charset=utf-8", body }
}

/// Paths for tests. None means that the answer has been written already.
fn test_page(request: &Request, writer: &mut TcpStream) -> io::Result<Option<Page>> {
    let query: BTreeMap<&str, &str> = request.query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let number = |name: &str| query.get(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    Ok(Some(match request.path.as_str() {
        // What arrived, and from whom.
        "/headers" => {
            let mut body = format!("{} {}?{}\n", request.method, request.path, request.query);
            for (name, value) in &request.headers {
                body += &format!("{name}: {value}\n");
            }
            body += &format!("peer: {}\nbody bytes: {}\n", writer.peer_addr()?, request.body_bytes);
            text(body)
        }
        "/sleep" => {
            thread::sleep(Duration::from_millis(number("ms")));
            text("awake\n".into())
        }
        // Five chunks, `ms` apart.
        "/stream" => {
            writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")?;
            for n in 0..5 {
                writer.write_all(format!("8\r\nchunk {n}\n\r\n").as_bytes())?;
                thread::sleep(Duration::from_millis(number("ms")));
            }
            writer.write_all(b"0\r\n\r\n")?;
            return Ok(None);
        }
        "/exit" => exit(i32::try_from(number("code")).unwrap_or(1)),
        "/memory" => {
            let bytes = usize::try_from(number("mb") << 20).unwrap_or(usize::MAX);
            let held = vec![1_u8; bytes];
            std::mem::forget(held);
            text(format!("{bytes} bytes\n"))
        }
        "/env" => text(env::vars().map(|(k, v)| format!("{k}={v}\n")).collect()),
        _ => hello_page(),
    }))
}

/// Pid 1 of a VM. Every process without a parent becomes its child; it reaps them, and on SIGTERM asks all of them to
/// end, waits for that, and ends. Whoever sent the signal sends SIGKILL when that takes too long.
mod init {
    use std::{
        env,
        ffi::{CString, c_char, c_int, c_long},
        ptr::{null, null_mut},
        time::{Duration, Instant},
    };

    const SIG_BLOCK: c_int = 0;
    const SIG_SETMASK: c_int = 2;
    const SIGTERM: c_int = 15;
    const SIGCHLD: c_int = 17;
    const WNOHANG: c_int = 1;
    const F_SETFD: c_int = 2;
    const FD_CLOEXEC: c_int = 1;
    /// A service that ended is not started again before this has passed since its start.
    const RESTART_MIN: Duration = Duration::from_secs(1);

    /// As large as the C library's.
    #[repr(C)]
    struct SignalSet([u64; 16]);

    #[repr(C)]
    struct Time {
        seconds: c_long,
        nanoseconds: c_long,
    }

    unsafe extern "C" {
        fn sigaddset(set: *mut SignalSet, number: c_int) -> c_int;
        fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
        fn sigtimedwait(set: *const SignalSet, details: *mut c_int, wait: *const Time) -> c_int;
        fn kill(pid: c_int, number: c_int) -> c_int;
        fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
        fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
        fn fork() -> c_int;
        fn fexecve(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
        fn _exit(code: c_int) -> !;
        static environ: *const *const c_char;
    }

    /// What is kept running: a program by its descriptor, and its command line.
    struct Service {
        program: c_int,
        argv: Vec<CString>,
        pid: c_int,
        started: Option<Instant>,
    }

    impl Service {
        /// `init FD NAME ARGUMENTS…`; without these there is none.
        fn told() -> Option<Service> {
            let mut args = env::args().skip(1);
            let program = args.next()?.parse().ok()?;
            let argv = args.map(CString::new).collect::<Result<_, _>>().ok()?;
            // SAFETY: takes numbers only. The service itself and whatever it starts need not hold its program.
            unsafe { fcntl(program, F_SETFD, FD_CLOEXEC) };
            Some(Service { program, argv, pid: 0, started: None })
        }

        /// Starts it when it does not run and may; answers how long to wait before it may.
        fn keep(&mut self, before: &SignalSet) -> Option<Duration> {
            if self.pid > 0 {
                return None;
            }
            let rest = self.started.map_or(Duration::ZERO, |at| RESTART_MIN.saturating_sub(at.elapsed()));
            if rest > Duration::ZERO {
                return Some(rest);
            }
            let argv: Vec<*const c_char> = self.argv.iter().map(|arg| arg.as_ptr()).chain([null()]).collect();
            self.started = Some(Instant::now());
            // SAFETY: this process has one thread, so the child may do what it likes; all it is given outlives the call.
            self.pid = unsafe { fork() };
            if self.pid == 0 {
                unsafe {
                    sigprocmask(SIG_SETMASK, before, null_mut());
                    fexecve(self.program, argv.as_ptr(), environ);
                    _exit(127);
                }
            }
            // Where no process could be made, later.
            if self.pid < 0 { Some(RESTART_MIN) } else { None }
        }
    }

    pub fn run() -> ! {
        let (mut signals, mut before) = (SignalSet([0; 16]), SignalSet([0; 16]));
        let mut service = Service::told();
        // Blocked and waited for: a signal that comes at any moment is kept until the next wait.
        // SAFETY: both are valid empty sets.
        unsafe {
            sigaddset(&raw mut signals, SIGTERM);
            sigaddset(&raw mut signals, SIGCHLD);
            sigprocmask(SIG_BLOCK, &raw const signals, &raw mut before);
        }
        let mut ending = false;
        loop {
            // SAFETY: a null status is allowed.
            let last = loop {
                let pid = unsafe { waitpid(-1, null_mut(), WNOHANG) };
                if pid <= 0 {
                    break pid;
                }
                if let Some(service) = service.as_mut().filter(|service| service.pid == pid) {
                    service.pid = 0;
                }
            };
            // Minus one means that there are no children. Processes that others brought in are nobody's here, so
            // signal 0 asks whether anybody is left at all.
            // SAFETY: takes numbers only; -1 is everybody but us.
            if ending && last < 0 && unsafe { kill(-1, 0) } < 0 {
                std::process::exit(0);
            }
            let rest = service.as_mut().filter(|_| !ending).and_then(|service| service.keep(&before));
            // While ending look again soon: the end of somebody else's child comes with no signal.
            let soon = match rest {
                Some(rest) => Time { seconds: 0, nanoseconds: rest.subsec_nanos().max(1).into() },
                None => Time { seconds: 0, nanoseconds: 20_000_000 },
            };
            let wait = if ending || rest.is_some() { &raw const soon } else { null() };
            // SAFETY: all that is pointed to outlives the call; no details of the signal are wanted.
            if unsafe { sigtimedwait(&raw const signals, null_mut(), wait) } == SIGTERM {
                ending = true;
                // SAFETY: as above.
                unsafe { kill(-1, SIGTERM) };
            }
        }
    }
}
