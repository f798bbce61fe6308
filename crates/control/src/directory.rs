//! Service Directory: who registers what under which name, and who may ask.
//!
//! What Private Service Connect registered is its forwarding rule's: here it is read, and changed by nobody.
//! Source: Service Directory API v1.

pub(crate) mod psc;

use std::collections::BTreeMap;

use model::{
    directory::{Endpoint, Namespace, NamespaceName, Service, ServiceName},
    fault::{Code, Fault},
    id::NetworkId,
    lb::ForwardingRule,
    limits::{
        DIRECTORY_ENDPOINT_TEXT_MAX, DIRECTORY_ENDPOINTS_MAX, DIRECTORY_LABELS_MAX, DIRECTORY_NAMESPACES_MAX,
        DIRECTORY_SERVICE_TEXT_MAX, DIRECTORY_SERVICES_MAX,
    },
    name::{Link, ProjectId, Region, Scope, is_resource_name},
    project::region_number,
};

use crate::{
    kind::Need,
    ops::{Caller, Change, Control},
    projects, random,
    world::World,
};

const API: &str = "servicedirectory.googleapis.com";

type Texts = BTreeMap<String, String>;

/// `projects/PROJECT/locations/REGION` as a request names it: the project by id or number.
#[derive(Clone, Copy)]
pub struct Location<'a> {
    pub project: &'a str,
    pub region: &'a str,
}

/// Who asks for what there.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub control: &'a Control,
    pub caller: &'a Caller,
    pub at: Location<'a>,
}

/// What an endpoint is to become; None: as it is, or nothing.
#[derive(Clone, Debug, Default)]
pub struct EndpointDraft {
    pub address: Option<Option<std::net::Ipv4Addr>>,
    pub port: Option<u16>,
    pub annotations: Option<Texts>,
    /// `projects/NUMBER/locations/global/networks/NAME`; it stays.
    pub network: Option<String>,
}

impl<'a> Asked<'a> {
    /// The place, for whoever holds the permission on `below` it.
    fn enter(&self, world: &World, permission: &'static str, below: &str) -> Result<(ProjectId, Region), Fault> {
        let Location { project, region } = self.at;
        let denied = |permission, project: &str| {
            Fault::permission_denied(permission, &format!("projects/{project}/locations/{region}{below}"))
        };
        let project = world.project(project).ok_or_else(|| denied(permission, project))?.id.clone();
        let need = Need::on(permission, format!("projects/{project}/locations/{region}{below}"));
        let refused = |need: Need| denied(need.permission, project.as_str());
        self.control.authorize(world, self.caller, &[need]).map_err(refused)?;
        projects::require_api(world, project.as_str(), API)?;
        let known: Option<Region> = region.parse().ok().filter(|region| region_number(region).is_some());
        let region = known.ok_or_else(|| missing(format!("projects/{project}/locations/{region}")))?;
        Ok((project, region))
    }

    fn namespace_name(
        &self,
        world: &World,
        permission: &'static str,
        name: &str,
        below: &str,
    ) -> Result<NamespaceName, Fault> {
        let (project, region) = self.enter(world, permission, &format!("/namespaces/{name}{below}"))?;
        Ok(NamespaceName { project, region, name: name.to_owned() })
    }

    fn service_name(
        &self,
        world: &World,
        permission: &'static str,
        (namespace, name): (&str, &str),
        below: &str,
    ) -> Result<ServiceName, Fault> {
        let below = format!("/services/{name}{below}");
        let namespace = self.namespace_name(world, permission, namespace, &below)?;
        Ok(ServiceName { namespace, name: name.to_owned() })
    }

    pub fn may(&self, permission: &'static str) -> Result<ProjectId, Fault> {
        Ok(self.enter(&self.control.read(), permission, "")?.0)
    }

    pub fn namespaces(&self) -> Result<Vec<Namespace>, Fault> {
        let world = self.control.read();
        let (project, region) = self.enter(&world, "servicedirectory.namespaces.list", "")?;
        Ok(world.directory.namespaces(&project, &region).cloned().collect())
    }

    pub fn namespace(&self, name: &str) -> Result<Namespace, Fault> {
        let world = self.control.read();
        let name = self.namespace_name(&world, "servicedirectory.namespaces.get", name, "")?;
        world.directory.namespace(&name).cloned().ok_or_else(|| missing(name))
    }

    pub fn create_namespace(&self, name: &str, labels: &Texts) -> Result<Namespace, Fault> {
        let (made, _) = self.control.commit(|world, txn| {
            let (project, region) = self.enter(world, "servicedirectory.namespaces.create", "")?;
            check_id("namespace_id", name)?;
            if labels.len() > DIRECTORY_LABELS_MAX {
                return Err(Fault::invalid(format!("A namespace may have at most {DIRECTORY_LABELS_MAX} labels.")));
            }
            let name = NamespaceName { project, region, name: name.to_owned() };
            if world.directory.namespace(&name).is_some() {
                return Err(exists(name));
            }
            let there = world.directory.namespaces(&name.project, &name.region).count();
            within(there, DIRECTORY_NAMESPACES_MAX, "namespaces in a region")?;
            let namespace = psc::new_namespace(name, labels.clone());
            txn.push(Change::Namespace(Box::new(namespace.clone())));
            Ok(namespace)
        })?;
        Ok(made)
    }

    /// With all services in it, and with its zone.
    pub fn delete_namespace(&self, name: &str) -> Result<(), Fault> {
        self.control.commit(|world, txn| {
            let name = self.namespace_name(world, "servicedirectory.namespaces.delete", name, "")?;
            world.directory.namespace(&name).ok_or_else(|| missing(&name))?;
            for service in world.directory.services(&name) {
                is_free(world, service)?;
                txn.push(Change::NoRegistered(service.name.clone()));
            }
            txn.push(Change::NoNamespace(name));
            Ok(())
        })?;
        Ok(())
    }

    pub fn services(&self, namespace: &str) -> Result<Vec<Service>, Fault> {
        let world = self.control.read();
        let name = self.namespace_name(&world, "servicedirectory.services.list", namespace, "")?;
        world.directory.namespace(&name).ok_or_else(|| missing(&name))?;
        Ok(world.directory.services(&name).cloned().collect())
    }

    /// By `servicedirectory.services.get`, or whatever else it takes.
    pub fn service(&self, name: (&str, &str), permission: &'static str) -> Result<Service, Fault> {
        let world = self.control.read();
        let name = self.service_name(&world, permission, name, "")?;
        world.directory.service(&name).cloned().ok_or_else(|| missing(name))
    }

    pub fn create_service(&self, (namespace, name): (&str, &str), annotations: &Texts) -> Result<Service, Fault> {
        let (made, _) = self.control.commit(|world, txn| {
            let namespace = self.namespace_name(world, "servicedirectory.services.create", namespace, "")?;
            check_id("service_id", name)?;
            check_annotations(annotations, DIRECTORY_SERVICE_TEXT_MAX)?;
            world.directory.namespace(&namespace).ok_or_else(|| missing(&namespace))?;
            let name = ServiceName { namespace, name: name.to_owned() };
            if world.directory.service(&name).is_some() {
                return Err(exists(name));
            }
            let there = world.directory.services(&name.namespace).count();
            within(there, DIRECTORY_SERVICES_MAX, "services in a namespace")?;
            let (uid, annotations) = (random::uuid(), annotations.clone());
            let service = Service { name, uid, annotations, rule: None, endpoints: BTreeMap::new() };
            txn.push(Change::Registered(Box::new(service.clone())));
            Ok(service)
        })?;
        Ok(made)
    }

    /// Annotations are all there is to change. None: they stay.
    pub fn update_service(&self, name: (&str, &str), annotations: Option<&Texts>) -> Result<Service, Fault> {
        check_annotations(annotations.unwrap_or(&Texts::new()), DIRECTORY_SERVICE_TEXT_MAX)?;
        self.change(name, "servicedirectory.services.update", "", |_, service| {
            if let Some(annotations) = annotations {
                service.annotations = annotations.clone();
            }
            Ok(())
        })
    }

    pub fn delete_service(&self, name: (&str, &str)) -> Result<(), Fault> {
        self.control.commit(|world, txn| {
            let name = self.service_name(world, "servicedirectory.services.delete", name, "")?;
            is_free(world, world.directory.service(&name).ok_or_else(|| missing(&name))?)?;
            txn.push(Change::NoRegistered(name));
            Ok(())
        })?;
        Ok(())
    }

    pub fn create_endpoint(&self, of: (&str, &str), name: &str, draft: &EndpointDraft) -> Result<Service, Fault> {
        self.change(of, "servicedirectory.endpoints.create", "", |world, service| {
            check_id("endpoint_id", name)?;
            if service.endpoints.contains_key(name) {
                return Err(exists(format!("{}/endpoints/{name}", service.name)));
            }
            within(service.endpoints.len(), DIRECTORY_ENDPOINTS_MAX, "endpoints of a service")?;
            let network = draft.network.as_deref().map(|network| self.network(world, network)).transpose()?;
            let annotations = BTreeMap::new();
            let mut endpoint = Endpoint { uid: random::uuid(), address: None, port: 0, annotations, network };
            apply(&mut endpoint, draft)?;
            service.endpoints.insert(name.to_owned(), endpoint);
            Ok(())
        })
    }

    pub fn update_endpoint(&self, of: (&str, &str), name: &str, draft: &EndpointDraft) -> Result<Service, Fault> {
        self.change(of, "servicedirectory.endpoints.update", &format!("/endpoints/{name}"), |_, service| {
            let full = format!("{}/endpoints/{name}", service.name);
            apply(service.endpoints.get_mut(name).ok_or_else(|| missing(full))?, draft)
        })
    }

    pub fn delete_endpoint(&self, of: (&str, &str), name: &str) -> Result<(), Fault> {
        let below = format!("/endpoints/{name}");
        let gone = self.change(of, "servicedirectory.endpoints.delete", &below, |_, service| {
            let full = format!("{}/endpoints/{name}", service.name);
            service.endpoints.remove(name).map(drop).ok_or_else(|| missing(full))
        });
        gone.map(drop)
    }

    /// Changes a service that somebody made here.
    fn change(
        &self,
        name: (&str, &str),
        permission: &'static str,
        below: &str,
        edit: impl Fn(&World, &mut Service) -> Result<(), Fault>,
    ) -> Result<Service, Fault> {
        let (changed, _) = self.control.commit(|world, txn| {
            let name = self.service_name(world, permission, name, below)?;
            let mut service = world.directory.service(&name).cloned().ok_or_else(|| missing(name))?;
            is_free(world, &service)?;
            edit(world, &mut service)?;
            txn.push(Change::Registered(Box::new(service.clone())));
            Ok(service)
        })?;
        Ok(changed)
    }

    /// Source: `Endpoint.network`: by project number; whoever registers must be allowed to attach to it.
    fn network(&self, world: &World, text: &str) -> Result<(Link, NetworkId), Fault> {
        let malformed = || {
            let form = "projects/PROJECT_NUMBER/locations/global/networks/NETWORK";
            Fault::invalid(format!("Invalid network '{text}': expected {form}."))
        };
        let parts: Vec<&str> = text.split('/').collect();
        let ["projects", number, "locations", "global", "networks", name] = parts.as_slice() else {
            return Err(malformed());
        };
        if number.parse::<u64>().is_err() {
            return Err(malformed());
        }
        let permission = "servicedirectory.networks.attach";
        let denied = || Fault::permission_denied(permission, &format!("projects/{number}"));
        let project = world.project(number).ok_or_else(denied)?;
        let need = Need::on(permission, format!("projects/{}", project.id));
        self.control.authorize(world, self.caller, &[need]).map_err(|_| denied())?;
        let link = Link::new(&project.id, Scope::Global, "networks", name);
        let id = world.network_id(&link).ok_or_else(|| missing(text))?;
        Ok((link, id))
    }
}

fn apply(endpoint: &mut Endpoint, draft: &EndpointDraft) -> Result<(), Fault> {
    if let Some(annotations) = &draft.annotations {
        check_annotations(annotations, DIRECTORY_ENDPOINT_TEXT_MAX)?;
        endpoint.annotations = annotations.clone();
    }
    endpoint.address = draft.address.unwrap_or(endpoint.address);
    endpoint.port = draft.port.unwrap_or(endpoint.port);
    Ok(())
}

/// What a forwarding rule registered goes with it and not before.
fn is_free(world: &World, service: &Service) -> Result<(), Fault> {
    let Some(rule) = service.rule else { return Ok(()) };
    let rule = world.by_id::<ForwardingRule>(rule.0).map(|rule| rule.link.to_string()).unwrap_or_default();
    let text =
        format!("Resource '{}' was registered by forwarding rule '{rule}' and is deleted with it.", service.name);
    Err(Fault::new(Code::FailedPrecondition, "failedPrecondition", text))
}

fn check_id(field: &str, name: &str) -> Result<(), Fault> {
    if is_resource_name(name) {
        return Ok(());
    }
    Err(Fault::invalid(format!("Invalid {field} '{name}': it must match [a-z](?:[-a-z0-9]{{0,61}}[a-z0-9])?.")))
}

fn check_annotations(annotations: &Texts, max: usize) -> Result<(), Fault> {
    let length: usize = annotations.iter().map(|(key, value)| key.chars().count() + value.chars().count()).sum();
    if length <= max {
        return Ok(());
    }
    Err(Fault::invalid(format!("Annotations may have at most {max} characters in all; these have {length}.")))
}

fn within(there: usize, max: usize, what: &str) -> Result<(), Fault> {
    if there < max {
        return Ok(());
    }
    Err(Fault::new(Code::ResourceExhausted, "rateLimitExceeded", format!("There may be at most {max} {what}.")))
}

/// Source: recorded answers.
fn missing(name: impl std::fmt::Display) -> Fault {
    Fault::new(Code::NotFound, "notFound", format!("Resource '{name}' was not found"))
}

fn exists(name: impl std::fmt::Display) -> Fault {
    Fault::new(Code::AlreadyExists, "alreadyExists", format!("Resource '{name}' already exists"))
}

/// The namespaces of a project that have a zone, by region and name, for whoever holds a permission of Cloud DNS.
pub fn zones(
    control: &Control,
    caller: &Caller,
    project: &str,
    permission: &'static str,
) -> Result<Vec<Namespace>, Fault> {
    let world = control.read();
    let denied = || Fault::permission_denied(permission, &format!("projects/{project}"));
    let id = &world.project(project).ok_or_else(denied)?.id;
    control.authorize(&world, caller, &[Need::on(permission, format!("projects/{id}"))]).map_err(|_| denied())?;
    projects::require_api(&world, id.as_str(), psc::DNS)?;
    Ok(world.directory.all_of(id).filter(|namespace| namespace.zone.is_some()).cloned().collect())
}
