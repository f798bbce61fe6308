//! The Identity-Aware Proxy in front of VMs: who may open a tunnel, and to what.
//!
//! A tunnel leads to a VM's own primary address and nowhere else. Its packets come from 35.235.240.0/20 and obey the
//! VPC's firewall like any other ingress. The credential is looked at before the WebSocket is agreed on; everything
//! else is said over it, as a close code. Source: IAP, "TCP forwarding"; the codes and texts of the stock client.

use std::{convert::Infallible, io, sync::Arc};

use control::{
    kinds::instance::workload,
    ops::{Caller, Control},
    policies,
    world::World,
};
use model::{
    fault::Fault,
    iam::Principal,
    id::WorkloadId,
    limits::IAP_CONNECT_MAX,
    name::{Link, Scope},
    vm::{Instance, Power},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::Cloud;
use crate::{
    call::{BoxFuture, Call, Query, invalid_parameter},
    door::{Carry, Tunnels},
    error,
    relay::{Client, Owner, Relay, frame::Close},
};

const PERMISSION: &str = "iap.tunnelInstances.accessViaIAP";
/// A VM has one interface here.
const INTERFACE: &str = "nic0";

/// The way to VMs' ports: the host's, which holds the networks.
pub trait Dial: Send + Sync {
    /// A connection to a port of the VM's primary address, from the proxy's addresses.
    fn dial(&self, vm: WorkloadId, port: u16) -> BoxFuture<'_, io::Result<TcpStream>>;
}

pub struct Iap {
    pub cloud: Cloud,
    pub dial: Arc<dyn Dial>,
    pub relay: Arc<Relay>,
}

impl Tunnels for Iap {
    fn open(&self, call: Call) -> Result<Carry, Fault> {
        let caller = self.cloud.caller(&call, "google.cloud.iap.tunnel.Connect")?;
        // By the clock that shows no time: somebody may set the other one.
        let good_until = caller.until.map(|until| Instant::now() + until.since(call.now));
        let (control, dial, relay) = (self.cloud.control.clone(), self.dial.clone(), self.relay.clone());
        match call.parts().as_slice() {
            ["v4", "connect"] => {
                let target = Target::read(&call.query)?;
                Ok(Box::new(move |stream| {
                    Box::pin(connect(control, dial, relay, caller, target, Client::new(stream, good_until)))
                }))
            }
            ["v4", "reconnect"] => {
                let sid = required(&call.query, "sid")?.to_owned();
                let ack = call.query.number("ack")?.ok_or_else(|| missing("ack"))?;
                Ok(Box::new(move |stream| {
                    Box::pin(reconnect(control, relay, caller, sid, ack, Client::new(stream, good_until)))
                }))
            }
            _ => Err(error::unknown_method()),
        }
    }
}

impl Iap {
    /// Ends tunnels to VMs that were switched off or deleted, for as long as the cloud lives.
    pub fn tend(&self) -> impl Future<Output = Infallible> + Send + use<> {
        let (control, relay) = (self.cloud.control.clone(), self.relay.clone());
        async move {
            loop {
                let finished = control.finished.notified();
                tokio::pin!(finished);
                // From here on it hears every bell, so that none rings between a look and the wait.
                finished.as_mut().enable();
                {
                    let world = control.read();
                    relay.leave(|instance| is_on(&world, instance));
                }
                finished.await;
            }
        }
    }
}

fn is_on(world: &World, instance: &Link) -> bool {
    world.get::<Instance>(instance).is_some_and(|vm| vm.spec.wanted == Power::On)
}

/// What a tunnel is asked to lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    project: String,
    zone: String,
    instance: String,
    interface: String,
    port: u16,
}

impl Target {
    fn read(query: &Query) -> Result<Target, Fault> {
        if query.get("host").is_some() || query.get("cr_workload_type").is_some() {
            return Err(Fault::not_enforced("tunnels to hosts and to Cloud Run instances"));
        }
        let port = query.number("port")?.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        Ok(Target {
            project: required(query, "project")?.to_owned(),
            zone: required(query, "zone")?.to_owned(),
            instance: required(query, "instance")?.to_owned(),
            interface: required(query, "interface")?.to_owned(),
            port: port.ok_or_else(|| missing("port"))?,
        })
    }
}

fn required<'q>(query: &'q Query, name: &str) -> Result<&'q str, Fault> {
    query.get(name).filter(|value| !value.is_empty()).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Fault {
    invalid_parameter(format!("Missing or invalid parameter '{name}'."))
}

async fn connect(
    control: Arc<Control>,
    dial: Arc<dyn Dial>,
    relay: Arc<Relay>,
    caller: Caller,
    target: Target,
    client: Client,
) {
    let (instance, vm) = match admit(&control, &caller, &target) {
        Ok(found) => found,
        Err(why) => return client.refuse(why).await,
    };
    match timeout(IAP_CONNECT_MAX, dial.dial(vm, target.port)).await {
        Ok(Ok(vm)) => relay.open(Owner { principal: caller.principal, instance }, vm, client).await,
        Ok(Err(_)) | Err(_) => client.refuse(Close::NO_BACKEND).await,
    }
}

async fn reconnect(control: Arc<Control>, relay: Arc<Relay>, caller: Caller, sid: String, ack: u64, client: Client) {
    let admitted = match relay.owner(&sid) {
        None => Err(Close::SID_UNKNOWN),
        // Who knows somebody else's session id has it from somewhere it was not meant to be.
        Some(owner) if owner.principal != caller.principal => Err(Close::NOT_AUTHORIZED),
        Some(owner) => readmit(&control, &caller.principal, &owner.instance),
    };
    match admitted {
        Ok(()) => relay.reopen(&sid, ack, client).await,
        Err(why) => client.refuse(why).await,
    }
}

/// The VM's link and workload, when the caller may tunnel to it. Who may not does not learn whether it exists.
fn admit(control: &Control, caller: &Caller, target: &Target) -> Result<(Link, WorkloadId), Close> {
    let world = control.read();
    let project = world.project(&target.project).ok_or(Close::NOT_AUTHORIZED)?;
    let zone = target.zone.parse().map_err(|_| Close::NOT_AUTHORIZED)?;
    let link = Link::new(&project.id, Scope::Zone(zone), "instances", &target.instance);
    if !policies::holds(&world, &caller.principal, PERMISSION, &link.to_string()) {
        return Err(Close::NOT_AUTHORIZED);
    }
    let vm = world.get::<Instance>(&link).filter(|vm| vm.spec.wanted == Power::On && target.interface == INTERFACE);
    let workload = workload(vm.ok_or(Close::LOOKUP_FAILED)?);
    Ok((link, workload))
}

fn readmit(control: &Control, who: &Principal, instance: &Link) -> Result<(), Close> {
    let world = control.read();
    if !policies::holds(&world, who, PERMISSION, &instance.to_string()) {
        return Err(Close::NOT_AUTHORIZED);
    }
    if is_on(&world, instance) { Ok(()) } else { Err(Close::LOOKUP_FAILED_ON_RECONNECT) }
}
