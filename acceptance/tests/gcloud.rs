//! The walkthrough as its author types it, from the first project to the last deletion, with the real, unmodified `gcloud`.

use acceptance::{
    Cloud, Home, REGION, Said, ZONE, installed,
    journey::{ATTACHMENT, Journey, Vm},
    until,
};
use serde_json::Value;
use tombolo::journey::{CONSUMER, PRODUCER, Ranges};

/// Who plays which part, in which ranges.
struct Walk<'c> {
    cloud: &'c Cloud,
    home: Home,
    producer: &'static str,
    consumer: &'static str,
    ranges: Ranges,
}

/// What is deleted, with the command's flags, and what stands in its way at first.
struct Deletion {
    what: &'static str,
    at: String,
    used_by: Option<String>,
}

impl Walk<'_> {
    fn try_gcloud(&self, args: &str) -> Said {
        self.cloud.gcloud_at_home(&self.home, args)
    }

    #[track_caller]
    fn gcloud(&self, args: &str) -> String {
        self.try_gcloud(args).ok()
    }

    fn in_producer(&self) -> String {
        format!("--region={REGION} --project={}", self.producer)
    }

    fn in_consumer(&self) -> String {
        format!("--region={REGION} --project={}", self.consumer)
    }

    /// The VM gets the first address that is not the gateway's.
    fn vm_address(&self) -> &'static str {
        match self.ranges {
            Ranges::Apart => "10.1.0.2",
            Ranges::Same => "10.0.0.2",
        }
    }

    /// A command in the VM, the way the article goes there: no external address, through the proxy.
    #[track_caller]
    fn ssh(&self, command: &str) -> String {
        let said = self.gcloud(&format!(
            "compute ssh test-vm --zone={ZONE} --project={} --tunnel-through-iap --command='{command}'",
            self.consumer
        ));
        // A first login makes a key pair, and says so on standard output.
        said.rsplit_once("+----[SHA256]-----+\n").map_or(said.clone(), |(_, rest)| rest.to_owned())
    }

    /// 0: two projects, their APIs.
    fn projects(&self) {
        let (p, c) = (self.producer, self.consumer);
        self.gcloud(&format!("projects create {p}"));
        self.gcloud(&format!("projects create {c}"));
        self.gcloud(&format!("services enable run.googleapis.com compute.googleapis.com --project={p}"));
        self.gcloud(&format!("services enable compute.googleapis.com iap.googleapis.com --project={c}"));
        let enabled = self.gcloud(&format!("services list --enabled --project={c} --format='value(config.name)'"));
        assert!(enabled.contains("compute.googleapis.com") && !enabled.contains("run.googleapis.com"), "{enabled}");
    }

    /// 1 to 4: the service, private and for authorised callers only; the producer's network; the internal load balancer;
    /// its publication.
    fn publish(&self) {
        let (p, c, in_producer) = (self.producer, self.consumer, self.in_producer());
        let deployed = self.try_gcloud(&format!(
            "run deploy hello-service --image=us-docker.pkg.dev/cloudrun/container/hello --platform=managed \
             --no-allow-unauthenticated --ingress=internal {in_producer}"
        ));
        let said = deployed.err.replace("\u{1b}[1m", "").replace("\u{1b}[m", "");
        assert!(said.contains("has been deployed and is serving 100 percent of traffic"), "{said}");
        let number = self.gcloud(&format!("projects describe {c} --format='value(projectNumber)'"));
        let member = format!("serviceAccount:{number}-compute@developer.gserviceaccount.com");
        let policy = self.gcloud(&format!(
            "run services add-iam-policy-binding hello-service --member={member} --role=roles/run.invoker {in_producer}"
        ));
        assert!(policy.contains(&member) && policy.contains("roles/run.invoker"), "{policy}");

        self.gcloud(&format!("compute networks create producer-vpc --subnet-mode=custom --project={p}"));
        let table = self.subnet("producer-subnet", "producer-vpc", "10.0.1.0/24", &in_producer);
        assert!(table.contains("10.0.1.0/24"), "{table}");
        let purpose = format!("--purpose=REGIONAL_MANAGED_PROXY --role=ACTIVE {in_producer}");
        self.subnet("proxy-only-subnet", "producer-vpc", "10.0.2.0/24", &purpose);
        let purpose = format!("--purpose=PRIVATE_SERVICE_CONNECT {in_producer}");
        self.subnet("producer-psc-subnet", "producer-vpc", "10.0.3.0/24", &purpose);

        for command in [
            "network-endpoint-groups create hello-serverless-neg --network-endpoint-type=serverless \
             --cloud-run-service=hello-service",
            "backend-services create hello-backend-service --load-balancing-scheme=INTERNAL_MANAGED --protocol=HTTP",
            "backend-services add-backend hello-backend-service --network-endpoint-group=hello-serverless-neg \
             --network-endpoint-group-region=asia-northeast1",
            "url-maps create hello-url-map --default-service=hello-backend-service",
            "target-http-proxies create hello-target-proxy --url-map=hello-url-map --url-map-region=asia-northeast1",
            "forwarding-rules create hello-forwarding-rule --load-balancing-scheme=INTERNAL_MANAGED \
             --network=producer-vpc --subnet=producer-subnet --target-http-proxy=hello-target-proxy \
             --target-http-proxy-region=asia-northeast1 --ports=80",
        ] {
            self.gcloud(&format!("compute {command} {in_producer}"));
        }
        let vip = self.gcloud(&format!(
            "compute forwarding-rules describe hello-forwarding-rule {in_producer} --format='value(IPAddress)'"
        ));
        assert!(vip.starts_with("10.0.1."), "{vip}");
        self.gcloud(&format!(
            "compute service-attachments create {ATTACHMENT} --producer-forwarding-rule=hello-forwarding-rule \
             --connection-preference=ACCEPT_MANUAL --nat-subnets=producer-psc-subnet --consumer-accept-list={c}=10 \
             {in_producer}"
        ));
    }

    fn subnet(&self, name: &str, network: &str, range: &str, more: &str) -> String {
        self.gcloud(&format!("compute networks subnets create {name} --network={network} --range={range} {more}"))
    }

    /// 5 to 7: the consumer's network and endpoint, as both sides see it.
    fn connect(&self) {
        let (c, in_consumer, in_producer) = (self.consumer, self.in_consumer(), self.in_producer());
        let attachment = self.gcloud(&format!(
            "compute service-attachments describe {ATTACHMENT} {in_producer} --format='value(selfLink)'"
        ));
        self.gcloud(&format!("compute networks create consumer-vpc --subnet-mode=custom --project={c}"));
        self.subnet("consumer-subnet", "consumer-vpc", self.ranges.consumer(), &in_consumer);
        self.gcloud(&format!(
            "compute addresses create psc-endpoint-ip --subnet=consumer-subnet --addresses={} {in_consumer}",
            self.ranges.endpoint()
        ));
        self.gcloud(&format!(
            "compute forwarding-rules create psc-endpoint --network=consumer-vpc --address=psc-endpoint-ip \
             --target-service-attachment={attachment} {in_consumer}"
        ));
        let status = self.gcloud(&format!(
            "compute forwarding-rules describe psc-endpoint {in_consumer} --format='value(pscConnectionStatus)'"
        ));
        assert_eq!(status, "ACCEPTED");
        let connected = self.gcloud(&format!(
            "compute service-attachments describe {ATTACHMENT} {in_producer} --format='yaml(connectedEndpoints)'"
        ));
        let wanted = format!(
            "endpoint: https://www.googleapis.com/compute/v1/projects/{c}/regions/{REGION}/forwardingRules/psc-endpoint"
        );
        assert!(connected.contains(&wanted) && connected.contains("status: ACCEPTED"), "{connected}");
    }

    /// 8: a VM without an external address calls it with an ID token. Returns the command.
    fn call(&self) -> String {
        let (c, endpoint) = (self.consumer, self.ranges.endpoint());
        self.gcloud(&format!(
            "compute firewall-rules create allow-iap-ssh --network=consumer-vpc --allow=tcp:22 \
             --source-ranges=35.235.240.0/20 --project={c}"
        ));
        let table = self.gcloud(&format!(
            "compute instances create test-vm --zone={ZONE} --machine-type=e2-micro \
             --network-interface=network=consumer-vpc,subnet=consumer-subnet,no-address --project={c}"
        ));
        assert!(table.contains(self.vm_address()) && table.contains("RUNNING"), "{table}");
        let url = self.gcloud(&format!(
            "run services describe hello-service {} --format='value(status.url)'",
            self.in_producer()
        ));
        let command = format!(
            "TOKEN=$(curl -s -H \"Metadata-Flavor: Google\" \
             \"http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/identity?audience={url}\"); \
             curl -s http://{endpoint}/ -H \"Authorization: Bearer $TOKEN\""
        );
        let page = self.ssh(&format!("hostname; {command}"));
        assert!(page.starts_with("test-vm\n") && page.contains("Congratulations | Cloud Run"), "{page}");
        let code = self.ssh(&format!("curl -s -o /dev/null -w \"%{{http_code}}\" http://{endpoint}/"));
        assert_eq!(code, "403", "without a token");
        command
    }

    /// 9, 10: the request log knows the NAT address and not the VM's; the consumer's flow log knows the VM.
    fn logs(&self, call: &str) {
        let row = self.read_logs(
            self.producer,
            &format!(
                "resource.type=cloud_run_revision AND resource.labels.service_name=hello-service AND \
                 logName=projects/{}/logs/run.googleapis.com%2Frequests AND httpRequest.status=200",
                self.producer
            ),
            "httpRequest.remoteIp, httpRequest.status, httpRequest.userAgent",
        );
        assert!(row.starts_with("fda3:e722:ac3:") && row.contains("curl/"), "{row}");
        let ip = row.split_whitespace().next().unwrap_or_default();
        assert!(ip.ends_with("a00:302"), "low 32 bits are 10.0.3.2: {row}");

        let in_consumer = self.in_consumer();
        self.gcloud(&format!("compute networks subnets update consumer-subnet --enable-flow-logs {in_consumer}"));
        self.ssh(call);
        let endpoint = self.ranges.endpoint();
        let flow = self.read_logs(
            self.consumer,
            &format!(
                "resource.type=gce_subnetwork AND resource.labels.subnetwork_name=consumer-subnet AND \
                 logName=projects/{}/logs/compute.googleapis.com%2Fvpc_flows AND \
                 jsonPayload.connection.dest_ip=\"{endpoint}\"",
                self.consumer
            ),
            "jsonPayload.connection.src_ip, jsonPayload.connection.dest_ip, jsonPayload.connection.dest_port",
        );
        assert_eq!(flow.split_whitespace().take(3).collect::<Vec<_>>(), [self.vm_address(), endpoint, "80"], "{flow}");
    }

    /// What `logging read` prints, once there is something.
    fn read_logs(&self, project: &str, filter: &str, columns: &str) -> String {
        until("an entry", || {
            let out = self
                .gcloud(&format!("logging read '{filter}' --project={project} --limit=5 --format='value({columns})'"));
            if out.is_empty() { Err("empty".to_owned()) } else { Ok(out) }
        })
    }

    /// Everything that was made, in an order that works: users before what they use.
    fn deletions(&self) -> Vec<Deletion> {
        let (in_producer, in_consumer) = (self.in_producer(), self.in_consumer());
        let zonal = format!("--zone={ZONE} --project={}", self.consumer);
        let global = |project: &str| format!("--project={project}");
        let at = |project: &str, path: &str| Some(format!("projects/{project}/regions/{REGION}/{path}"));
        let producers = |path: &str| at(self.producer, path);
        let consumers = |path: &str| at(self.consumer, path);
        let free = |what, at: &str| Deletion { what, at: at.to_owned(), used_by: None };
        let used = |what, at: &str, used_by| Deletion { what, at: at.to_owned(), used_by };
        vec![
            free("compute instances delete test-vm", &zonal),
            free("compute forwarding-rules delete psc-endpoint", &in_consumer),
            used("compute addresses delete psc-endpoint-ip", &in_consumer, consumers("forwardingRules/psc-endpoint")),
            free("compute firewall-rules delete allow-iap-ssh", &global(self.consumer)),
            used("compute networks subnets delete consumer-subnet", &in_consumer, Some(String::new())),
            used("compute networks delete consumer-vpc", &global(self.consumer), Some(String::new())),
            free("compute service-attachments delete hello-service-attachment", &in_producer),
            used(
                "compute forwarding-rules delete hello-forwarding-rule",
                &in_producer,
                producers("serviceAttachments/hello-service-attachment"),
            ),
            used(
                "compute target-http-proxies delete hello-target-proxy",
                &in_producer,
                producers("forwardingRules/hello-forwarding-rule"),
            ),
            used(
                "compute url-maps delete hello-url-map",
                &in_producer,
                producers("targetHttpProxies/hello-target-proxy"),
            ),
            used(
                "compute backend-services delete hello-backend-service",
                &in_producer,
                producers("urlMaps/hello-url-map"),
            ),
            used(
                "compute network-endpoint-groups delete hello-serverless-neg",
                &in_producer,
                producers("backendServices/hello-backend-service"),
            ),
            free("run services delete hello-service", &in_producer),
            used(
                "compute networks subnets delete producer-psc-subnet",
                &in_producer,
                producers("serviceAttachments/hello-service-attachment"),
            ),
            used(
                "compute networks subnets delete proxy-only-subnet",
                &in_producer,
                producers("forwardingRules/hello-forwarding-rule"),
            ),
            used(
                "compute networks subnets delete producer-subnet",
                &in_producer,
                producers("forwardingRules/hello-forwarding-rule"),
            ),
            used("compute networks delete producer-vpc", &global(self.producer), Some(String::new())),
        ]
    }

    /// First from the bottom up: whatever is in use stays, and who uses it is named. Then in order.
    fn take_down(&self) {
        let deletions = self.deletions();
        for Deletion { what, at, used_by } in deletions.iter().rev() {
            let Some(user) = used_by else { continue };
            let said = self.try_gcloud(&format!("{what} {at}"));
            assert_eq!(said.code, Some(1), "{what}: {said:?}");
            let name = what.rsplit(' ').next().unwrap_or_default();
            let clear = said.err.contains(&format!("/{name}' is already being used by 'projects/"));
            assert!(clear && said.err.contains(user), "{what}: {}", said.err);
        }
        for Deletion { what, at, .. } in &deletions {
            self.gcloud(&format!("{what} {at}"));
        }
    }

    /// Everything that the API lists in both projects.
    fn resources(&self) -> Vec<Value> {
        [self.producer, self.consumer].into_iter().flat_map(|project| self.resources_of(project)).collect()
    }

    fn resources_of(&self, project: &str) -> Vec<Value> {
        let compute = [
            "global/networks".to_owned(),
            "global/firewalls".to_owned(),
            format!("zones/{ZONE}/instances"),
            format!("regions/{REGION}/subnetworks"),
            format!("regions/{REGION}/addresses"),
            format!("regions/{REGION}/forwardingRules"),
            format!("regions/{REGION}/targetHttpProxies"),
            format!("regions/{REGION}/urlMaps"),
            format!("regions/{REGION}/backendServices"),
            format!("regions/{REGION}/networkEndpointGroups"),
            format!("regions/{REGION}/serviceAttachments"),
        ];
        let mut all: Vec<Value> = Vec::new();
        for collection in compute {
            let listed = self.cloud.get(&format!("projects/{project}/{collection}"));
            assert!(listed["kind"].as_str().is_some_and(|kind| kind.ends_with("List")), "{listed}");
            all.extend(listed["items"].as_array().into_iter().flatten().map(|item| item["selfLink"].clone()));
        }
        let services = format!("/v2/projects/{project}/locations/{REGION}/services");
        let listed = self.cloud.call("GET", "run.googleapis.com", &services, None).body;
        all.extend(listed["services"].as_array().into_iter().flatten().map(|service| service["name"].clone()));
        all
    }
}

#[test]
fn the_walkthrough_typed_with_gcloud_ends_with_the_page_and_true_logs_and_is_deleted_without_a_trace() {
    if !installed("gcloud", "the walkthrough typed with gcloud") || !installed("ssh", "the walkthrough's VM") {
        return;
    }
    let cloud = Cloud::up();
    let walk = Walk {
        cloud: &cloud,
        home: Home::of(&cloud),
        producer: "producer-blog",
        consumer: "consumer-blog",
        ranges: Ranges::Apart,
    };
    walk.projects();
    walk.publish();
    walk.connect();
    let call = walk.call();
    walk.logs(&call);
    walk.take_down();
    assert_eq!(walk.resources(), [""; 0]);
    cloud.kernel_equals_plan();
    assert_eq!(cloud.networks(), [""; 0], "namespaces of networks that are gone");
    for project in [walk.producer, walk.consumer] {
        walk.gcloud(&format!("projects delete {project}"));
        let state = walk.gcloud(&format!("projects describe {project} --format='value(lifecycleState)'"));
        assert_eq!(state, "DELETE_REQUESTED");
        let said = walk.try_gcloud(&format!("compute networks list --project={project}"));
        assert_eq!(said.code, Some(1), "a project that goes answers no calls: {said:?}");
    }
    cloud.down();
}

#[test]
fn two_projects_that_publish_to_each_other_in_the_same_ranges_do_not_meet_and_one_walk_leaves_the_other() {
    if !installed("gcloud", "two walkthroughs at once") || !installed("ssh", "two walkthroughs at once") {
        return;
    }
    let journey = Journey::published(&[]);
    let consumer = journey.consumer(Ranges::Same.consumer());
    let vm = consumer.vm("test-vm", None);
    consumer.endpoint("psc-endpoint", ATTACHMENT, Some(Ranges::Same.endpoint()));
    let endpoint = format!("http://{}/", Ranges::Same.endpoint());
    let cloud = &journey.cloud;
    let networks = cloud.networks();

    // The same again with the parts exchanged.
    for (project, api) in [(CONSUMER, "run.googleapis.com"), (PRODUCER, "iap.googleapis.com")] {
        tombolo::journey::enable(&journey.client(), project, &[api]).unwrap();
    }
    let walk = Walk { cloud, home: Home::of(cloud), producer: CONSUMER, consumer: PRODUCER, ranges: Ranges::Same };
    let before = walk.resources();
    walk.publish();
    walk.connect();
    let call = walk.call();
    walk.logs(&call);
    assert_eq!(vm.status(&endpoint, &vm.id_token(&journey.url)), 200, "while both are there");
    let theirs = Vm::find(cloud, PRODUCER, "test-vm");
    assert_eq!(
        theirs.status(&endpoint, &theirs.id_token(&journey.url)),
        401,
        "a token for the other project's service"
    );
    walk.take_down();
    assert_eq!(walk.resources(), before, "what the first one made");
    assert_eq!(vm.status(&endpoint, &vm.id_token(&journey.url)), 200, "after one has gone");
    cloud.kernel_equals_plan();
    assert_eq!(cloud.networks(), networks);
}
