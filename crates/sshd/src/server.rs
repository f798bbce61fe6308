//! One connection: who is let in, and what each channel of it does.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, SystemTime},
};

use model::{
    limits::{SSH_CHANNELS_MAX, SSH_ENV_BYTES_MAX, SSH_ENV_MAX, SSH_FORWARD_CONNECT_MAX},
    time::Timestamp,
};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, Pty, Sig,
    keys::PublicKey,
    server::{Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use tokio::{
    net::TcpStream,
    process::Child,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use crate::{
    accounts::{Account, Accounts, Wanted},
    keys::OsLogin,
    metadata,
    process::{Program, Sink, Started, Surroundings, Terminal, Window, pour, signal, start},
};

/// Extended data of this kind is standard error. Source: RFC 4254, 5.2.
const STDERR: u32 = 1;

/// How long a terminal may be silent after the end of its process.
const LAST_WORDS_MAX: Duration = Duration::from_millis(100);

/// The state of one connection.
pub(crate) struct Login {
    accounts: Arc<Accounts>,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    account: Option<Account>,
    /// Dropped with a login, and with the connection.
    waiting: Option<oneshot::Sender<()>>,
    channels: HashMap<ChannelId, Behind>,
    places: Arc<Semaphore>,
}

/// What is behind a channel.
struct Behind {
    env: Vec<(String, String)>,
    window: Option<(String, Window)>,
    /// Until something runs.
    idle: Option<(Channel<Msg>, OwnedSemaphorePermit)>,
    pid: Option<u32>,
    terminal: Option<Terminal>,
}

impl Login {
    pub(crate) fn new(accounts: Arc<Accounts>, peer: SocketAddr, local: Option<SocketAddr>) -> Login {
        Login {
            accounts,
            peer,
            local,
            account: None,
            waiting: None,
            channels: HashMap::new(),
            places: Arc::new(Semaphore::new(SSH_CHANNELS_MAX)),
        }
    }

    /// Ends when somebody has logged in, or has gone.
    pub(crate) fn deadline(&mut self) -> oneshot::Receiver<()> {
        let (waiting, over) = oneshot::channel();
        self.waiting = Some(waiting);
        over
    }

    /// Asks the metadata server, now. None: this key is not let in as this user.
    async fn admits(&mut self, user: &str, key: &PublicKey) -> Option<Wanted> {
        let attributes = match metadata::attributes().await {
            Ok(attributes) => attributes,
            Err(error) => {
                eprintln!("sshd: cannot ask who may log in: {error}");
                return None;
            }
        };
        match attributes.admit(user, key, now()) {
            Ok(admitted) => admitted.then(|| Wanted { name: user.to_owned(), uid: None, sudoer: true }),
            Err(OsLogin) => match metadata::person(user).await {
                Ok(person) => person.admits(user, key, now()).then_some(Wanted {
                    name: person.username,
                    uid: Some(person.uid),
                    sudoer: person.admin,
                }),
                Err(error) => {
                    eprintln!("sshd: {user:?} is not let in through OS Login: {error}");
                    None
                }
            },
        }
    }

    fn run(&mut self, id: ChannelId, program: &Program, session: &mut Session) -> Result<(), russh::Error> {
        let (Some(account), Some(behind)) = (&self.account, self.channels.get_mut(&id)) else {
            return session.channel_failure(id);
        };
        let Some((channel, place)) = behind.idle.take() else { return session.channel_failure(id) };
        let terminal = behind.window.clone().filter(|_| !matches!(program, Program::Sftp));
        let around = Surroundings { account, env: &behind.env, terminal, peer: self.peer, local: self.local };
        match start(program, &around) {
            Ok(started) => {
                behind.pid = started.child.id();
                behind.terminal = started.terminal.clone();
                session.channel_success(id)?;
                carry(id, channel, started, session.handle(), place);
                Ok(())
            }
            Err(error) => {
                eprintln!("sshd: cannot start {program:?} for {}: {error}", account.name);
                session.channel_failure(id)
            }
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        Ok(if self.admits(user, offer.public_key).await.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let Some(wanted) = self.admits(user, key.public_key).await else { return Ok(Auth::reject()) };
        match self.accounts.find_or_make(&wanted) {
            Ok(account) => {
                self.account = Some(account);
                self.waiting = None;
                Ok(Auth::Accept)
            }
            Err(error) => {
                eprintln!("sshd: no account for {user:?}: {error}");
                Ok(Auth::reject())
            }
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let idle = Some((channel, place));
        let id = idle.as_ref().map(|(channel, _)| channel.id());
        let behind = Behind { env: Vec::new(), window: None, idle, pid: None, terminal: None };
        self.channels.extend(id.map(|id| (id, behind)));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        let (Ok(place), Ok(port)) = (self.places.clone().try_acquire_owned(), u16::try_from(port)) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let host = host.to_owned();
        tokio::spawn(async move {
            let connected = timeout(SSH_FORWARD_CONNECT_MAX, TcpStream::connect((host, port))).await;
            let Ok(Ok(mut there)) = connected else { return reply.reject(ChannelOpenFailure::ConnectFailed).await };
            reply.accept().await;
            // Either side may end it when it likes.
            let _ = tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut there).await;
            drop(place);
        });
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        // What OpenSSH accepts on Debian: the language. Anything else could change what programs do.
        let known = name == "LANG" || name.starts_with("LC_");
        match self.channels.get_mut(&id) {
            Some(behind) if known && behind.env.len() < SSH_ENV_MAX && value.len() <= SSH_ENV_BYTES_MAX => {
                behind.env.push((name.to_owned(), value.to_owned()));
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        match self.channels.get_mut(&id) {
            Some(behind) if term.len() <= SSH_ENV_BYTES_MAX && !term.contains('\0') => {
                behind.window = Some((term.to_owned(), Window { columns, rows, width, height }));
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some(terminal) = self.channels.get(&id).and_then(|behind| behind.terminal.as_ref()) {
            terminal.resize(Window { columns, rows, width, height });
        }
        Ok(())
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.run(id, &Program::Shell, session)
    }

    async fn exec_request(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        match std::str::from_utf8(data) {
            Ok(text) if !text.contains('\0') => self.run(id, &Program::Command(text.to_owned()), session),
            Ok(_) | Err(_) => session.channel_failure(id),
        }
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if name == "sftp" { self.run(id, &Program::Sftp, session) } else { session.channel_failure(id) }
    }

    async fn signal(&mut self, id: ChannelId, sig: Sig, _: &mut Session) -> Result<(), russh::Error> {
        let pid = self.channels.get(&id).and_then(|behind| behind.pid);
        if let (Some(pid), Some(number)) = (pid, number(&sig)) {
            signal(pid, number);
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), russh::Error> {
        self.channels.remove(&id);
        Ok(())
    }
}

/// Carries a process's streams over its channel until both have ended.
fn carry(id: ChannelId, channel: Channel<Msg>, started: Started, to: Handle, place: OwnedSemaphorePermit) {
    let Started { mut child, terminal } = started;
    let (from_client, _) = channel.split();
    let sink = match (&terminal, child.stdin.take()) {
        (Some(terminal), _) => Sink::Terminal(terminal.clone()),
        (None, Some(pipe)) => Sink::Pipe(Box::new(pipe)),
        (None, None) => Sink::Closed,
    };
    let feeding = tokio::spawn(feed(from_client, sink));
    tokio::spawn(async move {
        let status = match &terminal {
            Some(terminal) => attended(id, terminal, &mut child, &to).await,
            None => unattended(id, &mut child, &to).await,
        };
        // A client that is gone hears nothing of it.
        let _ = to.eof(id).await;
        if let Ok(status) = status {
            tell_end(id, status, &to).await;
        }
        let _ = to.close(id).await;
        feeding.abort();
        drop(place);
    });
}

async fn feed(mut from_client: ChannelReadHalf, mut sink: Sink) {
    while let Some(message) = from_client.wait().await {
        match message {
            ChannelMsg::Data { data } => sink.take(&data).await,
            ChannelMsg::Eof => sink.end(),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
}

/// With pipes the end of both outputs counts, whoever holds them.
async fn unattended(id: ChannelId, child: &mut Child, to: &Handle) -> std::io::Result<ExitStatus> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let out = async {
        if let Some(out) = out {
            pour(out, |bytes| async { to.data(id, bytes).await.is_ok() }).await;
        }
    };
    let err = async {
        if let Some(err) = err {
            pour(err, |bytes| async { to.extended_data(id, STDERR, bytes).await.is_ok() }).await;
        }
    };
    tokio::join!(out, err, child.wait()).2
}

/// With a terminal the end of its process is the end, whatever runs on in the background.
async fn attended(id: ChannelId, terminal: &Terminal, child: &mut Child, to: &Handle) -> std::io::Result<ExitStatus> {
    let mut buffer = vec![0; 32 << 10];
    let status = loop {
        tokio::select! {
            read = terminal.read(&mut buffer) => match read {
                Ok(n @ 1..) if to.data(id, buffer[..n].to_vec()).await.is_ok() => {}
                _ => return child.wait().await,
            },
            status = child.wait() => break status,
        }
    };
    // Its last words are still on their way through the terminal; one that others hold open is not waited for.
    while let Ok(Ok(n @ 1..)) = timeout(LAST_WORDS_MAX, terminal.read(&mut buffer)).await
        && to.data(id, buffer[..n].to_vec()).await.is_ok()
    {}
    status
}

async fn tell_end(id: ChannelId, status: ExitStatus, to: &Handle) {
    use std::os::unix::process::ExitStatusExt;
    let _ = match (status.code(), status.signal()) {
        (Some(code), _) => to.exit_status_request(id, u32::try_from(code).unwrap_or(255)).await,
        (None, Some(number)) => {
            to.exit_signal_request(id, name(number), status.core_dumped(), String::new(), String::new()).await
        }
        (None, None) => Ok(()),
    };
}

/// Source: RFC 4254, 6.10; the numbers are Linux's.
fn number(sig: &Sig) -> Option<i32> {
    Some(match sig {
        Sig::HUP => 1,
        Sig::INT => 2,
        Sig::QUIT => 3,
        Sig::ILL => 4,
        Sig::ABRT => 6,
        Sig::FPE => 8,
        Sig::KILL => 9,
        Sig::USR1 => 10,
        Sig::SEGV => 11,
        Sig::PIPE => 13,
        Sig::ALRM => 14,
        Sig::TERM => 15,
        Sig::Custom(name) if name == "USR2" => 12,
        Sig::Custom(_) => return None,
    })
}

/// Signals without a name of the RFC's get one of ours, as it asks for.
fn name(number: i32) -> Sig {
    match number {
        1 => Sig::HUP,
        2 => Sig::INT,
        3 => Sig::QUIT,
        4 => Sig::ILL,
        6 => Sig::ABRT,
        8 => Sig::FPE,
        9 => Sig::KILL,
        10 => Sig::USR1,
        11 => Sig::SEGV,
        12 => Sig::Custom("USR2".into()),
        13 => Sig::PIPE,
        14 => Sig::ALRM,
        15 => Sig::TERM,
        other => Sig::Custom(format!("{other}@tombolo")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_one_number_and_one_name() {
        for n in [1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15] {
            assert_eq!(number(&name(n)), Some(n));
        }
        assert!(matches!(name(31), Sig::Custom(name) if name == "31@tombolo"));
        assert_eq!(number(&Sig::Custom("WINCH".into())), None);
    }
}
