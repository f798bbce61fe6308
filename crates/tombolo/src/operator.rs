//! The operator's socket: what is no public API. Root on this machine may ask; nobody else gets an answer, and no
//! workload can reach it.

use std::{
    collections::BTreeMap,
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Outcome, cloud::Dirs};

/// An answer that takes longer than this is a defect worth an error message.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Operators asking at once.
const ASKING_MAX: usize = 32;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Answered once the door is open, and not before.
    Ready,
    Status,
    /// Which workload a VM is. Without a project, the VM's name must be the only one of its kind.
    FindVm {
        project: Option<String>,
        name: String,
    },
    /// That a client may act as a user: what `gcloud auth login --no-launch-browser` shows.
    Consent {
        email: String,
        url: String,
    },
    /// An image that the image role has unpacked.
    AddImage(Box<control::world::ImageRecord>),
    /// What is known of a packet from a VM to an address or a VM's name.
    WhyPacket {
        project: Option<String>,
        vm: String,
        to: String,
    },
    /// What is known of a service, and an ID token for it: of this account, for this audience or one that it expects.
    WhyRequest {
        service: model::run::ServiceKey,
        account: Option<String>,
        audience: Option<String>,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    Ready {
        door: std::net::SocketAddr,
    },
    Status(Status),
    Vm {
        workload: String,
        project: String,
        zone: String,
    },
    Case(Box<control::why::Case>),
    Backend {
        backend: Box<control::why::Backend>,
        token: Option<String>,
        audience: Option<String>,
    },
    /// What the client asks for, and where a browser would take it.
    Code {
        code: String,
        location: String,
    },
    Done,
    /// Not before it has started.
    NotYet,
    Refused(String),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub door: Option<std::net::SocketAddr>,
    pub revision: u64,
    /// Numbers of things, by what they are.
    pub counts: BTreeMap<String, usize>,
    pub vms: Vec<String>,
    pub services: Vec<String>,
}

/// Asks the cloud's control process.
pub fn ask(dirs: &Dirs, ask: &Ask) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(dirs.socket("operator.sock"))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    ipc::send(&stream, ask, &[])?;
    ipc::read(&mut stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// [`ask`] for commands: the error says what to do.
pub fn ask_running(dirs: &Dirs, question: &Ask) -> Outcome<Answer> {
    match ask(dirs, question) {
        Ok(Answer::Refused(why)) => Err(why.into()),
        Ok(Answer::NotYet) => Err("the cloud is still starting".into()),
        Ok(answer) => Ok(answer),
        Err(error) => {
            let cloud = dirs.run.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(format!(
                "cloud {cloud:?} does not answer ({error}): is it up? Start it with `tombolo up --cloud {cloud}`"
            )
            .into())
        }
    }
}

/// The socket, made while there is still the privilege to make it.
pub fn bind(dirs: &Dirs) -> io::Result<UnixListener> {
    let path = dirs.socket("operator.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the process ends. One thread per operator, of whom there are few.
pub fn serve(listener: UnixListener, answer: impl Fn(Ask) -> Answer + Send + Sync + 'static) -> io::Result<()> {
    let answer = Arc::new(answer);
    std::thread::Builder::new().name("operator".to_owned()).spawn(move || {
        let asking = Arc::new(());
        for stream in listener.incoming().flatten() {
            if Arc::strong_count(&asking) > ASKING_MAX {
                continue;
            }
            let (answer, guard) = (answer.clone(), asking.clone());
            std::thread::spawn(move || {
                let _guard = guard;
                if let Err(error) = converse(stream, &*answer) {
                    eprintln!("control: operator: {error}");
                }
            });
        }
    })?;
    Ok(())
}

fn converse(mut stream: UnixStream, answer: &dyn Fn(Ask) -> Answer) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    if !peer.uid.is_root() {
        return ipc::send(&stream, &Answer::Refused("only root may ask".to_owned()), &[]);
    }
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    while let Some(question) = ipc::read(&mut stream)? {
        ipc::send(&stream, &answer(question), &[])?;
    }
    Ok(())
}

/// Calls `stop` once, when the process is asked to end.
pub fn on_stop_signal(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut term, mut int) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
        stop();
    })?;
    Ok(())
}
