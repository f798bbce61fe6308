//! `ProxyCommand` of the SSH client in tests: DOOR CA PROJECT ZONE INSTANCE CUT_EVERY, and the token in $TUNNEL_TOKEN.

use std::process::ExitCode;

use acceptance::tunnel::Way;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [door, ca, project, zone, instance, cut_every] = args.as_slice() else { return ExitCode::from(64) };
    let way = Way {
        door: door.parse().expect("a socket address"),
        ca_pem: std::fs::read(ca).expect("the authority's certificate"),
        token: std::env::var("TUNNEL_TOKEN").expect("a token"),
        project: project.clone(),
        zone: zone.clone(),
        instance: instance.clone(),
        port: 22,
    };
    match way.open().and_then(|tunnel| tunnel.bridge(cut_every.parse().ok())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("tunnel: {why:?}");
            ExitCode::FAILURE
        }
    }
}
