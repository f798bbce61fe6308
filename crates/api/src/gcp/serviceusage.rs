//! Service Usage: which APIs are enabled on a project. Everything it starts is done when it answers.

use control::projects::{self, APIS, Api};
use http::Method;
use model::{fault::Fault, project::Project};
use serde_json::{Value, json};

use super::Cloud;
use crate::{
    call::{Answer, Call},
    error,
    paging::{Order, Paging},
    reply::Reply,
};

/// Services in one `batchEnable`. Source: Service Usage.
const BATCH_MAX: usize = 20;
const PAGES: Paging = Paging { size: "pageSize", default: 50, max: 200, order: Order::ByKey };

pub(super) fn route(cloud: &Cloud, call: &Call) -> Answer {
    let caller = cloud.caller(call, "google.api.serviceusage.v1.ServiceUsage")?;
    let control = &cloud.control;
    match (&call.method, call.parts().as_slice(), call.verb()) {
        (&Method::POST, ["v1", "projects", project, "services", api], Some("enable")) => {
            let (project, changed) = projects::enable(control, &caller, project, &[(*api).to_owned()])?;
            let shown = projects::find_api(api).map(|api| service(&project, api));
            let response = json!({"@type": response_type("EnableServiceResponse"), "service": shown});
            Ok(Reply::json(operation(&project, changed, response)))
        }
        (&Method::POST, ["v1", "projects", project, "services"], Some("batchEnable")) => {
            let apis = service_ids(&call.json()?)?;
            let (project, changed) = projects::enable(control, &caller, project, &apis)?;
            let shown: Vec<Value> =
                apis.iter().filter_map(|a| projects::find_api(a)).map(|api| service(&project, api)).collect();
            let response = json!({"@type": response_type("BatchEnableServicesResponse"), "services": shown});
            Ok(Reply::json(operation(&project, changed, response)))
        }
        (&Method::POST, ["v1", "projects", project, "services", api], Some("disable")) => {
            let project = projects::disable(control, &caller, project, api)?;
            let shown = projects::find_api(api).map(|api| service(&project, api));
            let response = json!({"@type": response_type("DisableServiceResponse"), "service": shown});
            Ok(Reply::json(operation(&project, true, response)))
        }
        (&Method::GET, ["v1", "projects", project, "services", api], None) => {
            let (project, api) = projects::usage(control, &caller, project, api)?;
            Ok(Reply::json(service(&project, api)))
        }
        (&Method::GET, ["v1", "projects", project, "services"], Some("batchGet")) => {
            let project = projects::usage_list(control, &caller, project)?;
            let names = call.query.all("names").filter_map(|n| projects::find_api(n.rsplit('/').next()?));
            Ok(Reply::json(json!({"services": names.map(|api| service(&project, api)).collect::<Vec<_>>()})))
        }
        (&Method::GET, ["v1", "projects", project, "services"], None) => {
            let project = projects::usage_list(control, &caller, project)?;
            list(call, &project)
        }
        (&Method::GET, ["v1", "operations", name], None) => {
            // Operations are done before anyone can ask; what they did is what the project shows.
            if name.starts_with("noop.") || name.starts_with("acat.p2-") {
                return Ok(Reply::json(json!({"name": format!("operations/{name}"), "done": true, "response": {}})));
            }
            Err(Fault::new(model::fault::Code::NotFound, "notFound", format!("Operation {name} not found.")))
        }
        _ => Err(error::unknown_method()),
    }
}

fn service_ids(body: &Value) -> Result<Vec<String>, Fault> {
    let ids: Vec<String> = serde_json::from_value(body["serviceIds"].clone())
        .map_err(|_| Fault::invalid("Invalid value at 'service_ids': a list of strings is expected."))?;
    match ids.len() {
        0 => Err(Fault::invalid("At least one service must be named.")),
        n if n > BATCH_MAX => Err(Fault::invalid(format!("At most {BATCH_MAX} services can be enabled at once."))),
        _ => Ok(ids),
    }
}

fn response_type(name: &str) -> String {
    format!("type.googleapis.com/google.api.serviceusage.v1.{name}")
}

fn state(project: &Project, api: &Api) -> &'static str {
    if project.enabled.contains(api.name) { "ENABLED" } else { "DISABLED" }
}

fn service(project: &Project, api: &Api) -> Value {
    json!({
        "name": format!("projects/{}/services/{}", project.number, api.name),
        "config": {"name": api.name, "title": api.title},
        "state": state(project, api),
        "parent": format!("projects/{}", project.number),
    })
}

fn operation(project: &Project, changed: bool, response: Value) -> Value {
    let name = match changed {
        true => format!("operations/acat.p2-{}-{}", project.number, control::random::uuid()),
        false => "operations/noop.DONE_OPERATION".to_owned(),
    };
    json!({"name": name, "done": true, "response": response})
}

fn list(call: &Call, project: &Project) -> Answer {
    let wanted = match call.query.get("filter").unwrap_or("") {
        "" => None,
        "state:ENABLED" => Some("ENABLED"),
        "state:DISABLED" => Some("DISABLED"),
        other => {
            return Err(Fault::invalid(format!(
                "Invalid filter '{other}': only state:ENABLED and state:DISABLED are allowed."
            )));
        }
    };
    let found = APIS.iter().filter(|api| wanted.is_none_or(|wanted| state(project, api) == wanted));
    let shown = found.map(|api| (api.name.to_owned(), service(project, api)));
    PAGES.list(&call.query, "services", shown.collect())
}
