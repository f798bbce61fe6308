//! Profiles of OS Login as gcloud reads and writes them.

use serde_json::{Value, json};

use crate::scene::Scene;

const ME: &str = "https://oslogin.googleapis.com/v1/users/admin@tombolo.local";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti ada@laptop";

#[tokio::test]
async fn a_key_is_imported_shown_given_an_end_and_deleted() {
    let scene = Scene::with_project().await;
    let empty = scene.get(&format!("{ME}/loginProfile")).await.ok();
    assert_eq!(empty, json!({"name": empty["name"]}), "nothing is kept yet");
    let import = format!("{ME}:importSshPublicKey?projectId=producer-1&regions=asia-northeast1");
    let profile = scene.post(&import, json!({"key": KEY})).await.ok()["loginProfile"].clone();
    let account = &profile["posixAccounts"][0];
    let uid = account["uid"].as_str().unwrap();
    assert_eq!(
        *account,
        json!({
            "accountId": "producer-1", "uid": uid, "gid": uid, "homeDirectory": "/home/admin_tombolo_local",
            "name": "users/admin@tombolo.local/projects/producer-1", "operatingSystemType": "LINUX",
            "primary": true, "username": "admin_tombolo_local",
        })
    );
    let (print, key) = profile["sshPublicKeys"].as_object().unwrap().iter().next().unwrap();
    let name = format!("users/admin@tombolo.local/sshPublicKeys/{print}");
    assert_eq!(*key, json!({"key": KEY, "fingerprint": print, "name": name}));
    assert_eq!(scene.get(&format!("{ME}/loginProfile?projectId=producer-1")).await.ok(), profile);

    let url = format!("{ME}/sshPublicKeys/{print}");
    let mut ends = key.clone();
    ends["expirationTimeUsec"] = json!("1900000000000000");
    assert_eq!(scene.patch(&format!("{url}?updateMask=expirationTimeUsec"), ends.clone()).await.ok(), ends);
    assert_eq!(scene.get(&url).await.ok(), ends);
    assert_eq!(scene.delete(&url).await.ok(), json!({}));
    scene.delete(&url).await.refused(404);
    scene.delete(&format!("{ME}/projects/producer-1")).await.ok();
    assert_eq!(scene.get(&format!("{ME}/loginProfile")).await.ok(), json!({"name": profile["name"]}));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_so_is_whoever_it_is_not() {
    let scene = Scene::with_project().await;
    let other = "https://oslogin.googleapis.com/v1/users/eve@example.com";
    assert_eq!(scene.get(&format!("{other}/loginProfile")).await.refused(403), "The caller does not have permission");
    for (path, body, status, why) in [
        (":importSshPublicKey", json!({"key": "ssh-rsa AAAA"}), 400, "Invalid SSH public key"),
        (":importSshPublicKey", json!({"key": KEY, "expirationTimeUsec": "soon"}), 400, "expiration_time_usec"),
        (":importSshPublicKey", json!({"kee": KEY}), 400, "kee"),
        (":importSshPublicKey?projectId=nowhere", json!({"key": KEY}), 403, "compute.projects.get"),
        ("/sshPublicKeys", json!({}), 400, "Invalid SSH public key"),
        ("/projects/producer-1/locations/r:signSshPublicKey", json!({}), 400, "SSH certificates"),
    ] {
        let said = scene.post(&format!("{ME}{path}"), body).await.refused(status);
        assert!(said.contains(why), "{path}: {said}");
    }
    let logged = |entries: &Value| entries["entries"].as_array().map_or(0, Vec::len);
    let import = format!("{ME}:importSshPublicKey?projectId=producer-1");
    scene.post(&import, json!({"key": KEY})).await.ok();
    let filter = "protoPayload.methodName=\"google.cloud.oslogin.v1.OsLoginService.ImportSshPublicKey\"";
    let entries = scene
        .post(
            "https://logging.googleapis.com/v2/entries:list",
            json!({"resourceNames": ["projects/producer-1"], "filter": filter}),
        )
        .await
        .ok();
    assert_eq!(logged(&entries), 1, "an account in a project's VMs is in the project's log: {entries:#}");
}
