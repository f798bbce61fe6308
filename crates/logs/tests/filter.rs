//! The filter language as a table: an entry, a filter, whether it matches, and why.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use logs::{Filter, LogTime};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A request that a service answered with 500.
fn request() -> Value {
    json!({
        "insertId": "68ef063700085a861e38cc60",
        "httpRequest": {
            "requestMethod": "POST", "requestUrl": "https://hello.run.app/p?q=1", "requestSize": "906", "status": 500,
            "responseSize": "386", "userAgent": "curl/8.5.0", "remoteIp": "fda3:e722:ac3:cc00:22b:7027:a00:302",
            "latency": "2.602287838s", "protocol": "HTTP/1.1"
        },
        "resource": {"type": "cloud_run_revision", "labels": {
            "project_id": "p", "service_name": "hello-service", "configuration_name": "hello-service",
            "revision_name": "hello-service-00006-hiz", "location": "us-central1"
        }},
        "timestamp": "2025-10-15T02:25:56.943333Z",
        "severity": "ERROR",
        "labels": {"instanceId": "0069c7a9", "commit.sha": "Abc", "UPPER": "x"},
        "logName": "projects/p/logs/run.googleapis.com%2Frequests",
        "trace": "projects/p/traces/1cfb32c2", "spanId": "8690fc01c12c1a51", "traceSampled": true,
        "receiveTimestamp": "2025-10-15T02:25:59.698066384Z"
    })
}

/// A flow from a VM to an endpoint. No severity, no httpRequest.
fn flow() -> Value {
    json!({
        "insertId": "f1",
        "jsonPayload": {
            "connection": {"src_ip": "10.1.0.2", "src_port": 52328, "dest_ip": "10.1.0.5", "dest_port": 80, "protocol": 6},
            "reporter": "SRC", "bytes_sent": "1312", "packets_sent": "9", "rtt_msec": "2",
            "src_vpc": {"vpc_name": "consumer-vpc"}
        },
        "resource": {"type": "gce_subnetwork", "labels": {"subnetwork_name": "consumer-subnet", "subnetwork_id": "42"}},
        "timestamp": "2025-10-15T02:26:00Z",
        "logName": "projects/p/logs/compute.googleapis.com%2Fvpc_flows",
        "receiveTimestamp": "2025-10-15T02:26:01Z"
    })
}

/// What a program wrote, with all the types JSON has.
fn json_line() -> Value {
    json!({
        "insertId": "j1",
        "jsonPayload": {
            "message": "Hello Wörld", "code": 42, "ratio": 0.5, "ok": true, "nothing": null, "text_code": "42",
            "tags": ["red", "Green"], "items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}], "empty": "",
            "foo.bar": "dotted", "camelCase": 1, "took": "3s"
        },
        "resource": {"type": "global"},
        "timestamp": "2025-10-15T02:26:00Z", "severity": "NOTICE",
        "logName": "projects/p/logs/my-log", "receiveTimestamp": "2025-10-15T02:26:01Z"
    })
}

/// An API call in the audit log.
fn audit() -> Value {
    json!({
        "insertId": "a1",
        "protoPayload": {
            "@type": "type.googleapis.com/google.cloud.audit.AuditLog", "serviceName": "run.googleapis.com",
            "methodName": "google.cloud.run.v1.Services.CreateService",
            "authenticationInfo": {"principalEmail": "ann@example.com"},
            "authorizationInfo": [{"permission": "run.services.create", "granted": true}, {"permission": "iam.serviceAccounts.actAs"}]
        },
        "resource": {"type": "cloud_run_revision"},
        "timestamp": "2025-10-15T02:26:00Z", "severity": "NOTICE",
        "operation": {"id": "op-1", "first": true},
        "logName": "projects/p/logs/cloudaudit.googleapis.com%2Factivity", "receiveTimestamp": "2025-10-15T02:26:01Z"
    })
}

/// A plain line.
fn text_line() -> Value {
    json!({
        "insertId": "t1", "textPayload": "a\tUnicorn \"said\" C:\\dir", "resource": {"type": "global"},
        "timestamp": "2025-10-15T02:26:00Z",
        "logName": "projects/p/logs/run.googleapis.com%2Fstdout", "receiveTimestamp": "2025-10-15T02:26:01Z"
    })
}

const YES: bool = true;
const NO: bool = false;

fn check(entry: &Value, cases: &[(&str, bool, &str)]) {
    for (text, want, why) in cases {
        let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}\n{error}\nexpected to parse: {why}"));
        assert_eq!(filter.matches(entry), *want, "{text}\n{why}");
        assert_eq!(filter.select(&entry.to_string()).is_some(), *want, "{text}\n{why}\nas text");
    }
}

#[test]
fn the_filters_of_the_walkthrough_find_their_entries() {
    let run = "resource.type=cloud_run_revision AND resource.labels.service_name=hello-service AND logName=projects/p/logs/run.googleapis.com%2Frequests";
    let vpc = "resource.type=gce_subnetwork AND resource.labels.subnetwork_name=consumer-subnet AND logName=projects/p/logs/compute.googleapis.com%2Fvpc_flows AND jsonPayload.connection.dest_ip=\"10.1.0.5\"";
    let fresh = |filter: &str| format!("timestamp>=\"2025-10-14T02:25:56.000001Z\" AND {filter}");
    check(
        &request(),
        &[(run, YES, "the request log"), (vpc, NO, "another resource"), (&fresh(run), YES, "with gcloud's clause")],
    );
    check(
        &flow(),
        &[(vpc, YES, "the flow log"), (run, NO, "another resource"), (&fresh(vpc), YES, "with gcloud's clause")],
    );
    let service_logs = " resource.type = cloud_run_revision \n AND resource.labels.service_name = hello-service \n AND resource.labels.location = us-central1 \n AND severity >= DEFAULT \n AND timestamp>=\"2025-10-15T00:00:00Z\"";
    check(&request(), &[(service_logs, YES, "blanks and newlines may stand around operators")]);
}

#[test]
fn or_binds_tighter_than_and() {
    // Letters stand for clauses that hold (t) or do not (f).
    let cases = [
        ("t", YES),
        ("f", NO),
        ("t AND f", NO),
        ("t OR f", YES),
        ("f OR t", YES),
        ("t OR t AND f", NO),
        ("f AND t OR t", NO),
        ("f AND f OR t", NO),
        ("t AND f OR t", YES),
        ("t t", YES),
        ("t f", NO),
        ("f t", NO),
        ("t\nt", YES),
        ("t f OR t t", YES),
        ("f f OR t", NO),
        ("NOT f", YES),
        ("NOT t", NO),
        ("-f", YES),
        ("-t", NO),
        ("NOT f OR t", YES),
        ("NOT t OR t", YES),
        ("NOT (t OR t)", NO),
        ("NOT(f)", YES),
        ("-(t f)", YES),
        ("(f AND f) OR t", YES),
        ("t AND NOT f", YES),
        ("f OR NOT t AND NOT f OR t", NO),
        ("t OR NOT t AND NOT t OR t", YES),
        ("((t))", YES),
        ("( t )", YES),
        ("t AND t AND t", YES),
        ("t AND t AND f", NO),
        ("f OR f OR t", YES),
        ("t --f\nt", YES),
        ("--f\nt", YES),
        ("t -- f", YES),
        ("t (f OR t)", YES),
        ("t (f t)", NO),
        ("t AND\tt", YES),
        ("t OR\nf", YES),
    ];
    for (shape, want) in cases {
        let words: Vec<String> = shape.split_inclusive(|c: char| !c.is_alphanumeric()).map(str::to_owned).collect();
        let text: String =
            words.iter().map(|w| w.replace('t', "severity=ERROR").replace('f', "severity=INFO")).collect();
        let filter = Filter::parse(&text).unwrap_or_else(|e| panic!("{shape}: {e}"));
        assert_eq!(filter.matches(&request()), want, "{shape}\n{text}");
    }
}

#[test]
fn fields_of_the_schema_are_typed_and_spelled_freely() {
    check(
        &request(),
        &[
            ("", YES, "an empty filter matches all"),
            ("  -- nothing but a comment", YES, "a comment is nothing"),
            ("httpRequest.status=500", YES, "a number"),
            ("http_request.status=500", YES, "snake case"),
            ("HTTPREQUEST.STATUS = 500", YES, "any case"),
            ("httpRequest.status=\"500\"", YES, "a number may be quoted"),
            ("httpRequest.status=500.0", YES, "numbers are equal by value"),
            ("httpRequest.status:500", YES, "':' with a number is equality"),
            ("httpRequest.status:50", NO, "':' with a number is not a substring"),
            ("httpRequest.status>=400 httpRequest.status<=599", YES, "a range"),
            ("httpRequest.status>500", NO, "greater is not equal"),
            ("httpRequest.status<500", NO, "less is not equal"),
            ("httpRequest.status!=500", NO, "unequal"),
            ("httpRequest.status>-1", YES, "a negative number"),
            ("httpRequest.requestSize>100", YES, "906 > 100 as numbers; as texts 9.. > 1.. too"),
            ("httpRequest.requestSize>1000", NO, "906 < 1000 as numbers, though not as texts"),
            ("httpRequest.requestSize=906", YES, "a 64-bit integer is a string in JSON and still a number"),
            ("httpRequest.latency>2s", YES, "a duration"),
            ("httpRequest.latency>\"2602ms\"", YES, "in another unit"),
            ("httpRequest.latency>3s", NO, "longer"),
            ("httpRequest.latency<1m", YES, "in minutes"),
            ("httpRequest.latency>=2.602287838s", YES, "to the nanosecond"),
            ("httpRequest.latency>=2.602287839s", NO, "to the nanosecond"),
            ("httpRequest.remoteIp=\"fda3:e722:ac3:cc00:22b:7027:a00:302\"", YES, "colons need quotes"),
            ("httpRequest.userAgent:curl", YES, "substring"),
            ("httpRequest.userAgent:CURL", YES, "case does not count"),
            ("httpRequest.userAgent=curl", NO, "'=' is the whole text"),
            ("httpRequest.userAgent=\"CURL/8.5.0\"", YES, "case does not count in equality either"),
            ("httpRequest.requestMethod=post", YES, "case does not count"),
            ("httpRequest.requestMethod>=PA", YES, "texts have an order"),
            ("httpRequest.requestMethod<PA", NO, "texts have an order"),
            ("httpRequest.requestUrl:\"/p?q=1\"", YES, "quoted substring"),
            ("severity=ERROR", YES, "an enum"),
            ("severity=error", YES, "in any case"),
            ("severity=500", YES, "by number"),
            ("severity>=WARNING", YES, "enums have an order"),
            ("severity>ERROR", NO, "not above itself"),
            ("severity<=ALERT", YES, "below by number, though not by alphabet"),
            ("severity!=ERROR", NO, "unequal"),
            ("severity:ERROR", YES, "':' with an enum is equality"),
            ("severity=(INFO OR ERROR)", YES, "a list of values"),
            ("trace=projects/p/traces/1cfb32c2", YES, "slashes need no quotes"),
            ("span_id=8690fc01c12c1a51", YES, "a value may start with a digit and hold letters"),
            ("traceSampled=true", YES, "a boolean"),
            ("trace_sampled=TRUE", YES, "in any case"),
            ("traceSampled!=true", NO, "unequal"),
            ("traceSampled>false", YES, "false is less than true"),
            ("insertId=68ef063700085a861e38cc60", YES, "a number with letters is a text"),
            ("logName:requests", YES, "substring"),
            ("log_name=\"projects/p/logs/run.googleapis.com%2Frequests\"", YES, "quoted"),
            ("logName=projects/p/logs/run.googleapis.com/requests", NO, "the name holds the id encoded"),
            ("resource.type=(gce_subnetwork OR cloud_run_revision)", YES, "a list of values"),
            ("resource.type=cloud_run_*", NO, "no wildcards"),
            ("\"severity\"=ERROR", YES, "a part of a path may be quoted"),
        ],
    );
}

#[test]
fn timestamps_are_instants() {
    check(
        &request(),
        &[
            ("timestamp>=\"2025-10-15T02:25:56.943333Z\"", YES, "not before itself"),
            ("timestamp>\"2025-10-15T02:25:56.943333Z\"", NO, "not after itself"),
            ("timestamp=\"2025-10-15T02:25:56.943333Z\"", YES, "equality"),
            ("timestamp<\"2025-10-15T02:25:56.943333001Z\"", YES, "to the nanosecond"),
            ("timestamp>=\"2025-10-15T11:25:56+09:00\"", YES, "another zone, the same second"),
            ("timestamp<\"2025-10-15T11:25:56+09:00\"", NO, "another zone"),
            ("timestamp>=2025-10-15", YES, "a day is its midnight in UTC"),
            ("timestamp>=\"2025-10-16\"", NO, "the next day"),
            ("receiveTimestamp>\"2025-10-15T02:25:59Z\"", YES, "the other timestamp"),
        ],
    );
}

#[test]
fn what_is_absent_is_missing_or_has_a_default() {
    check(
        &flow(),
        &[
            ("httpRequest.status!=200", YES, "a schema field has the default 0"),
            ("httpRequest.status=0", YES, "the default"),
            ("httpRequest.status<1", YES, "the default"),
            ("httpRequest.latency<1s", YES, "no duration is zero"),
            ("httpRequest.cacheHit=false", YES, "no boolean is false"),
            ("severity>=DEFAULT", YES, "always"),
            ("severity=DEFAULT", YES, "the default"),
            ("severity<DEBUG", YES, "the default is 0"),
            ("trace=\"\"", YES, "the default text is empty"),
            ("trace!=x", YES, "empty is not x"),
            ("trace:x", NO, "empty holds no x"),
            ("trace=~\"^$\"", YES, "the default text matches"),
            ("trace!~\"x\"", YES, "the default text does not match x"),
            ("operation.id=\"\"", YES, "within an absent message"),
            ("jsonPayload.nothere=x", NO, "a payload field is missing"),
            ("jsonPayload.nothere!=x", NO, "missing: unequal is false too"),
            ("jsonPayload.nothere!~\"x\"", NO, "missing: not matching is false too"),
            ("NOT jsonPayload.nothere=x", YES, "but NOT is true"),
            ("-jsonPayload.nothere:x", YES, "and so is '-'"),
            ("labels.nothere!=x", NO, "a label is missing"),
            ("NOT labels.nothere=x", YES, "but NOT is true"),
            ("resource.labels.nothere!=x", NO, "a resource label is missing"),
            ("textPayload!=x", NO, "a payload is missing"),
            ("NOT textPayload:x", YES, "but NOT is true"),
            ("jsonPayload:*", YES, "present"),
            ("jsonPayload.connection:*", YES, "an object can be present"),
            ("jsonPayload.connection.src_ip:*", YES, "present"),
            ("jsonPayload.nothere:*", NO, "not present"),
            ("httpRequest:*", NO, "not present"),
            ("httpRequest.status:*", NO, "a default is not present"),
            ("NOT httpRequest:*", YES, "the usual question"),
            ("severity:*", NO, "DEFAULT is not written"),
            ("labels:*", NO, "no labels"),
            ("resource.labels:*", YES, "resource labels"),
            ("jsonPayload.reporter:\"*\"", NO, "a quoted star is a star"),
        ],
    );
    check(
        &json_line(),
        &[
            ("jsonPayload.nothing=NULL_VALUE", YES, "a null"),
            ("jsonPayload.nothing!=NULL_VALUE", NO, "a null"),
            ("jsonPayload.message=NULL_VALUE", NO, "no null"),
            ("jsonPayload.message!=NULL_VALUE", YES, "no null"),
            ("jsonPayload.nothere=NULL_VALUE", NO, "absent is not null"),
            ("jsonPayload.nothing:*", YES, "a null is present"),
            ("jsonPayload.nothing=\"NULL_VALUE\"", NO, "quoted it is a text, and a null equals no text"),
            ("jsonPayload.empty=\"\"", YES, "an empty text is there"),
            ("jsonPayload.empty:\"\"", YES, "and holds the empty text"),
        ],
    );
}

#[test]
fn json_decides_the_type_of_a_payload_field() {
    check(
        &flow(),
        &[
            ("jsonPayload.connection.dest_ip=\"10.1.0.5\"", YES, "a text"),
            ("jsonPayload.connection.dest_ip=10.1.0.5", YES, "unquoted"),
            ("jsonPayload.connection.dest_port=80", YES, "a number"),
            ("jsonPayload.connection.dest_port=\"80\"", YES, "quoted"),
            ("jsonPayload.connection.src_port>1024", YES, "numeric order: 52328 > 1024"),
            ("jsonPayload.connection.src_port>6000", YES, "numeric order, though 5 sorts before 6"),
            ("jsonPayload.connection.dest_port=http", NO, "what is no number equals no number"),
            ("jsonPayload.connection.dest_port!=http", NO, "and is not unequal either"),
            ("jsonPayload.bytes_sent=1312", YES, "a counter is a text that equals its digits"),
            ("jsonPayload.bytes_sent>2", NO, "texts compare as texts: \"1312\" < \"2\""),
            ("json_payload.reporter=src", YES, "the first part is of the schema"),
            ("jsonPayload.Reporter=SRC", NO, "a key within must match in case"),
            ("jsonPayload.srcVpc.vpc_name:*", NO, "and in form"),
            ("jsonPayload.src_vpc.vpc_name:consumer", YES, "nested"),
            ("jsonPayload.connection=x", NO, "an object equals nothing"),
            ("jsonPayload.reporter.deeper=x", NO, "a text has no fields"),
        ],
    );
    check(
        &json_line(),
        &[
            ("jsonPayload.code=42", YES, "a number"),
            ("jsonPayload.code=42.0", YES, "by value"),
            ("jsonPayload.code>=4.2e1", YES, "an exponent"),
            ("jsonPayload.code:4", NO, "':' with a number is equality"),
            ("jsonPayload.text_code=42", YES, "a text equals its digits"),
            ("jsonPayload.text_code:4", YES, "':' with a text is a substring"),
            ("jsonPayload.ratio<1", YES, "a fraction"),
            ("jsonPayload.ok=true", YES, "a boolean"),
            ("jsonPayload.ok=yes", NO, "no boolean"),
            ("jsonPayload.ok!=false", YES, "a boolean"),
            ("jsonPayload.message=\"hello WÖRLD\"", YES, "case does not count beyond ASCII either"),
            ("jsonPayload.message:w\u{f6}r", YES, "unquoted beyond ASCII"),
            ("jsonPayload.tags=red", YES, "any item"),
            ("jsonPayload.tags=green", YES, "any item"),
            ("jsonPayload.tags=blue", NO, "no item"),
            ("jsonPayload.tags!=red", YES, "any item, also for unequal"),
            ("NOT jsonPayload.tags=red", NO, "NOT is about the whole"),
            ("jsonPayload.tags:*", YES, "a list is present"),
            ("jsonPayload.items.sku=b", YES, "through a list of objects"),
            ("jsonPayload.items.n>1", YES, "through a list of objects"),
            ("jsonPayload.items.sku=c", NO, "none of them"),
            ("jsonPayload.\"foo.bar\"=dotted", YES, "a quoted part may hold a dot"),
            ("jsonPayload.foo.bar=dotted", NO, "an unquoted dot separates"),
            ("\"jsonPayload\".\"foo.bar\"=dotted", YES, "every part may be quoted"),
            ("jsonPayload.\"message\"=\"Hello Wörld\"", YES, "quoting changes nothing else"),
            ("jsonPayload.camelCase=1", YES, "as written"),
            ("jsonPayload.camel_case=1", NO, "keys are not translated"),
            ("jsonPayload.took=3s", YES, "a duration in a payload is a text"),
            ("jsonPayload.took>20s", YES, "a duration in a payload is a text: \"3s\" > \"20s\""),
        ],
    );
    check(
        &request(),
        &[
            ("labels.instanceId=0069c7a9", YES, "a label is a text, whatever it looks like"),
            ("labels.\"commit.sha\"=abc", YES, "a label whose key has a dot"),
            ("labels.upper=x", NO, "label keys match in case"),
            ("labels.UPPER=X", YES, "label values do not"),
        ],
    );
}

#[test]
fn proto_payload_fields_are_spelled_freely() {
    check(
        &audit(),
        &[
            ("protoPayload.methodName:CreateService", YES, "as shown"),
            ("protoPayload.method_name:createservice", YES, "snake case"),
            ("proto_payload.authentication_info.principal_email=ann@example.com", YES, "nested; '@' needs no quotes"),
            ("protoPayload.\"@type\"=\"type.googleapis.com/google.cloud.audit.AuditLog\"", YES, "the type"),
            ("protoPayload.@type:AuditLog", YES, "the type, unquoted"),
            ("protoPayload.authorizationInfo.permission=\"iam.serviceAccounts.actAs\"", YES, "through a list"),
            ("protoPayload.authorizationInfo.granted=true", YES, "some of the list"),
            ("operation.first=true", YES, "a flag"),
            ("operation.last=true", NO, "a flag that is off"),
            ("log_id(\"cloudaudit.googleapis.com/activity\")", YES, "a log by its plain id"),
            ("LOG_ID(\"cloudaudit.googleapis.com/activity\")", YES, "functions in any case"),
            ("log_id(cloudaudit.googleapis.com/activity)", YES, "unquoted"),
            ("log_id(\"cloudaudit.googleapis.com%2Factivity\")", NO, "not encoded"),
            ("log_id(\"activity\")", NO, "the whole id"),
            ("NOT log_id(\"x\") AND severity=NOTICE", YES, "a function is a term like any other"),
            ("source(projects/p)", YES, "the parent"),
            ("source(\"projects/other\")", NO, "another parent"),
        ],
    );
}

#[test]
fn lists_of_values_share_field_and_operator() {
    check(
        &json_line(),
        &[
            ("jsonPayload.message:(hello AND wörld)", YES, "both"),
            ("jsonPayload.message:(hello wörld)", YES, "side by side is AND"),
            ("jsonPayload.message:(hello AND nobody)", NO, "one of two"),
            ("jsonPayload.message:(hello OR nobody)", YES, "one is enough"),
            ("jsonPayload.message:(nobody OR hello wörld)", YES, "OR binds tighter here too"),
            ("jsonPayload.message:(hello OR wörld nobody)", NO, "OR binds tighter here too"),
            ("jsonPayload.message:(NOT nobody)", YES, "NOT"),
            ("jsonPayload.message:(hello AND NOT wörld)", NO, "NOT"),
            ("jsonPayload.message:((nobody OR hello) AND wörld)", YES, "brackets within"),
            ("jsonPayload.message=~(\"^Hello\" AND \"rld$\")", YES, "patterns"),
            ("jsonPayload.message!~(\"^x\" \"^y\")", YES, "patterns that must not match"),
            ("jsonPayload.code=(41 OR 42)", YES, "numbers"),
            ("jsonPayload.code>(41 OR 50)", YES, "any operator"),
            ("insertId=\"nobody\" OR \"hello\"", YES, "without brackets the second one is a search of its own"),
        ],
    );
}

#[test]
fn a_regular_expression_is_re2_and_knows_case() {
    check(
        &request(),
        &[
            ("httpRequest.userAgent=~\"curl\"", YES, "anywhere"),
            ("httpRequest.userAgent=~\"^url\"", NO, "anchored"),
            ("httpRequest.userAgent=~\"CURL\"", NO, "case counts"),
            ("httpRequest.userAgent=~\"(?i)CURL\"", YES, "unless told otherwise"),
            ("httpRequest.userAgent!~\"wget\"", YES, "no match"),
            ("httpRequest.userAgent=~\"^curl/\\\\d+\\\\.\"", YES, "a backslash is written twice"),
            ("httpRequest.userAgent=~\"^curl/\\d+\\.\"", YES, "once is tolerated"),
            ("httpRequest.userAgent=~\"^[\\w/.]+$\"", YES, "a class in a set"),
            ("httpRequest.userAgent=~\"\\bcurl\\b\"", YES, "word boundaries"),
            ("httpRequest.userAgent=~\"[[]\"", NO, "a bracket in a set is a bracket"),
            ("resource.labels.revision_name=~\"-0000[0-9]-\"", YES, "on a label"),
            ("jsonPayload.x=~\".*\"", NO, "a missing field matches nothing"),
        ],
    );
    check(
        &json_line(),
        &[
            ("jsonPayload.code=~\"42\"", NO, "only texts match"),
            ("jsonPayload.message=~\"W\\wrld\"", NO, "\\w is ASCII"),
            ("jsonPayload.message=~\"W.rld\"", YES, "a dot is one character, not one byte"),
            ("jsonPayload.tags=~\"^G\"", YES, "any item"),
        ],
    );
}

#[test]
fn a_value_alone_is_searched_for_everywhere() {
    check(
        &request(),
        &[
            ("hello-service", YES, "a resource label"),
            ("\"HELLO-service\"", YES, "case does not count"),
            ("curl", YES, "a substring"),
            ("500", YES, "a number's text"),
            ("cloud_run_revision", YES, "the resource's type"),
            ("\"curl\" \"post\"", YES, "in different fields"),
            ("nobody", NO, "nowhere"),
            ("NOT nobody", YES, "nowhere"),
            ("-nobody", YES, "nowhere"),
            ("and", NO, "a keyword in small letters is a word"),
            ("\"AND\"", NO, "a quoted keyword is a word"),
            ("status", NO, "names are not searched"),
            ("timestamp>=2025-01-01 AND nobody OR curl", YES, "what gcloud makes of `nobody OR curl`"),
        ],
    );
    check(
        &text_line(),
        &[
            ("textPayload:unicorn", YES, "a substring"),
            ("textPayload:(unicorn said)", YES, "two substrings"),
            ("\"\\\"said\\\"\"", YES, "an escaped quote"),
            ("\"a\\tunicorn\"", YES, "an escaped tab"),
            ("\"C:\\\\dir\"", YES, "an escaped backslash"),
            ("\"\\x55nicorn\"", YES, "a hexadecimal escape"),
            ("\"\\u0055nicorn\"", YES, "a Unicode escape"),
            ("\"\\125nicorn\"", YES, "an octal escape"),
            ("unicorn-- the rest is a word too", NO, "a comment starts only between words"),
            ("textPayload:unicorn -- the rest is a comment", YES, "a comment"),
            ("'unicorn'", NO, "single quotes are characters"),
        ],
    );
}

#[test]
fn functions_ask_what_operators_cannot() {
    check(
        &request(),
        &[
            ("ip_in_net(httpRequest.remoteIp, \"fda3:e722:ac3::/48\")", YES, "in the subnet"),
            ("ip_in_net(httpRequest.remoteIp, \"10.0.0.0/8\")", NO, "another family"),
            ("ip_in_net(httpRequest.serverIp, \"0.0.0.0/0\")", NO, "no address"),
            ("ip_in_net(httpRequest.userAgent, \"0.0.0.0/0\")", NO, "not an address"),
            ("sample(insertId, 1)", YES, "all"),
            ("sample(labels.nothere, 1)", NO, "a missing field is in no sample"),
            ("search(\"curl 8\")", YES, "words in any order"),
            ("search(\"8 curl\")", YES, "words in any order"),
            ("search(\"cur\")", NO, "whole words"),
            ("search(httpRequest.userAgent, \"curl\")", YES, "in one field"),
            ("search(httpRequest.requestMethod, \"curl\")", NO, "in one field"),
        ],
    );
    check(
        &flow(),
        &[
            ("ip_in_net(jsonPayload.connection.src_ip, \"10.1.0.0/24\")", YES, "in the subnet"),
            ("ip_in_net(jsonPayload.connection.src_ip, \"10.1.0.2\")", YES, "one address"),
            ("ip_in_net(jsonPayload.connection.src_ip, 10.1.1.0/24)", NO, "unquoted; another subnet"),
        ],
    );
}

#[test]
fn functions_on_the_left_convert_and_extract() {
    check(
        &request(),
        &[
            ("cast(httpRequest.requestSize, INT64)>500", YES, "906 as a number"),
            ("cast(httpRequest.status, STRING)=~\"^5..$\"", YES, "a number as a text has patterns"),
            ("cast(httpRequest.status, STRING):\"0\"", YES, "and contains"),
            ("cast(httpRequest.responseSize, STRING)=(386 OR 387)", YES, "lists of values"),
            ("CAST(traceSampled, string)=TRUE", YES, "names in any case"),
            ("cast(insertId, INT64)!=3", NO, "what is no number has no value"),
            ("cast(labels.nothere, INT64)!=3", NO, "nor has what is missing"),
            ("NOT cast(labels.nothere, INT64)=3", YES, "so its negation holds"),
            ("cast(httpRequest.cacheHit, STRING)=false", YES, "a schema's field has its default"),
            ("cast(httpRequest.latency, DURATION)>\"2s\"", YES, "a duration"),
            ("regexp_extract(httpRequest.userAgent, \"^(\\\\w+)/\")=curl", YES, "the first group"),
            ("regexp_extract(httpRequest.userAgent, \"^(\\\\w+)/\")=CURL", YES, "compared as every text"),
            ("regexp_extract(httpRequest.userAgent, \"/(\\\\d+)\")>=\"8\"", YES, "as texts"),
            ("cast(regexp_extract(httpRequest.userAgent, \"/(\\\\d+)\"), INT64)<10", YES, "one in the other"),
            ("regexp_extract(httpRequest.userAgent, \"wget/(.)\")!=x", NO, "no match is no value"),
            ("regexp_extract(cast(httpRequest.status, STRING), \"^(.)\")=5", YES, "the other way round"),
            ("search(\"`hello run app`\")", YES, "a phrase, word for word"),
            ("search(\"`run hello`\")", NO, "in its order"),
            ("search(\"`HELLO run` 8\")", YES, "a phrase and a word, without case"),
            ("search(httpRequest.requestUrl, \"`run app`\")", YES, "in one field"),
            ("search(httpRequest.requestMethod, \"`run app`\")", NO, "in that field"),
            ("search(\"curl`\")", YES, "a backtick alone is a delimiter"),
        ],
    );
    check(
        &json!({"jsonPayload": {"at": "2025-10-15T02:00:00", "day": "2025-10-15", "n": 7, "f": "0.5", "on": "True",
                                 "took": "3s", "list": ["1", "22"], "odd": {"a": 1}}}),
        &[
            ("cast(jsonPayload.at, TIMESTAMP)=\"2025-10-15T02:00:00Z\"", YES, "without a zone it is UTC"),
            ("cast(jsonPayload.at, TIMESTAMP, TIMEZONE(\"Europe/Berlin\"))=\"2025-10-15T00:00:00Z\"", YES, "in a zone"),
            (
                "cast(jsonPayload.day, TIMESTAMP, timezone(\"Europe/Berlin\"))=\"2025-10-14T22:00:00Z\"",
                YES,
                "a local day",
            ),
            ("cast(jsonPayload.day, TIMESTAMP)<\"2025-10-15\"", NO, "not before itself"),
            ("cast(jsonPayload.f, FLOAT64)<0.6", YES, "a fraction"),
            ("cast(jsonPayload.f, INT64)=0", NO, "is no whole number"),
            ("cast(jsonPayload.on, BOOL)=true", YES, "a flag"),
            ("cast(jsonPayload.took, DURATION)<\"1m\"", YES, "a duration in a payload"),
            ("jsonPayload.took<\"1m\"", NO, "which is a text without the cast"),
            ("cast(jsonPayload.list, INT64)>20", YES, "any element"),
            ("cast(jsonPayload.odd, STRING):*", NO, "an object is not one value"),
            ("cast(jsonPayload.n, STRING)=7", YES, "a number as a text"),
        ],
    );
}

#[test]
fn texts_are_equal_however_their_characters_were_put_together() {
    let entry =
        json!({"textPayload": "Caf\u{e9} \u{fb01}n Stra\u{df}e \u{2460} \u{212b}", "labels": {"a": "e\u{301}"}});
    check(
        &entry,
        &[
            ("textPayload:\"cafe\u{301}\"", YES, "composed and decomposed"),
            ("textPayload:\"CAF\u{c9}\"", YES, "without case"),
            ("textPayload:\"fin\"", YES, "a ligature is its letters"),
            ("textPayload:\"STRASSE\"", YES, "full case folding"),
            ("textPayload:\"1\"", YES, "a circled digit is a digit"),
            ("textPayload:\"\u{e5}\"", YES, "the sign of the angstrom is the letter"),
            ("labels.a=\"\u{e9}\"", YES, "in labels too"),
            ("textPayload=~\"fin\"", NO, "patterns see what is there"),
        ],
    );
}

#[test]
fn a_sample_takes_about_its_share_and_always_the_same() {
    let filter = Filter::parse("sample(insertId, 0.25)").unwrap();
    let taken = |n: u32| filter.matches(&json!({"insertId": n.to_string()}));
    let first: Vec<bool> = (0..2_000).map(taken).collect();
    assert_eq!(first, (0..2_000).map(taken).collect::<Vec<_>>());
    let share = first.iter().filter(|t| **t).count();
    assert!((400..600).contains(&share), "{share}");
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    let syntax = |line: usize, column: usize, token: &str| {
        format!("Unparseable filter: syntax error at line {line}, column {column}, token '{token}'")
    };
    let cases = [
        ("insertId=abc:def", syntax(1, 13, ":"), "a colon in a bare value"),
        ("timestamp>=2025-10-15T02:25:56Z", syntax(1, 25, ":"), "an unquoted timestamp"),
        ("severity=", syntax(1, 10, "<EOF>"), "no value"),
        ("severity=\nAND x", syntax(2, 1, "AND"), "a keyword is no value; lines are counted"),
        ("=x", syntax(1, 1, "="), "no field"),
        ("(severity=ERROR", syntax(1, 16, "<EOF>"), "an open bracket"),
        ("severity=ERROR)", syntax(1, 15, ")"), "a bracket too many"),
        ("()", syntax(1, 2, ")"), "nothing in brackets"),
        ("a AND", syntax(1, 6, "<EOF>"), "nothing after AND"),
        ("AND a", syntax(1, 1, "AND"), "nothing before AND"),
        ("a OR OR b", syntax(1, 6, "OR"), "nothing between two ORs"),
        ("a OR", syntax(1, 5, "<EOF>"), "nothing after OR"),
        ("NOT", syntax(1, 4, "<EOF>"), "nothing after NOT"),
        ("NOT NOT a", syntax(1, 5, "NOT"), "one negation"),
        ("a ! b", syntax(1, 3, "!"), "no such operator"),
        ("a ~ b", syntax(1, 3, "~"), "no such operator"),
        ("severity == ERROR", syntax(1, 11, "="), "no such operator"),
        ("a, b", syntax(1, 2, ","), "a comma outside of a function"),
        ("severity=\"ERROR", syntax(1, 10, "\""), "an open quote"),
        ("labels.=x", syntax(1, 1, "labels."), "an empty part of a path"),
        ("labels..a=x", syntax(1, 1, "labels..a"), "an empty part of a path"),
        ("severity=*", syntax(1, 10, "*"), "a star only after ':'"),
        ("labels.a=+b", syntax(1, 10, "+b"), "a sign only before a number"),
        ("labels.a=(x OR )", syntax(1, 16, ")"), "nothing after OR in a list"),
        ("labels.a=()", syntax(1, 11, ")"), "an empty list"),
        ("labels.a=x=y", syntax(1, 11, "="), "two comparisons in one"),
        ("thud=1", "Field not found: 'thud'.".to_owned(), "no such field"),
        ("operation.thud=1", "Field not found: 'operation.thud'.".to_owned(), "no such field within"),
        ("textPayload.thud=1", "Field not found: 'textPayload.thud'.".to_owned(), "a text has no fields"),
        ("labels.a.b=1", "Field not found: 'labels.a.b'.".to_owned(), "a label has no fields"),
    ];
    for (text, want, why) in cases {
        let error = Filter::parse(text).expect_err(&format!("{text}\n{why}"));
        assert_eq!(error.message, want, "{text}\n{why}");
    }
    let reasons = [
        ("severity=LOUD", "'LOUD' is not a valid severity", "no such name"),
        ("httpRequest.status=ok", "'ok' is not a valid number", "not a number"),
        ("httpRequest.latency>3", "'3' is not a valid duration", "no unit"),
        ("httpRequest.latency>3days", "'3days' is not a valid duration", "no such unit"),
        ("traceSampled=yes", "'yes' is not a valid boolean", "not a boolean"),
        ("timestamp>\"yesterday\"", "'yesterday' is not a valid timestamp", "not a timestamp"),
        ("timestamp>\"2025-10-15T02:25:56\"", "is not a valid timestamp", "no zone"),
        ("resource=x", "fields of its own", "an object equals nothing"),
        ("labels=x", "fields of its own", "a map equals nothing"),
        ("trace=~abc", "must begin and end with", "a pattern must be quoted"),
        ("httpRequest.status=~\"5..\"", "string fields", "a pattern needs a text"),
        ("trace=~\"(\"", "invalid regular expression", "a broken pattern"),
        ("trace=NULL_VALUE", "NULL_VALUE", "a text is never null"),
        ("cast(labels.a, INT32)>3", "'INT32' is no type", "no such type"),
        ("cast(labels.a, INT64, TIMEZONE(\"Europe/Berlin\"))>3", "'INT64' is no type", "only instants have a zone"),
        ("cast(labels.a, TIMESTAMP, TIMEZONE(\"Mars/Olympus\"))>3", "'Mars/Olympus' is no time zone", "no such zone"),
        ("cast(labels.a, TIMESTAMP, ZONE(\"UTC\"))>3", "syntax error", "no such argument"),
        ("cast(labels, STRING)=x", "a value of its own", "a map is not one value"),
        ("cast(thud, STRING)=x", "Field not found", "no such field"),
        ("cast(labels.a, INT64)", "syntax error", "a value is no term"),
        ("cast(labels.a)>3", "syntax error", "too few"),
        ("cast(labels.a, INT64)>x", "'x' is not a valid number", "the right side has the type of the cast"),
        ("cast(labels.a, BOOL)=~\"t\"", "string fields", "a pattern needs a text"),
        ("regexp_extract(labels.a, \"x\")=x", "one group, not 0", "no group"),
        ("regexp_extract(labels.a, \"(x)(y)\")=x", "one group, not 2", "several groups"),
        ("regexp_extract(labels.a, \"(\")=x", "invalid regular expression", "a broken pattern"),
        ("regexp_extract(labels.a, (x))=x", "syntax error", "a pattern must be quoted"),
        ("regexp_extract(httpRequest.status, \"(.)\")=5", "string fields", "cast it first"),
        ("cast(log_id(\"a\"), STRING)=x", "no value to go on with", "a function that is a term"),
        ("search(\"` `\")", "nothing to search for", "an empty phrase"),
        ("frobnicate(labels.a)", "unknown function 'frobnicate'", "no such function"),
        ("log_id()", "wrong number of arguments", "too few"),
        ("log_id(a, b)", "wrong number of arguments", "too many"),
        ("log_id(a)=b", "cannot be compared", "a function that is a term"),
        ("sample(insertId, 2)", "fraction", "more than all"),
        ("sample(insertId, 0)", "fraction", "nothing"),
        ("ip_in_net(trace, \"10.0.0.0/33\")", "is not a subnet", "too long a prefix"),
        ("\"\\u12\"", "invalid escape sequence", "too few digits"),
        ("\"\\ud800\"", "invalid escape sequence", "half a character"),
    ];
    for (text, part, why) in reasons {
        let error = Filter::parse(text).expect_err(&format!("{text}\n{why}"));
        assert!(error.message.contains(part), "{text}\n{why}\n{}", error.message);
    }
}

#[test]
fn a_filter_has_limits() {
    let long = |n: usize| format!("\"{}\"", "x".repeat(n - 2));
    assert!(Filter::parse(&long(20_000)).is_ok());
    assert!(Filter::parse(&long(20_001)).is_err());
    let deep = |n: usize| format!("{}x{}", "(".repeat(n), ")".repeat(n));
    assert!(Filter::parse(&deep(64)).is_ok());
    assert!(Filter::parse(&deep(65)).is_err());
    assert!(Filter::parse(&format!("labels.a={}", deep(9_000))).is_err());
    assert!(Filter::parse("trace=~\"(a{1000}){1000}\"").is_err(), "a pattern may not take the memory of the cloud");
}

#[test]
fn the_time_range_holds_every_entry_that_can_match() {
    let at = |text| LogTime::parse(text).unwrap();
    let range = |text: &str| Filter::parse(text).unwrap().time_range();
    let day = "timestamp>=2025-10-15 AND timestamp<2025-10-16";
    assert_eq!(range(day), at("2025-10-15")..=LogTime(at("2025-10-16").0 - 1));
    assert_eq!(range(&format!("({day}) AND x OR y")), range(day));
    assert_eq!(*range("timestamp>2025-10-15").start(), LogTime(at("2025-10-15").0 + 1));
    assert!(range("timestamp=2025-10-15 timestamp=2025-10-16").is_empty());
    let all = range("");
    for text in [
        "x OR timestamp>2025-10-15",
        "NOT timestamp>2025-10-15",
        "receiveTimestamp>2025-10-15",
        "timestamp!=2025-10-15",
    ] {
        assert_eq!(range(text), all, "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn no_pile_of_tokens_makes_it_panic_either(tokens in prop::collection::vec(prop::sample::select(vec![
        "severity", "labels.a", "\"", "\"x\"", ".", "(", ")", "=", "=~", "!", ":", "*", "-", "--", "\n", " ", "AND", "OR",
        "NOT", ",", "log_id", "search", "cast", "regexp_extract", "INT64", "`", "(x)", "\\", "\\u", "[", "]", "é", "NULL_VALUE", "5", "3s",
    ]), 0..24)) {
        if let Ok(filter) = Filter::parse(&tokens.concat()) {
            for entry in [request(), flow(), json_line(), audit(), text_line()] {
                prop_assert_eq!(filter.select(&entry.to_string()).is_some(), filter.matches(&entry));
            }
            filter.time_range();
        }
    }

    #[test]
    fn a_pattern_in_brackets_never_changes_its_meaning_into_a_set_operation(text in "[a-c&~\\[-]{1,6}", set in "[a-c&~]{1,4}") {
        // Whatever stands in the brackets, RE2 knows only single characters and ranges there.
        let doubled = format!("trace=~\"^[{set}{set}]$\"");
        let single = format!("trace=~\"^[{set}]$\"");
        let entry = json!({"trace": text.chars().next().unwrap().to_string()});
        prop_assert_eq!(
            Filter::parse(&doubled).unwrap().matches(&entry),
            Filter::parse(&single).unwrap().matches(&entry)
        );
    }
}
