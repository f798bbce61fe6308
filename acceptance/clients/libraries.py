"""Google's client libraries for Compute, Cloud Run, Resource Manager, Service Usage and Logging, over REST.

Argument: PROJECT. Everything else comes from the environment. Says at the end what it saw, as JSON.
"""

import json
import sys

from google.api_core.exceptions import BadRequest, Forbidden, NotFound
from google.cloud import compute_v1, logging_v2, resourcemanager_v3, run_v2, service_usage_v1

PROJECT = sys.argv[1]
REGION = "asia-northeast1"
PATIENCE_S = 60
seen = {}

projects = resourcemanager_v3.ProjectsClient(transport="rest")
seen["state"] = projects.get_project(name=f"projects/{PROJECT}").state.name
services = service_usage_v1.ServiceUsageClient(transport="rest")
operation = services.enable_service({"name": f"projects/{PROJECT}/services/iap.googleapis.com"})
seen["enabled"] = operation.result(timeout=PATIENCE_S).service.state.name

networks, subnets = compute_v1.NetworksClient(), compute_v1.SubnetworksClient()
at, scope = {"project": PROJECT}, {"project": PROJECT, "region": REGION}
wanted = compute_v1.Network(name="vpc", auto_create_subnetworks=False)
networks.insert(**at, network_resource=wanted).result(timeout=PATIENCE_S)
network = networks.get(**at, network="vpc").self_link
for n in range(3):
    subnet = compute_v1.Subnetwork(name=f"subnet-{n}", network=network, ip_cidr_range=f"10.0.{n}.0/24")
    subnets.insert(**scope, subnetwork_resource=subnet).result(timeout=PATIENCE_S)
# Three pages of one.
page_by_page = compute_v1.ListSubnetworksRequest(**scope, max_results=1)
seen["subnets"] = [subnet.name for subnet in subnets.list(request=page_by_page)]
refused = networks.delete(**at, network="vpc")
try:
    refused.result(timeout=PATIENCE_S)
except BadRequest:
    seen["in use"] = refused.error.errors[0].message

revisions = run_v2.ServicesClient(transport="rest")
parent = f"projects/{PROJECT}/locations/{REGION}"
image = run_v2.Container(image="us-docker.pkg.dev/cloudrun/container/hello")
service = run_v2.Service(template=run_v2.RevisionTemplate(containers=[image]))
made = revisions.create_service(parent=parent, service=service, service_id="hello").result(timeout=PATIENCE_S)
seen["service"] = made.terminal_condition.state.name
seen["services"] = [one.name for one in revisions.list_services(parent=parent)]
revisions.delete_service(name=made.name).result(timeout=PATIENCE_S)

log = logging_v2.Client(project=PROJECT, _use_grpc=False)
log.logger("mine").log_text("written by a library", severity="WARNING")
# Beside the first entry the library writes one about itself.
entry = next(iter(log.list_entries(filter_=f'logName="projects/{PROJECT}/logs/mine" AND severity=WARNING')))
seen["entry"] = [entry.payload, entry.severity]

for n in range(3):
    subnets.delete(**scope, subnetwork=f"subnet-{n}").result(timeout=PATIENCE_S)
networks.delete(**at, network="vpc").result(timeout=PATIENCE_S)
try:
    networks.get(**at, network="vpc")
except NotFound as gone:
    seen["gone"] = gone.code
try:
    networks.list(project="somebody-elses")
except (Forbidden, NotFound) as hidden:
    seen["hidden"] = hidden.code
print(json.dumps(seen))
