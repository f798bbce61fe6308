//! Asks the metadata server, each time anew: a key that was just added opens the door, one that was removed does not.

use std::io;

use model::limits::{SSH_METADATA_BYTES_MAX, SSH_METADATA_WAIT_MAX};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    accounts::is_name,
    keys::{Attributes, Person},
};

const SERVER: (&str, u16) = ("169.254.169.254", 80);

/// # Errors
/// No answer in time, or none that can be read: then nobody is let in.
pub(crate) async fn attributes() -> io::Result<Attributes> {
    let all = |whose: &str| format!("{whose}/attributes/?recursive=true&alt=json");
    let (instance, project) = (all("instance"), all("project"));
    let both = async { tokio::try_join!(get(&instance), get(&project)) };
    let (instance, project) = timeout(SSH_METADATA_WAIT_MAX, both).await??;
    Ok(Attributes { instance, project })
}

/// Whoever has this name in OS Login and may log in here.
///
/// # Errors
/// Those of [`attributes`]; nobody of that name is one of them.
pub(crate) async fn person(username: &str) -> io::Result<Person> {
    // The rest of a name that is none of OS Login's would be another question.
    if !is_name(username) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name that no profile has"));
    }
    let ask = async {
        let found = get(&format!("oslogin/users?username={username}")).await?;
        let mut person = Person::read(&found["loginProfiles"][0]).ok_or_else(unreadable)?;
        let may = |policy: &str| format!("oslogin/authorize?email={}&policy={policy}", person.id);
        let (login, admin) = (may("login"), may("adminLogin"));
        let (login, admin) = tokio::try_join!(get(&login), get(&admin))?;
        let yes = |answer: &Value| answer["success"] == true;
        (person.admitted, person.admin) = (yes(&login), yes(&admin));
        Ok::<_, io::Error>(person)
    };
    timeout(SSH_METADATA_WAIT_MAX, ask).await?
}

async fn get(path: &str) -> io::Result<Value> {
    let mut stream = TcpStream::connect(SERVER).await?;
    // HTTP/1.0: the answer ends with the connection.
    let question = format!(
        "GET /computeMetadata/v1/{path} HTTP/1.0\r\nHost: metadata.google.internal\r\n\
         Metadata-Flavor: Google\r\n\r\n"
    );
    stream.write_all(question.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(SSH_METADATA_BYTES_MAX).read_to_end(&mut answer).await?;
    body(&answer).ok_or_else(unreadable)
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the metadata server's answer")
}

fn body(answer: &[u8]) -> Option<Value> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let status = std::str::from_utf8(&answer[..end]).ok()?.split(' ').nth(1)?;
    if status == "200" { serde_json::from_slice(&answer[end + 4..]).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_whole_answer_of_200_counts() {
        for (answer, read) in [
            ("HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"a\":\"b\"}", Some(json!({"a": "b"}))),
            ("HTTP/1.1 200 OK\r\n\r\n{}", Some(json!({}))),
            ("HTTP/1.0 200 OK\r\n\r\n{\"a\":", None),
            ("HTTP/1.0 503 Unavailable\r\n\r\n{}", None),
            ("HTTP/1.0 200 OK\r\n", None),
            ("", None),
        ] {
            assert_eq!(body(answer.as_bytes()), read, "{answer}");
        }
    }
}
