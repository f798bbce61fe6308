//! VMs without an external address are reached through the Identity-Aware Proxy, with the tools that people have.

#![allow(clippy::unwrap_used)]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use acceptance::{
    Cloud, Home, REGION, Said, ZONE, installed,
    journey::{Vm, client},
    tunnel::{Refused, Tunnel, Way},
    until,
};
use serde_json::{Value, json};
use tombolo::journey;

const P: &str = "bastion-less";
const VM: &str = "test-vm";

/// A cloud with one VM, and a home directory for its user.
struct Scene {
    cloud: Cloud,
    home: Home,
}

impl Scene {
    /// With a firewall that lets the relay in, a VM that answers, and her key in the metadata.
    fn where_ada_may_log_in() -> Scene {
        let scene = Scene::up();
        scene.let_in();
        drop(scene.tunnel());
        let key = scene.keygen("ada");
        scene.set_keys(&format!("ada:{key}"));
        scene
    }

    fn up() -> Scene {
        let cloud = Cloud::up();
        let client = client(&cloud);
        journey::create_project(&client, P).unwrap();
        journey::enable(&client, P, &["compute.googleapis.com", "iap.googleapis.com"]).unwrap();
        journey::create_network(&client, P, "vpc").unwrap();
        journey::create_subnet(&client, P, "vpc", "subnet", "10.1.0.0/24", None).unwrap();
        let home = Home::of(&cloud);
        let scene = Scene { cloud, home };
        scene.make_vm(VM);
        scene
    }

    fn make_vm(&self, name: &str) {
        self.cloud.compute(
            "POST",
            &format!("projects/{P}/zones/{ZONE}/instances"),
            json!({
                "name": name, "machineType": format!("zones/{ZONE}/machineTypes/e2-micro"),
                "disks": [{"boot": true, "autoDelete": true, "initializeParams": {
                    "sourceImage": "projects/debian-cloud/global/images/family/debian-12"}}],
                "networkInterfaces": [{
                    "network": journey::link(P, "global/networks/vpc"),
                    "subnetwork": journey::link(P, &format!("regions/{REGION}/subnetworks/subnet")),
                }],
                "serviceAccounts": [
                    {"email": "default", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}],
            }),
        );
    }

    /// The rule that everybody writes for this.
    fn let_in(&self) {
        self.cloud.compute(
            "POST",
            &format!("projects/{P}/global/firewalls"),
            json!({
                "name": "allow-iap-ssh", "direction": "INGRESS", "sourceRanges": ["35.235.240.0/20"],
                "network": journey::link(P, "global/networks/vpc"),
                "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
            }),
        );
    }

    fn vm(&self) -> Vm<'_> {
        Vm::find(&self.cloud, P, VM)
    }

    /// Adds a member to a role of the project.
    fn grant(&self, role: &str, member: &str) {
        self.change_policy(|bindings| bindings.push(json!({"role": role, "members": [member]})));
    }

    fn change_policy(&self, edit: impl FnOnce(&mut Vec<Value>)) {
        self.cloud.change_policy("cloudresourcemanager.googleapis.com", &format!("/v1/projects/{P}"), edit);
    }

    fn verb(&self, verb: &str) {
        self.cloud.compute("POST", &format!("projects/{P}/zones/{ZONE}/instances/{VM}/{verb}"), json!({}));
    }

    fn ca(&self) -> PathBuf {
        self.cloud.state_dir().join("control/ca.pem")
    }

    fn way(&self) -> Way {
        Way {
            door: self.cloud.door,
            ca_pem: std::fs::read(self.ca()).unwrap(),
            token: self.cloud.token.clone(),
            project: P.to_owned(),
            zone: ZONE.to_owned(),
            instance: VM.to_owned(),
            port: 22,
        }
    }

    /// A tunnel to the SSH server, which may take a moment to listen after its VM has started.
    #[track_caller]
    fn tunnel(&self) -> Tunnel {
        until("the SSH server listens", || self.way().open().map_err(|why| format!("{why:?}")))
    }

    /// The real `gcloud`, with a home of its own.
    fn gcloud(&self, args: &str) -> Said {
        let args = args.replace("@HERE", &format!("--zone={ZONE} --project={P}"));
        self.cloud.gcloud_at_home(&self.home, &args)
    }

    /// The project's `ssh-keys`.
    fn set_keys(&self, keys: &str) {
        self.set_metadata(json!([{"key": "ssh-keys", "value": keys}]));
    }

    fn set_metadata(&self, items: Value) {
        let project = self.cloud.get(&format!("projects/{P}"));
        let body = json!({
            "fingerprint": project["commonInstanceMetadata"]["fingerprint"],
            "items": items,
        });
        self.cloud.compute("POST", &format!("projects/{P}/setCommonInstanceMetadata"), body);
    }

    /// A fresh key pair; answers the public half.
    fn keygen(&self, name: &str) -> String {
        let file = self.home.join(name);
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file).status();
        assert!(made.is_ok_and(|status| status.success()));
        std::fs::read_to_string(file.with_extension("pub")).unwrap().trim().to_owned()
    }

    /// The system's OpenSSH client over a tunnel of ours, which is cut whenever so many bytes have passed.
    fn ssh(&self, user: &str, key: &str, cut_every: u64) -> Command {
        let tunnel = bin("tunnel");
        let proxy = format!(
            "ProxyCommand={} {} {} {P} {ZONE} {VM} {cut_every}",
            tunnel.display(),
            self.cloud.door,
            self.ca().display()
        );
        let known = format!("UserKnownHostsFile={}", self.home.join("known_hosts").display());
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", &known]);
        command.args(["-o", "StrictHostKeyChecking=accept-new", "-o", "HostKeyAlias=the-vm", "-o", &proxy, "-i"]);
        command.arg(self.home.join(key)).arg(format!("{user}@the-vm"));
        command.env("TUNNEL_TOKEN", &self.cloud.token);
        command
    }

    fn ssh_says(&self, user: &str, key: &str, script: &str) -> Said {
        Said::of(&self.ssh(user, key, u64::MAX).arg(script).stdin(Stdio::null()).output().unwrap())
    }
}

/// A program that was built beside these tests.
fn bin(name: &str) -> PathBuf {
    let built = match name {
        "tunnel" => env!("CARGO_BIN_EXE_tunnel"),
        other => panic!("no program {other}"),
    };
    Path::new(built).to_owned()
}

fn closed(way: &Way) -> (u16, String) {
    match way.open() {
        Err(Refused::Closed { code, reason }) => (code, reason),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("a tunnel"),
    }
}

#[test]
fn a_refused_tunnel_says_why() {
    let scene = Scene::up();
    let way = scene.way();
    // No rule lets it in.
    assert_eq!(closed(&way), (4003, "failed to connect to backend".to_owned()));
    scene.let_in();
    drop(scene.tunnel());
    assert_eq!(closed(&Way { port: 23, ..way.clone() }).0, 4003, "another port");
    assert_eq!(closed(&Way { instance: "nobody".into(), ..way.clone() }).0, 4047);
    assert_eq!(closed(&Way { zone: "asia-northeast1-c".into(), ..way.clone() }).0, 4047, "another zone");
    assert_eq!(Way { token: "ya29.x".into(), ..way.clone() }.open().err(), Some(Refused::Status(401)));
    let host = format!("/v4/connect?project={P}&port=22&newWebsocket=True&region={REGION}&network=vpc&host=10.1.0.2");
    assert!(matches!(way.websocket(&host).err(), Some(Refused::Status(400))), "hosts are not served");

    // An editor of the project is nobody here until it gets the role.
    let email = scene.vm().metadata("instance/service-accounts/default/email");
    let theirs = Way { token: scene.vm().access_token(), ..way.clone() };
    assert_eq!(closed(&theirs), (4033, "not authorized".to_owned()));
    assert_eq!(closed(&Way { instance: "nobody".into(), ..theirs.clone() }).0, 4033, "nor whether there is a VM");
    scene.grant("roles/iap.tunnelResourceAccessor", &format!("serviceAccount:{email}"));
    assert!(theirs.open().is_ok());

    scene.verb("stop");
    assert_eq!(closed(&way).0, 4047, "a VM that is switched off");
}

#[test]
fn a_session_is_its_owners_and_is_used_once_at_a_time() {
    let scene = Scene::up();
    scene.let_in();
    let mut tunnel = scene.tunnel();
    let banner = tunnel.receive().unwrap();
    assert!(banner.starts_with(b"SSH-2.0-tombolo"), "{:?}", String::from_utf8_lossy(&banner));
    let sid = tunnel.sid().to_owned();
    let reconnect = |token: &str, sid: &str, ack: u64| {
        let path = format!("/v4/reconnect?sid={sid}&ack={ack}&newWebsocket=True&zone={ZONE}");
        let way = Way { token: token.to_owned(), ..scene.way() };
        match way.resume(&path) {
            Err(Refused::Closed { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    };
    let mine = &scene.cloud.token;
    assert_eq!(reconnect(mine, "0123456789abcdef", 0), 4001, "there is no such session");
    assert_eq!(reconnect(mine, &sid, 0), 4002, "it is in use");
    assert_eq!(reconnect(&scene.vm().access_token(), &sid, 0), 4033, "it is somebody else's");
    tunnel.cut().unwrap();
    tunnel.send(b"SSH-2.0-test\r\n").unwrap();
    assert!(!tunnel.receive().unwrap().is_empty(), "the tunnel goes on");
    tunnel.hang_up();
    until("a count that was never reached is refused", || match reconnect(mine, &sid, 1 << 40) {
        4005 => Ok(()),
        other => Err(other.to_string()),
    });
}

#[test]
fn an_openssh_client_gets_what_it_asks_for_over_a_tunnel_that_is_cut_again_and_again() {
    if !installed("ssh", "OpenSSH over a tunnel") {
        return;
    }
    let scene = Scene::where_ada_may_log_in();

    let said = scene.ssh_says("ada", "ada", "id -un; pwd; tty; echo out; echo err >&2; exit 7");
    assert_eq!((said.code, said.out.as_str()), (Some(7), "ada\n/home/ada\nnot a tty\nout"));
    assert!(said.err.ends_with("err"), "{}", said.err);
    let said = scene.ssh_says("ada", "ada", "kill -TERM $$");
    assert_eq!(said.code, Some(255), "ended by a signal: {said:?}");
    let mut with_terminal = scene.ssh("ada", "ada", u64::MAX);
    with_terminal.args(["-tt", "tty; stty size; exit 3"]).env("TERM", "xterm").stdin(Stdio::null());
    let said = Said::of(&with_terminal.output().unwrap());
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.out.contains("/dev/pts/"), "{said:?}");
    let shell = scene.ssh("ada", "ada", u64::MAX).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut shell = shell.unwrap();
    shell.stdin.take().unwrap().write_all(b"echo $((6 * 7)); exit 5\n").unwrap();
    let said = Said::of(&shell.wait_with_output().unwrap());
    assert_eq!((said.code, said.out.as_str()), (Some(5), "42"));

    // 64 MiB each way, the connection cut every few megabytes.
    const BYTES: usize = 64 << 20;
    let bytes: Vec<u8> =
        (0..BYTES / 8).flat_map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    let mut up = scene.ssh("ada", "ada", 5_000_003).arg("cat > big").stdin(Stdio::piped()).spawn().unwrap();
    up.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(up.wait().unwrap().success());
    let down = scene.ssh("ada", "ada", 5_000_003).arg("cat big").stdin(Stdio::null()).output().unwrap();
    assert!(down.status.success() && down.stdout == bytes, "{} bytes came back", down.stdout.len());
}

#[test]
fn who_may_log_in_is_what_the_metadata_says_now_and_the_vm_is_known_again_after_a_restart() {
    if !installed("ssh", "keys of the metadata") {
        return;
    }
    let scene = Scene::up();
    scene.let_in();
    drop(scene.tunnel());
    let (ada, bob) = (scene.keygen("ada"), scene.keygen("bob"));
    let enters = |user: &str, key: &str| scene.ssh_says(user, key, "true").code == Some(0);
    assert!(!enters("ada", "ada"), "no key is known");
    scene.set_keys(&format!("ada:{ada}"));
    assert!(enters("ada", "ada"), "one that was just added");
    assert!(!enters("ada", "bob") && !enters("bob", "ada") && !enters("root", "ada"), "as nobody else");
    scene.set_keys(&format!("ada:{ada}\nbob:{bob}"));
    assert!(enters("bob", "bob"));
    scene.set_keys(&format!("bob:{bob}"));
    assert!(!enters("ada", "ada"), "one that was just removed");
    let expiring = |at: &str| format!("bob:{} google-ssh {{\"userName\":\"bob\",\"expireOn\":\"{at}\"}}", two(&bob));
    scene.set_keys(&expiring("2020-01-01T00:00:00+0000"));
    assert!(!enters("bob", "bob"), "its time is over");
    scene.set_keys(&expiring("2099-01-01T00:00:00+0000"));
    assert!(enters("bob", "bob"));

    let servers = "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' < $p/cmdline)\" in tombolo-sshd*) echo ${p#/proc/};; esac; done";
    let before = scene.cloud.in_vm(VM, servers).ok();
    scene.cloud.in_vm(VM, &format!("kill -9 {before}")).ok();
    drop(scene.tunnel());
    assert_ne!(scene.cloud.in_vm(VM, servers).ok(), before, "init has started another one");
    assert!(enters("bob", "bob"));

    scene.verb("stop");
    scene.verb("start");
    drop(scene.tunnel());
    assert!(enters("bob", "bob"), "the host key is the one that the client remembers");
}

#[test]
fn with_os_login_roles_open_the_vm_to_people_with_keys_of_their_own() {
    if !installed("ssh", "OS Login") {
        return;
    }
    let scene = Scene::where_ada_may_log_in();
    let enters = |user: &str, key: &str| scene.ssh_says(user, key, "true").code == Some(0);
    assert!(enters("ada", "ada"), "a key of the metadata");
    let ada = std::fs::read_to_string(scene.home.join("ada.pub")).unwrap();
    let keys = format!("ada:{}", ada.trim());
    scene.set_metadata(json!([{"key": "enable-oslogin", "value": "TRUE"}, {"key": "ssh-keys", "value": keys}]));
    assert!(!enters("ada", "ada"), "now it counts for nothing");

    let import = |token: &str, user: &str, body: &Value| {
        let path = format!("/v1/users/{user}:importSshPublicKey?projectId={P}");
        scene.cloud.call_as(Some(token), "POST", "oslogin.googleapis.com", &path, Some(body.clone()))
    };
    let key = json!({"key": ada.trim()});
    assert_eq!(import(&scene.cloud.token, "admin@tombolo.local", &key).status, 200);
    let said = scene.ssh_says("admin_tombolo_local", "ada", "id -un; id -u; pwd; id -Gn").ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines[0], lines[2]), ("admin_tombolo_local", "/home/admin_tombolo_local"));
    assert!(lines[1].parse::<u32>().unwrap() >= 20_000 && lines[3].contains("google-sudoers"), "{said}");
    assert!(!enters("root", "ada") && !enters("ada", "ada"), "as nobody else");

    // A robot of the project, which is nobody until it has roles.
    let accounts = format!("/v1/projects/{P}/serviceAccounts");
    let iam = |path: &str, body: Value| scene.cloud.call("POST", "iam.googleapis.com", path, Some(body));
    let made = iam(&accounts, json!({"accountId": "robot-one"})).body;
    let (email, id) = (made["email"].as_str().unwrap(), made["uniqueId"].as_str().unwrap());
    let member = format!("serviceAccount:{email}");
    let may_mint = json!({"policy": {"bindings": [
        {"role": "roles/iam.serviceAccountTokenCreator", "members": ["user:admin@tombolo.local"]}]}});
    assert_eq!(iam(&format!("{accounts}/{email}:setIamPolicy"), may_mint).status, 200);
    let path = format!("/v1/projects/-/serviceAccounts/{email}:generateAccessToken");
    let scope = json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"]});
    let minted = scene.cloud.call("POST", "iamcredentials.googleapis.com", &path, Some(scope)).body;
    let token = minted["accessToken"].as_str().unwrap();
    let key = json!({"key": scene.keygen("robot")});
    let user = format!("sa_{id}");
    assert_eq!(import(token, email, &key).status, 403, "it does not see the project");
    scene.grant("roles/compute.osLogin", &member);
    assert_eq!(import(token, email, &key).status, 200);
    assert!(!enters(&user, "robot"), "it may not act as the VM's account");
    scene.grant("roles/iam.serviceAccountUser", &member);
    let said = scene.ssh_says(&user, "robot", "id -un; id -Gn").ok();
    assert_eq!(said, format!("{user}\n{user}"), "no administrator");
    assert!(!enters(&user, "ada") && !enters("admin_tombolo_local", "robot"), "with nobody else's key");
    let expired = json!({"key": key["key"], "expirationTimeUsec": "1700000000000000"});
    assert_eq!(import(token, email, &expired).status, 200);
    assert!(!enters(&user, "robot"), "the key's time is over");
    assert_eq!(import(token, email, &key).status, 200);
    assert!(enters(&user, "robot"));
    scene.change_policy(|bindings| bindings.retain(|binding| binding["role"] != "roles/compute.osLogin"));
    assert!(!enters(&user, "robot"), "the role is gone, and the door closed");

    if installed("gcloud", "gcloud compute ssh with OS Login") {
        let said = scene.gcloud(&format!("compute ssh {VM} --tunnel-through-iap --command='id -un' @HERE"));
        assert_eq!(said.out.lines().last(), Some("admin_tombolo_local"), "{said:?}");
        let said = scene.gcloud("compute os-login ssh-keys list --format='value(value.fingerprint)'").ok();
        assert_eq!(said.lines().count(), 2, "{said}");
    }
}

/// Type and data of a public key, without its comment.
fn two(key: &str) -> String {
    key.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[test]
fn gcloud_logs_in_runs_commands_and_copies_files_through_the_proxy() {
    if !installed("gcloud", "gcloud compute ssh") || !installed("ssh", "gcloud compute ssh") {
        return;
    }
    let scene = Scene::up();
    let refused = scene.gcloud(&format!("compute start-iap-tunnel {VM} 22 --local-host-port=localhost:0 @HERE"));
    let text = "Error while connecting [4003: 'failed to connect to backend']. (Failed to connect to port 22)";
    assert!(refused.code == Some(1) && refused.err.contains(text), "{}", refused.err);
    scene.let_in();
    drop(scene.tunnel());

    let ssh =
        |command: &str| scene.gcloud(&format!("compute ssh ada@{VM} --tunnel-through-iap @HERE --command='{command}'"));
    let said = ssh(
        "id -un; curl -s -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/name",
    );
    assert!(said.code == Some(0) && said.out.ends_with(&format!("ada\n{VM}")), "{said:?}");
    let said = ssh("echo so far; exit 7");
    assert_eq!((said.code, said.out.as_str()), (Some(7), "so far"), "{}", said.err);

    let there = scene.home.join("there.txt");
    let back = scene.home.join("back.txt");
    std::fs::write(&there, "over and back\n").unwrap();
    let scp = |from: &str, to: &str| {
        scene.gcloud(&format!("compute scp {from} {to} --tunnel-through-iap @HERE")).ok();
    };
    scp(&there.display().to_string(), &format!("ada@{VM}:there.txt"));
    scp(&format!("ada@{VM}:there.txt"), &back.display().to_string());
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "over and back\n");

    let file = scene.home.join("token");
    std::fs::write(&file, scene.vm().access_token()).unwrap();
    let refused = scene.gcloud(&format!(
        "compute start-iap-tunnel {VM} 22 --local-host-port=localhost:0 @HERE --access-token-file={}",
        file.display()
    ));
    let text = "Error while connecting [4033: 'not authorized'].";
    assert!(refused.code == Some(1) && refused.err.contains(text), "{}", refused.err);
}

/// Runs a program at a terminal of 80 by 24, and makes that 77 by 33 as soon as the program is ready.
const RESIZED: &str = r#"
import fcntl, os, pty, struct, sys, termios
def size(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
pid, terminal = pty.fork()
if pid == 0:
    size(0, 24, 80)
    os.execvp(sys.argv[1], sys.argv[1:])
said = b""
while True:
    try:
        more = os.read(terminal, 4096)
    except OSError:
        break
    if not more:
        break
    before, said = said, said + more
    if b"ready" in said and b"ready" not in before:
        size(terminal, 33, 77)
sys.stdout.write(said.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn an_openssh_session_forwards_ports_outwards_follows_its_terminal_and_waits_for_a_slow_reader() {
    if !installed("ssh", "what an SSH session can do") || !installed("python3", "a terminal that changes its size") {
        return;
    }
    let scene = Scene::where_ada_may_log_in();

    // -L: as the VM, to what the VM reaches. -R: refused, so that no listener of a VM leads out of the cloud.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut forwarding = scene.ssh("ada", "ada", u64::MAX);
    forwarding.args(["-L", &format!("127.0.0.1:{free}:metadata.google.internal:80"), "cat"]);
    let mut forwarding = forwarding.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let name = format!("http://127.0.0.1:{free}/computeMetadata/v1/instance/name");
    let curl = ["-sf", "-m", "10", "--noproxy", "*", "-H", "Metadata-Flavor: Google", &name];
    let answer = until("the forwarded port answers", || {
        let said = Said::of(&Command::new("curl").args(curl).output().unwrap());
        if said.code == Some(0) { Ok(said.out) } else { Err(format!("{said:?}")) }
    });
    assert_eq!(answer, VM);
    drop(forwarding.stdin.take());
    assert!(forwarding.wait().unwrap().success());
    let mut back = scene.ssh("ada", "ada", u64::MAX);
    back.args(["-o", "ExitOnForwardFailure=yes", "-R", "8000:127.0.0.1:9", "true"]);
    let said = Said::of(&back.stdin(Stdio::null()).output().unwrap());
    let refused = said.err.contains("remote port forwarding failed for listen port 8000");
    assert!(said.code == Some(255) && refused, "{said:?}");

    // The terminal's size, then and later; its interrupt key.
    let ssh = scene.ssh("ada", "ada", u64::MAX);
    let mut resized = Command::new("python3");
    resized.args(["-c", RESIZED]).arg(ssh.get_program()).args(ssh.get_args()).arg("-tt");
    resized.arg("stty size; trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done");
    resized.env("TERM", "xterm").env("TUNNEL_TOKEN", &scene.cloud.token).stdin(Stdio::null());
    let said = Said::of(&resized.output().unwrap());
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.out.contains("24 80") && said.out.contains("33 77"), "{said:?}");
    let mut interrupted = scene.ssh("ada", "ada", u64::MAX);
    interrupted.args(["-tt", "trap 'exit 6' INT; echo ready; while :; do sleep 0.05; done"]).env("TERM", "xterm");
    let mut interrupted = interrupted.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(interrupted.stdout.as_mut().unwrap(), &mut line).unwrap();
    interrupted.stdin.as_mut().unwrap().write_all(&[3]).unwrap();
    assert_eq!((&line, interrupted.wait().unwrap().code()), (b"ready", Some(6)));

    // A client that does not read: its program waits, other clients do not, and the server keeps little of it.
    const BYTES: usize = 64 << 20;
    let mut slow = scene.ssh("ada", "ada", u64::MAX);
    slow.arg(format!("head -c {BYTES} /dev/zero")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut slow = slow.spawn().unwrap();
    let mut unread = slow.stdout.take().unwrap();
    std::io::Read::read_exact(&mut unread, &mut [0; 1]).unwrap();
    assert_eq!(scene.ssh_says("ada", "ada", "pgrep -x head >/dev/null && echo waits").out, "waits");
    let most = "for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' < $p/cmdline)\" in tombolo-sshd*) \
                awk '/^VmHWM/ {print $2}' $p/status;; esac; done";
    let kib: usize = scene.cloud.in_vm(VM, most).ok().parse().unwrap();
    assert!(kib < 48 << 10, "{kib} KiB at most");
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut unread, &mut rest).unwrap();
    assert!(slow.wait().unwrap().success() && rest.len() == BYTES - 1, "{} bytes", rest.len());

    // A VM that is stopped says no farewell; its sessions end all the same, also one that still talks to it.
    let mut left = scene.ssh("ada", "ada", u64::MAX);
    left.args(["echo ready; cat > /dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut left = left.spawn().unwrap();
    std::io::Read::read_exact(left.stdout.as_mut().unwrap(), &mut line).unwrap();
    let mut talks = left.stdin.take().unwrap();
    std::thread::spawn(move || while talks.write_all(&[0; 4_096]).is_ok() {});
    scene.cloud.compute("POST", &format!("projects/{P}/zones/{ZONE}/instances/{VM}/stop"), json!({}));
    let ended = until("the session ends", || left.try_wait().unwrap().ok_or_else(|| "it goes on".to_owned()));
    assert_eq!(ended.code(), Some(255));
}
