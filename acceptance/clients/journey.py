"""The walkthrough over REST, with nothing but google-auth and requests: make, poll, call, read logs, delete.

Arguments: PRODUCER CONSUMER HOME, and the command that an SSH client uses as its ProxyCommand. Everything else comes from
the environment, as for any program: credentials, proxy, certificates. Says at the end what it saw, as JSON.
"""

import json
import os
import subprocess
import sys
import time

import google.auth
from google.auth.transport.requests import AuthorizedSession, Request

PRODUCER, CONSUMER, HOME, TUNNEL = sys.argv[1:]
REGION, ZONE = "asia-northeast1", "asia-northeast1-b"
COMPUTE = "https://compute.googleapis.com/compute/v1/"
RUN = f"https://run.googleapis.com/v2/projects/{PRODUCER}/locations/{REGION}"
P, C = (f"projects/{project}/regions/{REGION}/" for project in (PRODUCER, CONSUMER))
PATIENCE_S = 60

credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
session = AuthorizedSession(credentials)


def call(method, url, body=None, **more):
    answer = session.request(method, url, json=body, timeout=PATIENCE_S, **more)
    if not answer.ok:
        raise SystemExit(f"{method} {url}: {answer.status_code} {answer.text}")
    return answer.json()


def until(ask):
    """Asks until the answer counts as true."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.05)
    raise SystemExit(f"no answer in {PATIENCE_S} s: {ask!r}")


def done(operation):
    """Polls a Compute operation, as libraries do: by reading it."""
    link = operation["selfLink"].replace("https://www.googleapis.com/", "https://compute.googleapis.com/")
    operation = until(lambda: (now := call("GET", link))["status"] == "DONE" and now)
    if "error" in operation:
        raise SystemExit(f"{operation['operationType']} {operation['targetLink']}: {operation['error']}")


def make(collection, body):
    done(call("POST", COMPUTE + collection, body))
    return call("GET", f"{COMPUTE}{collection}/{body['name']}")


def finish(operation):
    """Polls an operation of Cloud Run."""
    url = "https://run.googleapis.com/v2/" + operation["name"]
    operation = until(lambda: (now := call("GET", url)).get("done") and now)
    if "error" in operation:
        raise SystemExit(str(operation["error"]))
    return operation["response"]


def publish():
    service = finish(call("POST", f"{RUN}/services?serviceId=hello-service", {
        "ingress": "INGRESS_TRAFFIC_INTERNAL_ONLY",
        "template": {"containers": [{"image": "us-docker.pkg.dev/cloudrun/container/hello"}]},
    }))
    number = call("GET", f"https://cloudresourcemanager.googleapis.com/v1/projects/{CONSUMER}")["projectNumber"]
    policy = call("GET", f"{RUN}/services/hello-service:getIamPolicy")
    member = f"serviceAccount:{number}-compute@developer.gserviceaccount.com"
    policy["bindings"] = [{"role": "roles/run.invoker", "members": [member]}]
    call("POST", f"{RUN}/services/hello-service:setIamPolicy", {"policy": policy})

    network = make(f"projects/{PRODUCER}/global/networks", {"name": "producer-vpc", "autoCreateSubnetworks": False})
    subnets = {}
    for name, ip_range, more in [
        ("producer-subnet", "10.0.1.0/24", {}),
        ("proxy-only-subnet", "10.0.2.0/24", {"purpose": "REGIONAL_MANAGED_PROXY", "role": "ACTIVE"}),
        ("producer-psc-subnet", "10.0.3.0/24", {"purpose": "PRIVATE_SERVICE_CONNECT"}),
    ]:
        body = {"name": name, "ipCidrRange": ip_range, "network": network["selfLink"], **more}
        subnets[name] = make(P + "subnetworks", body)["selfLink"]
    neg = make(P + "networkEndpointGroups", {
        "name": "hello-serverless-neg", "networkEndpointType": "SERVERLESS", "cloudRun": {"service": "hello-service"}})
    backend = make(P + "backendServices", {
        "name": "hello-backend-service", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP",
        "backends": [{"group": neg["selfLink"]}]})
    url_map = make(P + "urlMaps", {"name": "hello-url-map", "defaultService": backend["selfLink"]})
    proxy = make(P + "targetHttpProxies", {"name": "hello-target-proxy", "urlMap": url_map["selfLink"]})
    rule = make(P + "forwardingRules", {
        "name": "hello-forwarding-rule", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80",
        "network": network["selfLink"], "subnetwork": subnets["producer-subnet"], "target": proxy["selfLink"]})
    attachment = make(P + "serviceAttachments", {
        "name": "hello-service-attachment", "connectionPreference": "ACCEPT_MANUAL", "targetService": rule["selfLink"],
        "natSubnets": [subnets["producer-psc-subnet"]],
        "consumerAcceptLists": [{"projectIdOrNum": CONSUMER, "connectionLimit": 10}]})
    return service["uri"], attachment["selfLink"]


def connect(attachment):
    network = make(f"projects/{CONSUMER}/global/networks", {"name": "consumer-vpc", "autoCreateSubnetworks": False})
    subnet = make(C + "subnetworks", {
        "name": "consumer-subnet", "ipCidrRange": "10.1.0.0/24", "network": network["selfLink"],
        "logConfig": {"enable": True, "flowSampling": 1.0}})
    address = make(C + "addresses", {
        "name": "psc-endpoint-ip", "addressType": "INTERNAL", "purpose": "GCE_ENDPOINT", "address": "10.1.0.5",
        "subnetwork": subnet["selfLink"]})
    endpoint = make(C + "forwardingRules", {
        "name": "psc-endpoint", "IPAddress": address["selfLink"], "network": network["selfLink"], "target": attachment})
    make(f"projects/{CONSUMER}/global/firewalls", {
        "name": "allow-iap-ssh", "network": network["selfLink"], "sourceRanges": ["35.235.240.0/20"],
        "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}]})
    with open(f"{HOME}/key.pub") as public:
        keys = {"items": [{"key": "ssh-keys", "value": "ada:" + public.read().strip()}]}
    make(f"projects/{CONSUMER}/zones/{ZONE}/instances", {
        "name": "test-vm", "machineType": f"zones/{ZONE}/machineTypes/e2-micro", "metadata": keys,
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": {
            "sourceImage": "projects/debian-cloud/global/images/family/debian-12"}}],
        "networkInterfaces": [{"network": network["selfLink"], "subnetwork": subnet["selfLink"]}],
        "serviceAccounts": [
            {"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}]})
    return endpoint["pscConnectionStatus"]


def ssh(command):
    """The system's OpenSSH client, through the proxy."""
    options = ["StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={HOME}/known_hosts", f"ProxyCommand={TUNNEL}",
               "BatchMode=yes", "IdentitiesOnly=yes"]
    words = ["ssh", "-F", "none", "-i", f"{HOME}/key", *(word for option in options for word in ("-o", option))]
    # A VM that has just started may not listen yet.
    said = until(lambda: (s := run([*words, "ada@the-vm", command])).returncode != 255 and s)
    if said.returncode:
        raise SystemExit(f"{command}: {said.returncode} {said.stdout} {said.stderr}")
    return said.stdout


def run(words):
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S,
                          env={**os.environ, "TUNNEL_TOKEN": credentials.token})


def entries(project, text):
    body = {"resourceNames": [f"projects/{project}"], "filter": text, "orderBy": "timestamp desc", "pageSize": 5}
    return until(lambda: call("POST", "https://logging.googleapis.com/v2/entries:list", body).get("entries"))


def delete():
    """Users before what they use."""
    for path in [
        f"projects/{CONSUMER}/zones/{ZONE}/instances/test-vm",
        f"projects/{CONSUMER}/global/firewalls/allow-iap-ssh",
        C + "forwardingRules/psc-endpoint", C + "addresses/psc-endpoint-ip", C + "subnetworks/consumer-subnet",
        f"projects/{CONSUMER}/global/networks/consumer-vpc",
        P + "serviceAttachments/hello-service-attachment", P + "forwardingRules/hello-forwarding-rule",
        P + "targetHttpProxies/hello-target-proxy", P + "urlMaps/hello-url-map",
        P + "backendServices/hello-backend-service", P + "networkEndpointGroups/hello-serverless-neg",
        P + "subnetworks/producer-psc-subnet", P + "subnetworks/proxy-only-subnet", P + "subnetworks/producer-subnet",
        f"projects/{PRODUCER}/global/networks/producer-vpc",
    ]:
        done(call("DELETE", COMPUTE + path))
        gone = session.get(COMPUTE + path, timeout=PATIENCE_S)
        if gone.status_code != 404:
            raise SystemExit(f"{path} is still there: {gone.text}")
    finish(call("DELETE", f"{RUN}/services/hello-service"))


def main():
    url, attachment = publish()
    seen = {"who": credentials.service_account_email, "project": project, "status": connect(attachment)}
    token = ("curl -s -H 'Metadata-Flavor: Google' 'http://metadata.google.internal/computeMetadata/v1/instance/"
             f"service-accounts/default/identity?audience={url}'")
    page = ssh(f'curl -s http://10.1.0.5/ -H "Authorization: Bearer $({token})"')
    seen["page"] = "Congratulations | Cloud Run" in page
    seen["without"] = ssh("curl -s -o /dev/null -w '%{http_code}' http://10.1.0.5/")
    request = entries(PRODUCER, f'logName="projects/{PRODUCER}/logs/run.googleapis.com%2Frequests" '
                                "AND httpRequest.status=200")[0]
    seen["from"] = request["httpRequest"]["remoteIp"]
    flow = entries(CONSUMER, f'logName="projects/{CONSUMER}/logs/compute.googleapis.com%2Fvpc_flows" '
                             'AND jsonPayload.connection.dest_ip="10.1.0.5"')[0]["jsonPayload"]["connection"]
    seen["flow"] = [flow["src_ip"], flow["dest_ip"], flow["dest_port"]]
    delete()
    print(json.dumps(seen))


credentials.refresh(Request())
main()
