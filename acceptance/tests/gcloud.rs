//! The walkthrough as its author types it, with the real, unmodified `gcloud`. `compute ssh` is `tombolo ssh` here.

use acceptance::{Cloud, installed, until};

const P: &str = "producer-blog";
const C: &str = "consumer-blog";

#[test]
fn the_walkthrough_typed_with_gcloud_ends_with_the_page_and_true_logs() {
    if !installed("gcloud", "the walkthrough typed with gcloud") {
        return;
    }
    let cloud = Cloud::up();
    let gcloud = |args: &str| cloud.gcloud(args).ok();

    // 0: two projects, their APIs
    gcloud(&format!("projects create {P}"));
    gcloud(&format!("projects create {C}"));
    gcloud(&format!("services enable run.googleapis.com compute.googleapis.com --project={P}"));
    gcloud(&format!("services enable compute.googleapis.com iap.googleapis.com --project={C}"));
    let enabled = gcloud(&format!("services list --enabled --project={C} --format='value(config.name)'"));
    assert!(enabled.contains("compute.googleapis.com") && !enabled.contains("run.googleapis.com"), "{enabled}");

    // 1: the service, private and for authorised callers only
    let deployed = cloud.gcloud(&format!(
        "run deploy hello-service --image=us-docker.pkg.dev/cloudrun/container/hello --platform=managed \
         --no-allow-unauthenticated --ingress=internal --region=asia-northeast1 --project={P}"
    ));
    let said = deployed.err.replace("\u{1b}[1m", "").replace("\u{1b}[m", "");
    assert!(said.contains("has been deployed and is serving 100 percent of traffic"), "{said}");
    let number = gcloud(&format!("projects describe {C} --format='value(projectNumber)'"));
    let member = format!("serviceAccount:{number}-compute@developer.gserviceaccount.com");
    let policy = gcloud(&format!(
        "run services add-iam-policy-binding hello-service --region=asia-northeast1 --member={member} \
         --role=roles/run.invoker --project={P}"
    ));
    assert!(policy.contains(&member) && policy.contains("roles/run.invoker"), "{policy}");

    // 2: the producer's network
    gcloud(&format!("compute networks create producer-vpc --subnet-mode=custom --project={P}"));
    let subnet = |name: &str, network: &str, range: &str, project: &str, more: &str| {
        gcloud(&format!(
            "compute networks subnets create {name} --network={network} --range={range} --region=asia-northeast1 \
             --project={project} {more}"
        ))
    };
    let table = subnet("producer-subnet", "producer-vpc", "10.0.1.0/24", P, "");
    assert!(table.contains("10.0.1.0/24"), "{table}");
    subnet("proxy-only-subnet", "producer-vpc", "10.0.2.0/24", P, "--purpose=REGIONAL_MANAGED_PROXY --role=ACTIVE");
    subnet("producer-psc-subnet", "producer-vpc", "10.0.3.0/24", P, "--purpose=PRIVATE_SERVICE_CONNECT");

    // 3: the internal load balancer
    let in_producer = format!("--region=asia-northeast1 --project={P}");
    gcloud(&format!(
        "compute network-endpoint-groups create hello-serverless-neg --network-endpoint-type=serverless \
         --cloud-run-service=hello-service {in_producer}"
    ));
    gcloud(&format!(
        "compute backend-services create hello-backend-service --load-balancing-scheme=INTERNAL_MANAGED --protocol=HTTP \
         {in_producer}"
    ));
    gcloud(&format!(
        "compute backend-services add-backend hello-backend-service --network-endpoint-group=hello-serverless-neg \
         --network-endpoint-group-region=asia-northeast1 {in_producer}"
    ));
    gcloud(&format!("compute url-maps create hello-url-map --default-service=hello-backend-service {in_producer}"));
    gcloud(&format!(
        "compute target-http-proxies create hello-target-proxy --url-map=hello-url-map --url-map-region=asia-northeast1 \
         {in_producer}"
    ));
    gcloud(&format!(
        "compute forwarding-rules create hello-forwarding-rule --load-balancing-scheme=INTERNAL_MANAGED \
         --network=producer-vpc --subnet=producer-subnet --target-http-proxy=hello-target-proxy \
         --target-http-proxy-region=asia-northeast1 --ports=80 {in_producer}"
    ));
    let vip = gcloud(&format!(
        "compute forwarding-rules describe hello-forwarding-rule {in_producer} --format='value(IPAddress)'"
    ));
    assert!(vip.starts_with("10.0.1."), "{vip}");

    // 4: publish it
    gcloud(&format!(
        "compute service-attachments create hello-service-attachment --producer-forwarding-rule=hello-forwarding-rule \
         --connection-preference=ACCEPT_MANUAL --nat-subnets=producer-psc-subnet --consumer-accept-list={C}=10 {in_producer}"
    ));
    let attachment = gcloud(&format!(
        "compute service-attachments describe hello-service-attachment {in_producer} --format='value(selfLink)'"
    ));

    // 5, 6: the consumer's network and endpoint
    let in_consumer = format!("--region=asia-northeast1 --project={C}");
    gcloud(&format!("compute networks create consumer-vpc --subnet-mode=custom --project={C}"));
    subnet("consumer-subnet", "consumer-vpc", "10.1.0.0/24", C, "");
    gcloud(&format!(
        "compute addresses create psc-endpoint-ip --subnet=consumer-subnet --addresses=10.1.0.5 {in_consumer}"
    ));
    gcloud(&format!(
        "compute forwarding-rules create psc-endpoint --network=consumer-vpc --address=psc-endpoint-ip \
         --target-service-attachment={attachment} {in_consumer}"
    ));
    let status = gcloud(&format!(
        "compute forwarding-rules describe psc-endpoint {in_consumer} --format='value(pscConnectionStatus)'"
    ));
    assert_eq!(status, "ACCEPTED");

    // 7: the producer sees it too
    let connected = gcloud(&format!(
        "compute service-attachments describe hello-service-attachment {in_producer} --format='yaml(connectedEndpoints)'"
    ));
    let wanted = format!(
        "endpoint: https://www.googleapis.com/compute/v1/projects/{C}/regions/asia-northeast1/forwardingRules/psc-endpoint"
    );
    assert!(connected.contains(&wanted) && connected.contains("status: ACCEPTED"), "{connected}");

    // 8: a VM without an external address calls it with an ID token
    gcloud(&format!(
        "compute firewall-rules create allow-iap-ssh --network=consumer-vpc --allow=tcp:22 \
         --source-ranges=35.235.240.0/20 --project={C}"
    ));
    let table = gcloud(&format!(
        "compute instances create test-vm --zone=asia-northeast1-b --machine-type=e2-micro \
         --network-interface=network=consumer-vpc,subnet=consumer-subnet,no-address --project={C}"
    ));
    assert!(table.contains("10.1.0.2") && table.contains("RUNNING"), "{table}");
    let url = gcloud(&format!("run services describe hello-service {in_producer} --format='value(status.url)'"));
    let token = format!(
        "TOKEN=$(curl -s -H 'Metadata-Flavor: Google' \
         'http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/identity?audience={url}')"
    );
    let page =
        cloud.in_vm("test-vm", &format!("{token}; curl -s http://10.1.0.5/ -H \"Authorization: Bearer $TOKEN\"")).ok();
    assert!(page.contains("Congratulations | Cloud Run"), "{page}");
    let code = cloud.in_vm("test-vm", "curl -s -o /dev/null -w '%{http_code}' http://10.1.0.5/").ok();
    assert_eq!(code, "403", "without a token");

    // 9: the request log knows the NAT address and not the VM's
    let filter = format!(
        "resource.type=cloud_run_revision AND resource.labels.service_name=hello-service AND \
         logName=projects/{P}/logs/run.googleapis.com%2Frequests AND httpRequest.status=200"
    );
    let row = until("the request log", || {
        let said = cloud.gcloud(&format!(
            "logging read '{filter}' --project={P} --limit=5 \
             --format='value(httpRequest.remoteIp, httpRequest.status, httpRequest.userAgent)'"
        ));
        let out = said.ok();
        if out.is_empty() { Err("empty".to_owned()) } else { Ok(out) }
    });
    assert!(row.starts_with("fda3:e722:ac3:") && row.contains("curl/"), "{row}");
    assert!(row.split_whitespace().next().is_some_and(|ip| ip.ends_with("a00:302")), "low 32 bits are 10.0.3.2: {row}");

    // 10: and the consumer's flow log knows the VM
    gcloud(&format!("compute networks subnets update consumer-subnet --enable-flow-logs {in_consumer}"));
    cloud.in_vm("test-vm", &format!("{token}; curl -s http://10.1.0.5/ -H \"Authorization: Bearer $TOKEN\"")).ok();
    let filter = format!(
        "resource.type=gce_subnetwork AND resource.labels.subnetwork_name=consumer-subnet AND \
         logName=projects/{C}/logs/compute.googleapis.com%2Fvpc_flows AND jsonPayload.connection.dest_ip=\"10.1.0.5\""
    );
    let flow = until("the flow log", || {
        let out = cloud
            .gcloud(&format!(
                "logging read '{filter}' --project={C} --limit=5 --format='value(jsonPayload.connection.src_ip, \
                 jsonPayload.connection.dest_ip, jsonPayload.connection.dest_port)'"
            ))
            .ok();
        if out.is_empty() { Err("empty".to_owned()) } else { Ok(out) }
    });
    assert_eq!(flow.split_whitespace().take(3).collect::<Vec<_>>(), ["10.1.0.2", "10.1.0.5", "80"], "{flow}");
    cloud.down();
}
