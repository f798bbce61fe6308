//! Every limit of tombolo, with its unit and its source. A queue, wait, retry, list or body without a line here has none
//! and is a defect.

use std::time::Duration;

/// After a start of the proxy or the guest server, requests wait this long for control to say everything; a control that
/// is restarted has done so after a fraction of a second.
pub const TOLD_MAX: Duration = Duration::from_secs(10);

// ---- requests to the APIs ----

/// Largest API request body, in bytes. Source: Cloud Logging `entries.write`, 10 MB; every other method sends less.
pub const API_BODY_BYTES_MAX: usize = 10 << 20;
/// Open connections at the API door; more are answered 503 at once.
pub const API_CONNECTIONS_MAX: usize = 4_096;
/// A client that sends no complete request head within this is disconnected.
pub const HEAD_READ_MAX: Duration = Duration::from_secs(20);
/// Bytes and header lines of one request head; more is answered 431.
pub const API_HEAD_BYTES_MAX: usize = 64 << 10;
pub const API_HEADERS_MAX: usize = 100;
/// A client that sends no complete body within this is disconnected.
pub const API_BODY_READ_MAX: Duration = Duration::from_secs(60);
/// Bodies above the first size are read by at most this many connections at once, so that memory has a bound.
pub const API_SMALL_BODY_BYTES: u64 = 64 << 10;
pub const API_LARGE_BODIES_MAX: usize = 16;
/// A client that takes nothing of its answer for this long is disconnected.
pub const API_WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Calls in one batch. Source: Compute batch, 1000.
pub const BATCH_PARTS_MAX: usize = 1_000;
/// `operations.wait` answers after this whatever the state. Source: Compute, "about two minutes".
pub const OPERATION_WAIT_MAX: Duration = Duration::from_secs(120);
/// Finished operations stay readable this long. Source: Compute, about 14 days.
pub const OPERATION_KEEP: Duration = Duration::from_secs(14 * 86_400);
/// Of more Compute operations than this, finished ones are forgotten before their time, the oldest first.
pub const OPERATIONS_MAX: usize = 20_000;
/// A mutation that packets do not obey within this ends as a failed operation.
pub const OPERATION_DEADLINE: Duration = Duration::from_secs(300);
/// Page sizes. Source: Compute `maxResults` 0..=500; Logging `pageSize` up to 1000.
pub const COMPUTE_PAGE_MAX: usize = 500;
pub const LOGGING_PAGE_MAX: usize = 1_000;
/// Minted TLS leaves kept at the door; the oldest goes first.
pub const DOOR_LEAVES_MAX: usize = 256;

// ---- VPC and Private Service Connect ----

/// Source: VPC "MTU", default.
pub const VPC_MTU_DEFAULT: u16 = 1_460;
/// Shortest prefix lengths a subnet may have: /29 ordinary and PSC NAT, /26 proxy-only; longest block /4.
pub const SUBNET_PREFIX_BITS_MAX: u8 = 29;
pub const SUBNET_PREFIX_BITS_MIN: u8 = 4;
pub const PROXY_SUBNET_PREFIX_BITS_MAX: u8 = 26;
/// Tracked connections per VPC: one tenant may not fill the table that all share.
pub const VPC_CONNECTIONS_MAX: u32 = 32_768;
/// Established TCP through Private Service Connect may idle this long. Source: PSC, 20 minutes, fixed.
pub const PSC_IDLE: Duration = Duration::from_secs(1_200);
/// Half-open, closing and UDP state of a PSC connection. Source: PSC, 30 s.
pub const PSC_TRANSITORY: Duration = Duration::from_secs(30);
/// A released NAT address is not handed out again before this: replies to its last tenant may still be on their way.
/// Source: PSC "tuple reuse delay", 2 minutes.
pub const PSC_NAT_QUARANTINE: Duration = Duration::from_secs(120);
/// Source: serviceAttachments `consumerAcceptLists`, `consumerRejectLists`.
pub const PSC_ACCEPT_ENTRIES_MAX: usize = 5_000;
pub const PSC_REJECT_ENTRIES_MAX: usize = 64;
/// Namespaces of a project in one region, services of a namespace, endpoints of a service, labels of a namespace; and
/// characters of a service's and of an endpoint's annotations. Source: Service Directory, quotas and limits; the first two
/// are ours.
pub const DIRECTORY_NAMESPACES_MAX: usize = 1_000;
pub const DIRECTORY_SERVICES_MAX: usize = 1_000;
pub const DIRECTORY_ENDPOINTS_MAX: usize = 100;
pub const DIRECTORY_LABELS_MAX: usize = 64;
pub const DIRECTORY_SERVICE_TEXT_MAX: usize = 2_000;
pub const DIRECTORY_ENDPOINT_TEXT_MAX: usize = 512;
/// Endpoints in one answer of `services.resolve`: unless asked otherwise, and at most. Source: `ResolveServiceRequest`.
pub const DIRECTORY_RESOLVED_DEFAULT: usize = 25;
pub const DIRECTORY_RESOLVED_MAX: usize = 100;
/// Rules and values of one organisation policy. Source: Organization Policy API, `PolicySpec.rules`, `StringValues`.
pub const ORG_POLICY_RULES_MAX: usize = 10;
pub const ORG_POLICY_VALUES_MAX: usize = 500;

// ---- serving ----

/// Source: Cloud Run request timeout, default and bounds, in seconds.
pub const RUN_TIMEOUT_S_DEFAULT: u32 = 300;
pub const RUN_TIMEOUT_S_MAX: u32 = 3_600;
/// Source: Cloud Run concurrency.
pub const RUN_CONCURRENCY_DEFAULT: u32 = 80;
pub const RUN_CONCURRENCY_MAX: u32 = 1_000;
/// Source: Cloud Run, default maximum of instances for new projects.
pub const RUN_INSTANCES_MAX_DEFAULT: u32 = 20;
/// Source: Cloud Run default startup probe, 240 s.
pub const RUN_STARTUP_MAX: Duration = Duration::from_secs(240);
/// An instance without requests is kept this long. Source: Cloud Run, up to 15 minutes.
pub const RUN_IDLE_KEEP: Duration = Duration::from_secs(900);
/// Between SIGTERM and SIGKILL. Source: Cloud Run container contract, 10 s.
pub const RUN_STOP_GRACE: Duration = Duration::from_secs(10);
/// A request waits for an instance at least this long before 429. Source: Cloud Run, 10 s or 3.5 start-up times.
pub const RUN_QUEUE_WAIT_MIN: Duration = Duration::from_secs(10);
/// Requests waiting for an instance, per revision; more get 429 at once.
pub const RUN_QUEUE_MAX: usize = 1_000;
/// Largest HTTP/1 request body to a service, in bytes. Source: Cloud Run, 32 MiB.
pub const RUN_BODY_BYTES_MAX: u64 = 32 << 20;
/// Total request header bytes at the load balancer. Source: internal ALB, about 60 KiB.
pub const LB_HEADER_BYTES_MAX: usize = 60 << 10;
pub const LB_HEADERS_MAX: usize = 100;
/// Client keep-alive of the proxy. Source: `httpKeepAliveTimeoutSec`, default.
pub const LB_KEEPALIVE_DEFAULT: Duration = Duration::from_secs(610);
/// Client connections the proxy holds at most; below the process's limit of open files, see `doctor`.
pub const LB_CONNECTIONS_MAX: usize = 12_000;
/// A connect to an instance that does not succeed within this has failed: the fabric is on this machine.
pub const UPSTREAM_CONNECT_MAX: Duration = Duration::from_secs(5);
/// One connect of a startup probe; a lost SYN is tried again at once instead of after TCP's first second.
pub const PROBE_CONNECT_MAX: Duration = Duration::from_millis(50);
/// Between two connects of one startup probe: from this, doubling, to that.
pub const PROBE_RETRY_MIN: Duration = Duration::from_millis(1);
pub const PROBE_RETRY_MAX: Duration = Duration::from_millis(20);
/// Requests that one backend of a load balancer answers at once; more are answered 503, `overflow`. Source: Envoy,
/// circuit breaker, 1024.
pub const BACKEND_REQUESTS_MAX: usize = 1_024;
/// A connect to a backend of a load balancer that does not succeed within this has failed. Source: Envoy,
/// `connect_timeout`, 5 s.
pub const BACKEND_CONNECT_MAX: Duration = Duration::from_secs(5);
/// Connections to backends that the host is being asked for at the same time.
pub const BACKEND_DIALS_MAX: usize = 16;
/// A client may take this long to send a request's body to a backend. Source: none; the longest request of Cloud Run.
pub const BACKEND_UPLOAD_MAX: Duration = Duration::from_secs(3_600);
/// Idle connections kept to an instance are closed after this. Source: ALB, backend keep-alive, 600 s.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(600);
/// Idle connections kept to one instance, over all sources; the one unused for longest goes first.
pub const UPSTREAM_IDLE_MAX: usize = 1_000;
/// `FromProxy::Demand` of one revision is sent at most once in this time.
pub const DEMAND_INTERVAL: Duration = Duration::from_millis(50);
/// Request records wait this long for company before they go to control.
pub const RECORD_BATCH_WAIT: Duration = Duration::from_millis(20);
/// Request records in one frame.
pub const RECORD_BATCH_MAX: usize = 256;
/// Reports to control that may wait while it does not read; repeatable ones are skipped above.
pub const REPORT_QUEUE_MAX: usize = 1_024;
/// The first line of a connection from the door, in bytes.
pub const OUTSIDE_LINE_BYTES_MAX: usize = 1_024;
/// Verified invoker tokens remembered.
pub const TOKEN_CACHE_MAX: usize = 4_096;

/// Revisions kept per service; the oldest that serve nothing go first. Source: Cloud Run keeps 1000; ours go in one
/// transaction with the service.
pub const RUN_REVISIONS_MAX: usize = 200;
/// Operations of one service that stay readable.
pub const RUN_OPERATIONS_MAX: usize = 20;
/// A crashed instance is not replaced before this has passed, doubling with every crash in a row, up to that.
pub const RUN_RESTART_MIN: Duration = Duration::from_secs(1);
pub const RUN_RESTART_MAX: Duration = Duration::from_secs(300);
/// One pull of an image and one start may take this long before the revision is given up, beside its probe's time.
pub const RUN_START_MAX: Duration = Duration::from_secs(60);

// ---- identity ----

/// Source: access and ID tokens, 3600 s.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
/// Clock skew a verifier forgives.
pub const TOKEN_SKEW: Duration = Duration::from_secs(10);
/// Longest signed token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Longest access token. Source: OAuth, 2048 bytes.
pub const ACCESS_TOKEN_BYTES_MAX: usize = 2_048;
/// What a service account's key signs may be valid this long at most, and its issuer's clock may be this wrong.
/// Source: token endpoint, "a short-lived token (60 minutes) and in a reasonable timeframe".
pub const ASSERTION_LIFETIME_MAX: Duration = Duration::from_secs(3_600);
pub const ASSERTION_SKEW: Duration = Duration::from_secs(600);
/// The metadata server never hands out a token with less than this left. Source: metadata server, about 5 minutes.
pub const METADATA_TOKEN_LEFT_MIN: Duration = Duration::from_secs(300);
/// Signing keys: a new one every two weeks, the old ones published until their last token has expired.
pub const SIGNING_KEY_LIFE: Duration = Duration::from_secs(14 * 86_400);
/// A signing key is published this long before its first use, so that verifiers with a cached key set know it.
pub const SIGNING_KEY_PUBLISHED_AHEAD: Duration = Duration::from_secs(86_400);
/// Whoever needs a new cloud's first signing key waits this long for it; it takes a tenth of a second to make.
pub const SIGNING_KEY_WAIT_MAX: Duration = Duration::from_secs(10);
/// Service accounts that users make in one project. Source: IAM, 100.
pub const ACCOUNTS_PER_PROJECT_MAX: usize = 100;
/// Keys that users hold of one service account. Source: IAM, 10.
pub const ACCOUNT_KEYS_MAX: usize = 10;
/// The operator's own token, written at every start.
pub const OPERATOR_TOKEN_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// A user's refresh token.
pub const REFRESH_TOKEN_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// A code that the operator gave to a client is exchanged within this; so many may be out at once.
pub const CONSENT_LIFETIME: Duration = Duration::from_secs(600);
pub const CONSENTS_MAX: usize = 64;
/// Minted tokens kept for workloads that ask again.
pub const MINT_CACHE_MAX: usize = 4_096;
/// Members in one policy. Source: IAM, 1500.
pub const POLICY_MEMBERS_MAX: usize = 1_500;
/// Permissions in one `testIamPermissions`. Source: IAM, 100.
pub const TEST_PERMISSIONS_MAX: usize = 100;

// ---- store ----

/// Transactions waiting to be made durable; more are refused at once.
pub const STORE_QUEUE_MAX: usize = 1_024;
/// Transactions made durable by one write to the disk.
pub const STORE_GROUP_MAX: usize = 256;
/// Compares, puts and deletes of one transaction, each. etcd's default is 128; a cluster is started with
/// `--max-txn-ops` of at least this.
pub const STORE_TXN_OPS_MAX: usize = 512;
/// Bytes of the keys and values that one transaction writes. Source: etcd, request size, 1.5 MiB.
pub const STORE_TXN_BYTES_MAX: usize = 1_536 << 10;
/// Bytes of one key.
pub const STORE_KEY_BYTES_MAX: usize = 1_024;
/// Events kept for watchers that are behind; one that is further behind lists again.
pub const STORE_HISTORY_MAX: usize = 4_096;
/// Bytes of pages the store's file may keep in memory.
pub const STORE_CACHE_BYTES: usize = 4 << 20;

// ---- metadata and DNS ----

/// Connections to the metadata server: of one workload, so that it cannot take its neighbours' share, and of one realm.
pub const METADATA_CONNECTIONS_PER_PEER_MAX: usize = 64;
pub const METADATA_CONNECTIONS_PER_REALM_MAX: usize = 4_096;
/// Request head of the metadata server, in bytes and header lines. An audience travels in it.
pub const METADATA_HEAD_BYTES_MAX: usize = 16 << 10;
pub const METADATA_HEADERS_MAX: usize = 64;
/// A client that does not take its answer within this is cut off.
pub const METADATA_WRITE_MAX: Duration = Duration::from_secs(60);
/// Requests of one workload that wait for a change.
pub const METADATA_WAITERS_MAX: usize = 32;
/// A request for a change is answered with the unchanged value after this at the latest.
pub const METADATA_WAIT_MAX: Duration = Duration::from_secs(300);
/// Tokens remembered per workload; the one that expires first goes first.
pub const METADATA_TOKENS_MAX: usize = 32;
/// Scopes in one request for an access token.
pub const METADATA_SCOPES_MAX: usize = 32;
/// Tokens that control is being asked for at the same time, and how long each may take.
pub const MINTS_MAX: usize = 256;
pub const MINT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Largest DNS query that is read, in bytes.
pub const DNS_QUERY_BYTES_MAX: usize = 4_096;
/// Largest DNS answer over UDP, in bytes. Source: DNS flag day 2020.
pub const DNS_UDP_BYTES_MAX: u16 = 1_232;
/// DNS connections over TCP in one realm, and how long one may say nothing.
pub const DNS_CONNECTIONS_MAX: usize = 128;
pub const DNS_IDLE_MAX: Duration = Duration::from_secs(10);
/// Seconds that answers may be remembered: that of the metadata address, and those of names that come and go.
pub const DNS_TTL_METADATA_S: u32 = 3_600;
pub const DNS_TTL_NAME_S: u32 = 5;

// ---- Identity-Aware Proxy ----

/// Payload of one DATA frame of a tunnel, in bytes. Source: relay.tunnel.cloudproxy.app v4, 16384.
pub const IAP_DATA_BYTES_MAX: usize = 16_384;
/// Largest WebSocket message that is read: a whole DATA frame, and something behind it that is discarded.
pub const IAP_MESSAGE_BYTES_MAX: usize = 2 * IAP_DATA_BYTES_MAX;
/// Bytes from the VM that a tunnel keeps until the client says that it has them. Clients say so every 32 KiB.
pub const IAP_UNACKED_BYTES_MAX: usize = 128 << 10;
/// Bytes from the client that wait for the VM; while there are more, the client is not read.
pub const IAP_INBOX_BYTES_MAX: usize = 64 << 10;
/// Tunnels of one cloud, cut ones included. A new one takes the place of the one that was cut first, if any was.
pub const IAP_SESSIONS_MAX: usize = 1_024;
/// A VM that does not answer a connect within this is not there, or its firewall is shut.
pub const IAP_CONNECT_MAX: Duration = Duration::from_secs(5);
/// A tunnel whose client was cut off waits this long for it. Source: gcloud tries for 15 minutes.
pub const IAP_CUT_KEEP: Duration = Duration::from_secs(900);
/// A tunnel through which nothing passes for this long ends. Source: IAP, "1 hour of inactivity".
pub const IAP_IDLE_MAX: Duration = Duration::from_secs(3_600);
/// What is still on its way when one side has ended must be taken within this.
pub const IAP_FLUSH_MAX: Duration = Duration::from_secs(10);

// ---- SSH into VMs ----

/// Keys of one OS Login profile. Source: OS Login, 32 KiB.
pub const LOGIN_PROFILE_BYTES_MAX: usize = 32 << 10;

/// Connections to a VM's SSH server; more wait to be accepted.
pub const SSH_CONNECTIONS_MAX: usize = 64;
/// Channels of one connection, and processes and forwarded connections behind them.
pub const SSH_CHANNELS_MAX: usize = 32;
/// From connecting to being logged in. Source: OpenSSH, `LoginGraceTime`.
pub const SSH_LOGIN_MAX: Duration = Duration::from_secs(120);
/// Keys that one connection may try. Source: OpenSSH, `MaxAuthTries`.
pub const SSH_AUTH_TRIES_MAX: usize = 6;
/// A connection that says nothing for this long ends.
pub const SSH_IDLE_MAX: Duration = Duration::from_secs(86_400);
/// Messages of a client that wait for its process, per channel, of at most 32 KiB each.
pub const SSH_CHANNEL_MESSAGES_MAX: usize = 512;
/// Variables that a client may set, per channel, and bytes of each.
pub const SSH_ENV_MAX: usize = 32;
pub const SSH_ENV_BYTES_MAX: usize = 1_024;
/// The metadata server must answer a login within this, and with so many bytes at most: all attributes as JSON.
pub const SSH_METADATA_WAIT_MAX: Duration = Duration::from_secs(5);
pub const SSH_METADATA_BYTES_MAX: u64 = 4 << 20;
/// Bytes of one SFTP packet, and files that one client may have open. Source: OpenSSH, `SFTP_MAX_MSG_LENGTH`, 256 KiB.
pub const SFTP_PACKET_BYTES_MAX: usize = 256 << 10;
pub const SFTP_HANDLES_MAX: usize = 128;
/// A forwarded connection that does not come about within this has failed.
pub const SSH_FORWARD_CONNECT_MAX: Duration = Duration::from_secs(10);

// ---- logs ----

/// A flow that may carry requests waits this long for them to be told, before it is written without a trace.
pub const FLOW_TRACE_WAIT: Duration = Duration::from_secs(1);
/// Entries of flows that wait; of more than that the oldest wait no longer.
pub const FLOWS_WAITING_MAX: usize = 4_096;
/// Connections into load balancers of which the last requests are remembered, the translations of as many, and requests of
/// each; the oldest go first. Source: as many as one VPC may have, [`VPC_CONNECTIONS_MAX`]. About 20 MiB when full.
pub const TRACED_CONNECTIONS_MAX: usize = 32_768;
pub const TRACES_PER_CONNECTION_MAX: usize = 16;
/// They are remembered for this long after the last word of them: a connection says nothing for no longer, and no flow is
/// told more seldom.
pub const TRACES_KEEP: Duration = PSC_IDLE;

/// Characters of a log filter. Source: Logging, 20 000.
pub const FILTER_CHARS_MAX: usize = 20_000;
/// Brackets within brackets of a log filter.
pub const FILTER_DEPTH_MAX: usize = 64;
/// Bytes of one log entry. Source: Logging, 256 KB.
pub const LOG_ENTRY_BYTES_MAX: usize = 256 << 10;
/// Labels of one entry, and bytes of a label's key. Source: Logging, 64 and 512 B.
pub const LOG_ENTRY_LABELS_MAX: usize = 64;
pub const LOG_LABEL_KEY_BYTES_MAX: usize = 512;
/// A log's id is shorter than this. Source: LogEntry.logName.
pub const LOG_ID_BYTES_MAX: usize = 512;
/// Entries of one entries.write; the real one is bounded by bytes alone.
pub const LOG_WRITE_ENTRIES_MAX: usize = 10_000;
/// Logs of one project that are listed.
pub const LOG_NAMES_MAX: usize = 100;
/// An entry may be dated this far into the future, and this far back: others are dropped. Source: Logging, 24 hours and
/// the retention of the _Default bucket.
pub const LOG_AHEAD_MAX: Duration = Duration::from_secs(24 * 3_600);
pub const LOG_RETENTION: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Bytes of logs kept on disk per cloud; the oldest segment goes first.
pub const LOG_DISK_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one segment of the log: what is deleted at once when there is too much, and read at least by a query.
pub const LOG_SEGMENT_BYTES: u64 = 4 << 20;
/// Bytes of entries that are not on disk yet; while there are more, new ones are dropped and counted.
pub const LOG_UNWRITTEN_BYTES_MAX: u64 = 8 << 20;
/// Between two writes to the journal's files: a busy log is written in few large pieces.
pub const LOG_WRITE_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a request that the activity log shows; a longer one is left out.
pub const AUDIT_REQUEST_BYTES_MAX: usize = 16 << 10;
/// Records waiting to be written; more are dropped and the drop is recorded.
pub const LOG_QUEUE_MAX: usize = 65_536;

/// Bytes of one line that a container prints; longer ones become several entries. Source: Logging, 256 KB an entry.
pub const PRINTED_LINE_BYTES_MAX: usize = 256 << 10;
/// Lines of one container that wait for control: in files of about this many bytes, of which the oldest goes when there
/// are more than this many.
pub const PRINTED_FILE_BYTES: usize = 256 << 10;
pub const PRINTED_FILES_MAX: u64 = 4;
/// Lines of one container go to control in batches of about this many bytes, and not more often than this.
pub const PRINTED_BATCH_BYTES: usize = 64 << 10;
pub const PRINTED_BATCH_PAUSE: Duration = Duration::from_millis(50);
/// How long what is known of a container outlives it, so that its last lines find their names.
pub const PRINTED_NAMES_KEEP: Duration = Duration::from_secs(120);

// ---- sandboxes ----

/// Processes and threads of one sandbox.
pub const SANDBOX_PIDS_MAX: u32 = 1_024;
/// A sandbox's captured output kept on the machine, in bytes.
pub const SANDBOX_OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// Uids of one sandbox.
pub const SANDBOX_UIDS: u32 = 65_536;
/// First uid of any sandbox, on a multiple of their number: above what login.defs, subuid and systemd hand out, and above
/// the cloud's own users.
pub const SANDBOX_UID_FIRST: u32 = 8_000 * SANDBOX_UIDS;
/// Past the last one: uids from 2^31 up are not portable.
pub const SANDBOX_UID_END: u32 = 1 << 31;
/// Unpacked size of one image, in bytes, and entries in it: a stranger's archive may not fill the disk.
pub const IMAGE_BYTES_MAX: u64 = 8 << 30;
pub const IMAGE_ENTRIES_MAX: u64 = 1_000_000;
