//! The link to control: its plan in, reports and records out. Control comes, goes and comes back; the plan stays.

use std::{io, rc::Rc, time::Instant};

use ipc::{read_async, write_async};
use model::planned::edge::{FromProxy, ToProxy};
use tokio::{
    io::BufReader,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use crate::{
    Proxy, accept_again,
    outbox::{Frame, Next, Outbox},
};

/// Accepts control processes; the newest one counts.
pub async fn listen(proxy: Rc<Proxy>, door: UnixListener) {
    let mut link: Option<JoinHandle<()>> = None;
    loop {
        let Ok((stream, _)) = door.accept().await else {
            accept_again().await;
            continue;
        };
        if let Some(old) = link.take() {
            old.abort();
            let _ = old.await;
        }
        proxy.outbox.connect();
        proxy.plan.borrow_mut().begin();
        link = Some(tokio::task::spawn_local(run(proxy.clone(), stream)));
    }
}

async fn run(proxy: Rc<Proxy>, stream: UnixStream) {
    let (reader, writer) = stream.into_split();
    // Either end of the link ends it; control connects again and sends everything.
    let _ = tokio::select! {
        ended = receive(&proxy, reader) => ended,
        ended = send(&proxy.outbox, writer) => ended,
    };
    proxy.outbox.disconnect();
}

async fn receive(proxy: &Proxy, reader: OwnedReadHalf) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    while let Some(message) = read_async::<ToProxy>(&mut reader).await? {
        match message {
            ToProxy::Set(item) => proxy.plan.borrow_mut().set(item),
            ToProxy::Unset(key) => proxy.plan.borrow_mut().unset(&key),
            ToProxy::CloseClients { network, peer } => proxy.clients.close_peer(network, peer).await,
            ToProxy::Mark(number) => proxy.outbox.report(FromProxy::Applied(number)),
            ToProxy::Complete => {
                proxy.plan.borrow_mut().complete();
                proxy.told.everything();
            }
        }
    }
    Ok(())
}

/// Puts a frame back if it was not written whole.
struct Unsent<'a> {
    outbox: &'a Outbox,
    frame: Option<Frame>,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.outbox.put_back(frame);
        }
    }
}

async fn send(outbox: &Outbox, mut writer: OwnedWriteHalf) -> io::Result<()> {
    loop {
        match outbox.next(Instant::now()) {
            Next::Send(frame) => {
                let mut unsent = Unsent { outbox, frame: Some(frame) };
                write_async(&mut writer, &unsent.frame).await?;
                unsent.frame = None;
            }
            Next::Wait(time) => {
                let _ = tokio::time::timeout(time, outbox.changed()).await;
            }
            Next::Nothing => outbox.changed().await,
        }
    }
}
