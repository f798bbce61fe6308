//! The SSH server of a VM, and its guest agent: who may log in is what the metadata server says at that moment.
//!
//! It is this binary, started by the VM's init as the VM's root; nothing of it is in the image. The protocol is
//! `russh`'s; ours is who ([`keys`], [`accounts`]) and what ([`server`], [`process`], [`sftp`]). Start with [`serve`].

pub mod accounts;
pub mod keys;
mod metadata;
mod process;
mod server;
pub mod sftp;
mod sys;

use std::{fs, io, net::Ipv4Addr, sync::Arc, time::Duration};

use model::limits::{SSH_AUTH_TRIES_MAX, SSH_CHANNEL_MESSAGES_MAX, SSH_CONNECTIONS_MAX, SSH_IDLE_MAX, SSH_LOGIN_MAX};
use russh::{
    MethodKind, MethodSet, SshId,
    keys::{
        PrivateKey,
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
    server::{Config, run_stream},
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use crate::{accounts::Accounts, server::Login};

/// 32 bytes from which the VM's host key is made, readable by its root alone. They are the same for as long as the VM
/// exists, so that who knows the key of a VM knows it again after a restart.
pub const SEED: &str = "/run/sshd/seed";
pub const PORT: u16 = 22;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot read {SEED}")]
    Seed { source: io::Error },
    #[error("{SEED} holds no 32 bytes")]
    SeedLength,
    #[error("cannot make the host key")]
    HostKey { source: russh::keys::ssh_key::Error },
    #[error("cannot listen on port {PORT}")]
    Listen { source: io::Error },
}

/// Serves for as long as the VM lives.
///
/// # Errors
/// Without a host key or a port there is nothing to serve.
pub async fn serve() -> Result<std::convert::Infallible, ServeError> {
    let seed = fs::read(SEED).map_err(|source| ServeError::Seed { source })?;
    let seed: [u8; 32] = seed.try_into().map_err(|_| ServeError::SeedLength)?;
    let config = Arc::new(config(host_key(seed)?));
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await.map_err(|source| ServeError::Listen { source })?;
    let accounts = Arc::new(Accounts::of_this_machine());
    let places = Arc::new(Semaphore::new(SSH_CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { continue };
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors, most likely: some connection will end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let local = stream.local_addr().ok();
        let (config, mut login) = (config.clone(), Login::new(accounts.clone(), peer, local));
        tokio::spawn(async move {
            let deadline = login.deadline();
            // Whoever breaks the protocol or goes away is told what could be told.
            if let Ok(session) = timeout(SSH_LOGIN_MAX, run_stream(config, stream, login)).await
                && let Ok(session) = session
            {
                let handle = session.handle();
                tokio::spawn(async move {
                    if timeout(SSH_LOGIN_MAX, deadline).await.is_err() {
                        let late = "no login in time".to_owned();
                        let _ = handle.disconnect(russh::Disconnect::ByApplication, late, String::new()).await;
                    }
                });
                let _ = session.await;
            }
            drop(place);
        });
    }
}

fn host_key(seed: [u8; 32]) -> Result<PrivateKey, ServeError> {
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
    PrivateKey::new(pair, "").map_err(|source| ServeError::HostKey { source })
}

fn config(key: PrivateKey) -> Config {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    Config {
        server_id: SshId::Standard(format!("SSH-2.0-tombolo_{}", env!("CARGO_PKG_VERSION")).into()),
        methods,
        auth_rejection_time: Duration::from_millis(300),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        max_auth_attempts: SSH_AUTH_TRIES_MAX,
        inactivity_timeout: Some(SSH_IDLE_MAX),
        channel_buffer_size: SSH_CHANNEL_MESSAGES_MAX,
        nodelay: true,
        ..Config::default()
    }
}
