//! `tombolo why`: a packet or a request sent the real way, and the account of it.
//!
//! What control knows ([`control::why`]) says what the address is; what happens is watched in the kernel ([`probe`]);
//! only together they give a [`verdict`], so that none is ever given for a call that was not made.

mod probe;
mod show;
mod verdict;

use std::process::ExitCode;

use control::why::{Balancer, Case, Target};

use self::{
    probe::{Exchange, Reply},
    verdict::Request,
};
use crate::{
    Outcome,
    cloud::Dirs,
    commands::CloudArgs,
    operator::{Answer, Ask, ask_running},
};

#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(flatten)]
    cloud: CloudArgs,
    /// Project of the VM, when its name alone is not enough
    #[arg(long)]
    project: Option<String>,
    /// Call as this service account instead of the VM's own
    #[arg(long = "as", value_name = "ACCOUNT", conflicts_with = "anonymous")]
    account: Option<String>,
    /// Send no token
    #[arg(long)]
    anonymous: bool,
    /// Audience of the ID token; the service's own URL unless given
    #[arg(long)]
    audience: Option<String>,
    /// Seconds to wait for an answer at most
    #[arg(long, default_value_t = 30)]
    wait: u64,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Name of the VM that calls
    from: String,
    /// ADDRESS[:PORT] or VM[:PORT] for a connection; http://HOST[:PORT]/PATH for a request
    to: To,
}

/// Whom a question is about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct To {
    host: String,
    port: u16,
    /// Path and query of a request; None asks about the connection only.
    path: Option<String>,
}

impl std::str::FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<To, String> {
        if text.starts_with("https://") {
            return Err("tombolo's load balancers speak plain HTTP inside a VPC: ask about http://…".to_owned());
        }
        let url = text.strip_prefix("http://");
        let (authority, path) = match url.unwrap_or(text).split_once('/') {
            Some(_) if url.is_none() => return Err("a path needs http:// before the host".to_owned()),
            Some((authority, path)) => (authority, Some(format!("/{path}"))),
            None => (url.unwrap_or(text), url.map(|_| "/".to_owned())),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| format!("{port:?} is no port"))?),
            None => (authority, 80),
        };
        if host.is_empty() || port == 0 {
            return Err("expected ADDRESS[:PORT], VM[:PORT] or http://HOST[:PORT]/PATH".to_owned());
        }
        if path.iter().flat_map(|p| p.bytes()).chain(host.bytes()).any(|b| b.is_ascii_control() || b == b' ') {
            return Err("spaces and control characters must be percent-encoded".to_owned());
        }
        Ok(To { host: host.to_owned(), port, path })
    }
}

/// Exit codes: 0 it arrived, 1 it did not, 2 the question makes no sense (clap's), 3 it could not be asked.
pub fn run(args: &Args) -> Outcome {
    match ask(args) {
        Ok(reached) => Ok(ExitCode::from(u8::from(!reached))),
        Err(error) => {
            crate::complain(&*error);
            Ok(ExitCode::from(3))
        }
    }
}

fn ask(args: &Args) -> Outcome<bool> {
    let dirs = Dirs::of(&args.cloud.cloud);
    let to = &args.to;
    let packet = Ask::WhyPacket { project: args.project.clone(), vm: args.from.clone(), to: to.host.clone() };
    let Answer::Case(case) = ask_running(&dirs, &packet)? else { return Err("unexpected answer".into()) };
    let request = to.path.as_ref().map(|path| request(args, &dirs, &case, path)).transpose()?;
    let bytes = request.as_ref().map(|request| probe::http(request, &to.host, to.port));
    let seen = probe::probe(&dirs, &case, &Exchange { port: to.port, request: bytes, wait_s: args.wait })?;
    let verdict = verdict::judge(&case, to.port, &seen, request.as_ref());
    if args.json {
        show::json(&case, to, &seen, &verdict)
    } else {
        show::text(&case, to, &seen, request.as_ref(), &verdict)
    }?;
    Ok(verdict.is_reached() && seen.reply.as_ref().is_none_or(Reply::is_success))
}

/// The request that is to be made, with what is known of the service that it is routed to.
fn request(args: &Args, dirs: &Dirs, case: &Case, path: &str) -> Outcome<Request> {
    let account = if args.anonymous { None } else { args.account.clone().or_else(|| case.account.clone()) };
    let mut request = Request { path: path.to_owned(), account, ..Request::default() };
    let Some(Balancer { listener, .. }) = balancer(case) else { return Ok(request) };
    let host = if args.to.port == 80 { args.to.host.clone() } else { format!("{}:{}", args.to.host, args.to.port) };
    let plain = path.split(['?', '#']).next().unwrap_or(path);
    let route = &proxy::route::choose(listener, &host, plain).branch(listener).route;
    request.route = Some(route.clone());
    request.target = proxy::route::resolve(route, &host, plain);
    if let Some(target) = &request.target {
        let ask = Ask::WhyRequest {
            service: target.service.clone(),
            account: request.account.clone(),
            audience: args.audience.clone(),
        };
        let Answer::Backend { backend, token, audience } = ask_running(dirs, &ask)? else {
            return Err("unexpected answer".into());
        };
        (request.backend, request.token, request.audience) = (Some(*backend), token, audience);
    }
    Ok(request)
}

fn balancer(case: &Case) -> Option<&Balancer> {
    match &case.target {
        Target::Balancer(balancer) => Some(balancer),
        Target::Endpoint { balancer, .. } => balancer.as_ref(),
        Target::Vm { .. } | Target::Group(_) | Target::Reserved(_) | Target::Vacant(_) | Target::Elsewhere(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_about_is_read_from_one_word() {
        let to = |text: &str| text.parse::<To>().map(|to| (to.host, to.port, to.path));
        assert_eq!(to("10.1.0.5"), Ok(("10.1.0.5".into(), 80, None)));
        assert_eq!(to("db:5432"), Ok(("db".into(), 5432, None)));
        assert_eq!(to("http://10.1.0.5"), Ok(("10.1.0.5".into(), 80, Some("/".into()))));
        assert_eq!(to("http://a.b:8080/x?y=1"), Ok(("a.b".into(), 8080, Some("/x?y=1".into()))));
        for bad in ["", ":80", "10.1.0.5:x", "10.1.0.5:0", "10.1.0.5/x", "https://a", "http://a/\r\nX: y", "http://"] {
            assert!(to(bad).is_err(), "{bad:?}");
        }
    }
}
