//! What the inside of a sandbox may and may not do. Needs root.

#![allow(clippy::unwrap_used)]

mod scene;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    sync::mpsc,
};

use sandbox::{Running, Stdio};
use scene::{PATIENCE, Scene, exec, request, sh, wait_until};

/// Dials from inside the sandbox's network namespace.
fn get(sandbox: &Running, address: &str, path: &str) -> String {
    let (netns, address, path) = (sandbox.netns().unwrap(), address.parse::<SocketAddr>().unwrap(), path.to_owned());
    let dial = move || {
        let net = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(net)).unwrap();
        let mut stream = None;
        wait_until("the server listens", || {
            stream = TcpStream::connect(address).ok();
            stream.is_some()
        });
        let mut stream = stream.unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok();
        answer
    };
    std::thread::spawn(dial).join().unwrap()
}

#[test]
fn root_serves_port_80_on_both_families() {
    let scene = Scene::new();
    let env = [("PORT", "80"), ("K_SERVICE", "shop"), ("K_REVISION", "shop-00001-abc")];
    let container = scene.start("web", &scene.container(0, &["/hello"], &env));
    for address in ["[::1]:80", "127.0.0.1:80"] {
        let page = get(&container, address, "/");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
        assert!(
            page.contains("<title>Congratulations | Cloud Run</title>") && page.contains("shop-00001-abc"),
            "{page}"
        );
    }
}

#[test]
fn an_ordinary_user_may_serve_port_80_and_is_not_root() {
    let scene = Scene::new();
    let mut plan = scene.container(0, &["/hello"], &[("PORT", "80")]);
    if let model::planned::host::Process::Run { user, .. } = &mut plan.process {
        *user = "1000:1000".into();
    }
    let container = scene.start("web", &plan);
    assert!(get(&container, "127.0.0.1:80", "/").starts_with("HTTP/1.1 200"));
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).unwrap();
    let field = |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap();
    assert_eq!(field("Uid:"), (scene.uids(0) + 1000).to_string());
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
}

#[test]
fn a_root_of_a_vm_binds_the_wildcard_of_ipv4_and_pings_itself() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let bind = r#"use Socket; socket(S, PF_INET, SOCK_STREAM, 0) or die; bind(S, sockaddr_in(80, INADDR_ANY)) or die $!;
        socket(I, PF_INET, SOCK_DGRAM, 1) or die "icmp: $!"; print "bound""#;
    let said = exec(&vm, &request(&["perl", "-e", bind]), "");
    assert_eq!(said.out, "bound", "{}", said.err);
}

#[test]
fn the_host_is_out_of_sight() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let said = sh(&vm, "ls / | tr '\\n' ' '");
    assert_eq!(said.out, "bin dev etc home lib lib64 mnt opt proc root run sbin srv sys tmp usr var ", "{}", said.err);
    // Only its own processes: init, the shell and what the shell runs.
    let said = sh(&vm, "ls /proc | grep -c '^[0-9]'");
    assert!(said.out.trim().parse::<u32>().unwrap() <= 5, "{}", said.out);
    // Nothing of the host in the mount table but read-only views.
    let said = sh(&vm, "cat /proc/self/mountinfo");
    for line in
        said.out.lines().filter(|l| !l.contains(" - tmpfs ") && !l.contains(" - devtmpfs ") && !l.contains(" /dev/"))
    {
        let at = line.split(' ').nth(4).unwrap();
        let read_only = line.split(' ').nth(5).unwrap().split(',').any(|o| o == "ro");
        assert!(read_only || ["/proc"].contains(&at), "{line}");
    }
    assert!(!said.out.contains(&*scene.dir.to_string_lossy()), "{}", said.out);
    // No descriptor but the three streams (and the one ls reads with).
    assert_eq!(sh(&vm, "ls /proc/self/fd | tr '\\n' ' '").out, "0 1 2 3 ");
    let names: BTreeSet<_> = sh(&vm, "env").out.lines().map(|l| l.split('=').next().unwrap().to_owned()).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["HOME", "PATH", "PWD"]);
    assert_eq!(sh(&vm, "pwd; cat /proc/keys /proc/kcore | wc -c").out, "/\n0\n");
}

#[test]
fn pid_1_holds_nothing_of_the_host() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let mut open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", vm.pid()))
        .unwrap()
        .map(|fd| fs::read_link(fd.unwrap().path()).unwrap().to_string_lossy().into_owned())
        .map(|to| to.split(':').next().unwrap().to_owned())
        .collect();
    open.sort();
    assert_eq!(open, ["/dev/null", "pipe", "pipe"]);
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    assert!(
        status.contains("\nGroups:\t \n")
            || status.contains("\nGroups:\t0 \n")
            || status.contains(&format!("\nGroups:\t{} \n", scene.uids(0))),
        "{status}"
    );
    let environ = fs::read_to_string(format!("/proc/{}/environ", vm.pid())).unwrap();
    assert!(environ.split('\0').all(|v| v.is_empty() || v.starts_with("PATH=") || v.starts_with("HOME=")), "{environ}");
}

#[test]
fn what_would_widen_a_sandbox_is_refused() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    for script in [
        "mount -t tmpfs none /mnt",
        "umount /proc",
        "unshare -U true",
        "unshare -n true",
        "nsenter -t 1 -m true",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /proc/sysrq-trigger",
        "mknod /tmp/sda b 8 0",
        "touch /usr/bin/x",
        "touch /etc/ssl/certs/x",
        "chmod u+s /usr/bin/env",
        "dmesg",
        "chroot /proc/1/root/../.. ls /work",
    ] {
        let said = sh(&vm, script);
        assert_ne!(said.status.code, Some(0), "{script}: {said:?}");
    }
    let numbers = "for (321, 298, 323, 250, 425) { my $r = syscall($_, 0, 0, 0, 0, 0); print \"$_ \" if $r != -1 || $! != 1 }
        socket(S, 40, 1, 0) and print 'vsock'; print syscall(435, 0, 0) == -1 && $!{ENOSYS} ? 'ok' : 'clone3'; use Errno;";
    let said = exec(&vm, &request(&["perl", "-e", numbers]), "");
    assert_eq!(said.out, "ok", "{}", said.err);
}

#[test]
fn a_vm_knows_its_name_and_its_name_server_and_may_write() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    assert_eq!(
        sh(&vm, "cat /etc/resolv.conf").out,
        "nameserver 169.254.169.254\nsearch home-a.c.shop.internal google.internal\n"
    );
    assert!(sh(&vm, "getent hosts metadata.google.internal").out.starts_with("169.254.169.254"));
    assert!(sh(&vm, "getent hosts till").out.contains("10.0.0.2"), "{}", sh(&vm, "cat /etc/hosts").out);
    for dir in ["/tmp", "/root", "/home", "/var/lib", "/run", "/etc", "/dev/shm"] {
        let said = sh(&vm, &format!("echo x > {dir}/file && cat {dir}/file && stat -c %u {dir}/file"));
        assert_eq!(said.out, "x\n0\n", "{dir}: {}", said.err);
    }
    let said = sh(
        &vm,
        "id -un; test -s /etc/ssl/certs/ca-certificates.crt && echo trusted; echo hi > /dev/null && head -c 1 /dev/urandom | wc -c",
    );
    assert!(said.out.starts_with("root\n") && said.out.ends_with("1\n"), "{said:?}");
}

#[test]
fn two_sandboxes_share_nothing_they_can_see() {
    let scene = Scene::new();
    let one = scene.start("one", &scene.vm(0));
    let two = scene.start("two", &scene.vm(1));
    sh(&one, "echo secret > /tmp/secret; echo secret > /dev/shm/secret");
    let said = sh(&two, "cat /tmp/secret /dev/shm/secret; hostname");
    assert_eq!(said.out, "till\n");
    let space = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "net", "mnt", "pid", "uts", "ipc", "cgroup"] {
        assert_ne!(space(one.pid(), kind), space(two.pid(), kind), "{kind}");
        assert_ne!(fs::read_link(format!("/proc/self/ns/{kind}")).unwrap(), space(one.pid(), kind), "{kind}");
    }
}

#[test]
fn the_hello_page_hides_its_test_paths_unless_asked_to_show_them() {
    let scene = Scene::new();
    let page = scene.start("page", &scene.container(0, &["/hello"], &[("PORT", "8080")]));
    assert!(get(&page, "127.0.0.1:8080", "/exit?code=3").contains("<title>Congratulations | Cloud Run</title>"));
    let env = [("PORT", "8080"), ("HELLO_TEST", "1")];
    let test = scene.start("test", &scene.container(1, &["/hello"], &env));
    let headers = get(&test, "127.0.0.1:8080", "/headers?a=b");
    assert!(
        headers.contains("GET /headers?a=b\nhost: x\n") && headers.contains("peer: [::ffff:127.0.0.1]:"),
        "{headers}"
    );
    assert!(get(&test, "127.0.0.1:8080", "/stream?ms=1").contains("chunk 4"));
    get(&test, "127.0.0.1:8080", "/exit?code=3");
    let (code, ..) = scene.exit();
    assert_eq!(code, Some(3));
}

/// Whatever a workload does to a command on its way in, the shim answers the next question.
fn still_answers(vm: &Running, what: &str) {
    let (tell, answered) = mpsc::channel();
    let (asked, stranger) = (vm.clone(), vm.clone());
    let streams = || std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    // Threads, for a shim that is held up would hold up this test.
    std::thread::spawn(move || {
        let (i, o, e) = (streams(), streams(), streams());
        let streams = Stdio::Streams { stdin: i.as_fd(), stdout: o.as_fd(), stderr: e.as_fd() };
        tell.send(stranger.exec(&request(&["/bin/true"]), streams).map(|exec| exec.pid())).ok();
    });
    assert!(answered.recv_timeout(PATIENCE).is_ok(), "{what}: nobody says whether the command was executed");
    assert_eq!(asked.status().unwrap().id, *vm.id(), "{what}");
}

#[test]
fn a_vm_whose_list_of_users_is_a_pipe_does_not_hold_up_its_shim() {
    let scene = Scene::new();
    let vm = scene.start("till", &scene.vm(0));
    let said = sh(&vm, "rm /etc/passwd && mkfifo /etc/passwd");
    assert_eq!(said.status.code, Some(0), "{}", said.err);
    still_answers(&vm, "a pipe");
    let mut by_number = request(&["/bin/sh", "-c", "ln -sf /dev/zero /etc/passwd"]);
    by_number.user = "0".into();
    assert_eq!(exec(&vm, &by_number, "").status.code, Some(0));
    still_answers(&vm, "a device without an end");
}
