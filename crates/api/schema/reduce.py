"""Reduces Google's discovery documents to the facts that `schema.rs` needs: which fields exist, and their types.

    pip download --no-deps google-api-python-client && unzip google_api_python_client-*.whl
    python3 reduce.py googleapiclient/discovery_cache/documents .

writes compute.v1.json, run.v1.json and run.v2.json. A type is an object from field name to type, where a type is

    string bytes bool int32 uint32 int64 uint64 float double any     a scalar
    Name                                                            another type of the same file
    [T]  {T}                                                        a list of T; a map from string to T
    enum:A|B                                                        one of the names

and a trailing `!` says that only the server sets the field.
"""

import json
import sys

FILES = {
    "compute.v1": [
        "Address", "BackendService", "Firewall", "ForwardingRule", "Instance", "InstancesSetLabelsRequest",
        "MachineType", "Metadata", "Network", "NetworkEndpointGroup", "Operation", "Region", "RegionSetLabelsRequest",
        "ServiceAttachment", "Subnetwork", "SubnetworksExpandIpCidrRangeRequest",
        "SubnetworksSetPrivateIpGoogleAccessRequest", "Tags", "TargetHttpProxy", "TargetReference", "UrlMap",
        "UrlMapReference", "Zone",
    ],
    "run.v1": ["Service", "SetIamPolicyRequest", "TestIamPermissionsRequest"],
    "run.v2": ["GoogleCloudRunV2Service", "GoogleIamV1SetIamPolicyRequest", "GoogleIamV1TestIamPermissionsRequest"],
}
FORMATS = {"byte": "bytes", "int32": "int32", "uint32": "uint32", "int64": "int64", "uint64": "uint64",
           "float": "float", "double": "double"}


def of(spec, name, types, todo):
    """The type of one property; inline objects get the name of their place."""
    if "$ref" in spec:
        todo.append(spec["$ref"])
        return spec["$ref"]
    if "enum" in spec:
        return "enum:" + "|".join(spec["enum"])
    kind = spec["type"]
    if kind == "array":
        return "[" + of(spec["items"], name, types, todo) + "]"
    if kind == "object" and "additionalProperties" in spec:
        return "{" + of(spec["additionalProperties"], name, types, todo) + "}"
    if kind == "object" and "properties" in spec:
        types[name] = fields(spec, name, types, todo)
        return name
    if kind in ("any", "object"):
        return "any"
    if kind == "boolean":
        return "bool"
    return FORMATS.get(spec.get("format"), {"integer": "int32", "number": "double"}.get(kind, kind))


def fields(schema, name, types, todo):
    out = {}
    for field, spec in sorted(schema.get("properties", {}).items()):
        text = spec.get("description", "").lower()
        output = spec.get("readOnly") or text.startswith(("[output only]", "output only"))
        out[field] = of(spec, name + field[0].upper() + field[1:], types, todo) + ("!" if output else "")
    return out


def reduce(document, roots):
    types, todo = {}, list(roots)
    while todo:
        name = todo.pop()
        if name not in types:
            types[name] = {}
            types[name] = fields(document["schemas"][name], name, types, todo)
    return {"revision": document["revision"], "types": dict(sorted(types.items()))}


source, target = sys.argv[1:]
for file, roots in FILES.items():
    with open(f"{source}/{file}.json", encoding="utf-8") as f:
        reduced = reduce(json.load(f), roots)
    with open(f"{target}/{file}.json", "w", encoding="utf-8") as f:
        json.dump(reduced, f, indent=1)
        f.write("\n")
