//! The control role: store, keys, doors and the driver, put together.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use api::{
    call::{BoxFuture, Query},
    door::{Beyond, Door, Rooms, Stream},
    gcp::{
        self, Cloud,
        iap::{Dial, Iap},
    },
    tls::Authority,
};
use control::{
    driver::{Driver, Serving},
    instances::Tuning,
    ops::{Change, Clock, Control},
    plan::Settings,
    projects,
    tokens::{Consent, Mint},
    why,
    world::{ImageRecord, World},
};
use logs::{Bounds, Journal};
use model::{
    fault::Fault,
    id::WorkloadId,
    lb,
    limits::{CONSENT_LIFETIME, IAP_CONNECT_MAX, TOKEN_LIFETIME},
    name::{Link, Scope},
    planned::{self, edge::Outside},
    psc,
    run::ServiceKey,
    time::Timestamp,
    vm, vpc,
};
use store::{Embedded, Kv};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
};

use super::{Args, Role, privilege};
use crate::{
    Outcome,
    cloud::Dirs,
    operator::{self, Answer, Ask, Status},
    users::Users,
};

/// The operator's token is written anew this often, long before it expires.
const TOKEN_REFRESH: Duration = Duration::from_secs(TOKEN_LIFETIME.as_secs() / 2);
/// Threads that serve the doors; commits block theirs for a disk's answer.
const WORKERS: usize = 2;

pub fn run(args: &Args, dirs: &Dirs, users: Users) -> Outcome {
    let own = dirs.control();
    let user = users.role(Role::Control);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&own)?;
    privilege::own_all(&own, user)?;
    // Answers from the first moment on, so that nobody waits for a socket; before it can, it says that it cannot.
    let stage: Arc<OnceLock<Stage>> = Arc::default();
    let listener = operator::bind(dirs)?;
    privilege::drop_to(user, args.supervisor)?;
    operator::serve(listener, {
        let stage = stage.clone();
        move |ask| match ask {
            // Whoever asks whether we are ready wants to hear when we are.
            Ask::Ready => stage.wait().answer(ask),
            _ => stage.get().map_or(Answer::NotYet, |stage| stage.answer(ask)),
        }
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    runtime.block_on(serve(args, dirs, &stage))
}

async fn serve(args: &Args, dirs: &Dirs, stage: &OnceLock<Stage>) -> Outcome {
    let own = dirs.control();
    // What takes longest beside the disk's answer begins before all others.
    let authority = std::thread::spawn({
        let own = own.clone();
        move || Authority::open(&own)
    });
    let store: Arc<dyn Kv> = match args.ephemeral {
        true => Arc::new(Embedded::in_memory()),
        false => Arc::new(Embedded::open(&dirs.store())?),
    };
    let journal = match args.ephemeral {
        true => Journal::in_memory(Bounds::default()),
        false => Journal::open(&own.join("logs"), Bounds::default())?,
    };
    let journal = Arc::new(journal);
    let nat_rest = Duration::from_secs(args.psc_rest);
    let control = Arc::new(Control::open(store, Arc::new(now))?.with_steady(steady()).with_nat_rest(nat_rest));
    projects::bootstrap(&control, None)?;
    add_builtin_images(&control)?;
    let mint = Arc::new(Mint::open(&control)?);
    mint.keep(&control)?;
    keep_operator_token(control.clone(), mint.clone(), dirs.token());

    let settings = Settings { psc_idle_s: args.psc_idle };
    let tuning = Tuning { idle_keep: Duration::from_secs(args.idle_instance) };
    let serving = Serving::new(tuning, mint.clone(), journal.clone());
    tokio::spawn(Driver::new(control.clone(), &dirs.run, settings, serving).run());

    let cloud = Cloud { control: control.clone(), mint: mint.clone(), journal };
    let tunnels = Iap {
        cloud: cloud.clone(),
        dial: Arc::new(ToVms(dirs.socket(host::agent::DIAL_SOCKET))),
        relay: Arc::default(),
    };
    tokio::spawn(tunnels.tend());
    let rooms = Rooms {
        router: gcp::router(&cloud),
        tunnels: Arc::new(tunnels),
        beyond: Arc::new(ToProxy(dirs.socket("proxy-outside.sock"))),
        authority: authority.join().map_err(|_| "the thread of the authority panicked")??,
        now: Box::new(now),
    };
    let door = Door::bind(args.listen, rooms).await?;
    let stage = stage.set(Stage { control, mint, door: door.local_addr()? });
    debug_assert!(stage.is_ok(), "the stage is set once");
    door.run().await;
    Ok(ExitCode::SUCCESS)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The time when this process started, and from then on whatever has passed; nobody can set that.
fn steady() -> Clock {
    let passed = || {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(boot).unwrap_or_default()
    };
    let (started, before) = (now(), passed());
    Arc::new(move || started.plus(passed().saturating_sub(before)))
}

/// The images that come with the binary; the host role has put their layer in its place.
fn add_builtin_images(control: &Control) -> Outcome<()> {
    for (name, image) in sandbox::builtin::images() {
        add_image(control, &super::image_record(name, image))?;
    }
    Ok(())
}

fn add_image(control: &Control, record: &ImageRecord) -> Result<(), model::fault::Fault> {
    control.commit(|world, txn| {
        if world.images.get(&record.name) != Some(record) {
            txn.push(Change::Image(Box::new(record.clone())));
        }
        Ok(())
    })?;
    Ok(())
}

fn keep_operator_token(control: Arc<Control>, mint: Arc<Mint>, path: PathBuf) {
    let write = move || -> Outcome<()> {
        let token = mint.operator_token(projects::ADMIN_DEFAULT, control.now())?;
        let temporary = path.with_extension("new");
        let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, token.as_bytes())?;
        fs::rename(&temporary, &path)?;
        Ok(())
    };
    let first = write();
    tokio::spawn(async move {
        let mut last = first;
        loop {
            if let Err(error) = last {
                eprintln!("control: cannot write the operator's token: {error}");
            }
            tokio::time::sleep(TOKEN_REFRESH).await;
            last = write();
        }
    });
}

/// Requests to services' own names go to the proxy, which knows what may reach them from outside.
struct ToProxy(PathBuf);

impl Beyond for ToProxy {
    fn carry(&self, first: Outside, mut client: Box<dyn Stream>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let mut proxy = UnixStream::connect(&self.0).await?;
            let mut line = serde_json::to_vec(&first)?;
            line.push(b'\n');
            proxy.write_all(&line).await?;
            tokio::io::copy_bidirectional(&mut client, &mut proxy).await?;
            Ok(())
        })
    }
}

/// Tunnels reach VMs by sockets that the host connects: it alone has the networks.
struct ToVms(PathBuf);

impl Dial for ToVms {
    fn dial(&self, vm: WorkloadId, port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        let path = self.0.clone();
        Box::pin(async move {
            let question = planned::host::Dial { workload: vm, port };
            let ask = move || ipc::ask_socket(&path, &question, IAP_CONNECT_MAX);
            let begun = tokio::task::spawn_blocking(ask).await??;
            let stream = TcpStream::from_std(begun.into())?;
            stream.writable().await?;
            stream.take_error()?.map_or(Ok(stream), Err)
        })
    }
}

/// What the operator may ask of a control process that has started.
struct Stage {
    control: Arc<Control>,
    mint: Arc<Mint>,
    door: std::net::SocketAddr,
}

impl Stage {
    fn answer(&self, ask: Ask) -> Answer {
        match ask {
            Ask::Ready => Answer::Ready { door: self.door },
            Ask::Status => Answer::Status(self.status()),
            Ask::FindVm { project, name } => self.find_vm(project.as_deref(), &name),
            Ask::WhyPacket { project, vm, to } => self.why_packet(project.as_deref(), &vm, &to),
            Ask::WhyRequest { service, account, audience } => self.why_request(&service, account, audience),
            Ask::Consent { email, url } => match self.consent(email, &url) {
                Ok((code, location)) => Answer::Code { code, location },
                Err(fault) => Answer::Refused(fault.message),
            },
            Ask::AddImage(record) => match add_image(&self.control, &record) {
                Ok(()) => Answer::Done,
                Err(fault) => Answer::Refused(fault.message),
            },
        }
    }

    fn status(&self) -> Status {
        let world = self.control.read();
        let counts = [
            ("projects", world.projects.len()),
            ("networks", world.all::<vpc::Network>().count()),
            ("subnetworks", world.all::<vpc::Subnetwork>().count()),
            ("VMs", world.all::<vm::Instance>().count()),
            ("forwarding rules", world.all::<lb::ForwardingRule>().count()),
            ("service attachments", world.all::<psc::ServiceAttachment>().count()),
            ("Private Service Connect endpoints", world.connections.len()),
            ("services", world.services.len()),
            ("instances and VMs running", world.seats.len()),
        ];
        Status {
            door: Some(self.door),
            revision: world.revision,
            counts: counts.into_iter().map(|(what, n)| (what.to_owned(), n)).collect::<BTreeMap<_, _>>(),
            vms: world.all::<vm::Instance>().map(|v| format!("{} {}", v.link, v.spec.address)).collect(),
            services: world.services.keys().map(ToString::to_string).collect(),
        }
    }

    /// The code for the client that shows this URL, and the URL to which a browser would take it.
    fn consent(&self, email: String, url: &str) -> Result<(String, String), Fault> {
        let query = Query::parse(url.split_once('?').map_or("", |(_, query)| query))?;
        let need = |name: &str| {
            let text = query.get(name).filter(|text| !text.is_empty()).map(str::to_owned);
            text.ok_or_else(|| Fault::invalid(format!("The URL has no {name}: quote it whole, with single quotes.")))
        };
        if need("response_type")? != "code" || need("code_challenge_method")? != "S256" {
            return Err(Fault::invalid("Only codes are given out, and only against a challenge of the method S256."));
        }
        let (now, redirect_uri) = (self.control.now(), need("redirect_uri")?);
        let consent = Consent {
            email: email.to_ascii_lowercase(),
            client_id: need("client_id")?,
            redirect_uri: redirect_uri.clone(),
            challenge: need("code_challenge")?,
            scopes: need("scope")?.split_whitespace().map(str::to_owned).collect(),
            until: now.plus(CONSENT_LIFETIME),
        };
        let code = self.mint.consent(consent, now)?;
        let state = query.get("state").map(|state| format!("&state={state}")).unwrap_or_default();
        Ok((code.clone(), format!("{redirect_uri}?code={code}{state}")))
    }

    fn find_vm(&self, project: Option<&str>, name: &str) -> Answer {
        let world = self.control.read();
        let link = match named_vm(&world, project, name) {
            Ok(link) => link,
            Err(refusal) => return refusal,
        };
        let seat = world.seats.values().find(|s| matches!(&s.holder, control::world::Holder::Vm(l) if *l == link));
        match (seat, &link.scope) {
            (Some(seat), Scope::Zone(zone)) => Answer::Vm {
                workload: seat.workload.to_string(),
                project: link.project.to_string(),
                zone: zone.to_string(),
            },
            _ => Answer::Refused(format!("VM {name:?} is switched off")),
        }
    }

    fn why_packet(&self, project: Option<&str>, vm: &str, to: &str) -> Answer {
        let world = self.control.read();
        let case = named_vm(&world, project, vm).map(|link| why::case(&world, &link, to));
        match case {
            Ok(Ok(case)) => Answer::Case(Box::new(case)),
            Ok(Err(fault)) => Answer::Refused(fault.message),
            Err(refusal) => refusal,
        }
    }

    fn why_request(&self, service: &ServiceKey, account: Option<String>, audience: Option<String>) -> Answer {
        let world = self.control.read();
        let backend = why::backend(&world, service, account.as_deref());
        let audience = audience.or_else(|| backend.url.clone());
        let token = account.zip(audience.as_ref());
        let token = token.map(|(email, audience)| why::token(&self.mint, &world, &email, audience, self.control.now()));
        match token.transpose() {
            Ok(token) => Answer::Backend { backend: Box::new(backend), token, audience },
            Err(fault) => Answer::Refused(fault.message),
        }
    }
}

/// The VM of this name; without a project, it must be the only one.
fn named_vm(world: &World, project: Option<&str>, name: &str) -> Result<Link, Answer> {
    let named = |vm: &&control::kind::Record<vm::Instance>| {
        vm.link.name == name && project.is_none_or(|p| vm.link.project.as_str() == p)
    };
    let found: Vec<_> = world.all::<vm::Instance>().filter(named).collect();
    match found.as_slice() {
        [vm] => Ok(vm.link.clone()),
        [] => Err(Answer::Refused(format!("no VM is called {name:?}: `tombolo status` lists them"))),
        _ => Err(Answer::Refused(format!("several VMs are called {name:?}: say which with --project"))),
    }
}
