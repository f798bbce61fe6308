//! The link to control: what it tells comes in, wishes for tokens go out. Control comes, goes and comes back; what it
//! told stays.

use std::{io, sync::Arc};

use ipc::{read_async, write_async};
use model::{
    limits::MINTS_MAX,
    planned::guest::{FromGuest, ToGuest},
};
use tokio::{
    io::BufReader,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
};

use crate::{ACCEPT_AGAIN, Guest, mint::Told, world::Epoch};

/// Messages to control that wait: every wish that may be open, and a few marks.
const OUT_MAX: usize = MINTS_MAX + 16;

/// Accepts control processes; the newest one counts.
pub async fn listen(guest: Arc<Guest>, door: UnixListener) {
    let mut epoch: Epoch = 0;
    let mut current = JoinSet::new();
    loop {
        let Ok((stream, _)) = door.accept().await else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        current.shutdown().await;
        epoch += 1;
        current.spawn(run(guest.clone(), stream, epoch));
    }
}

async fn run(guest: Arc<Guest>, stream: UnixStream, epoch: Epoch) {
    let (reader, writer) = stream.into_split();
    let (out, waiting) = mpsc::channel(OUT_MAX);
    let _connected = guest.mints.connect(out.clone());
    // Either end of the link ends it; control connects again and says everything again.
    let ended = tokio::select! {
        ended = receive(&guest, reader, epoch, out) => ended,
        ended = send(waiting, writer) => ended,
    };
    if let Err(error) = ended
        && !ipc::is_end(&error)
    {
        eprintln!("guest: the link to control broke: {error}");
    }
}

async fn receive(guest: &Guest, reader: OwnedReadHalf, epoch: Epoch, out: mpsc::Sender<FromGuest>) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    while let Some(message) = read_async(&mut reader).await? {
        match message {
            ToGuest::Set(item) => guest.world.set(epoch, item),
            ToGuest::Unset(key) => guest.world.unset(key),
            ToGuest::Minted { ticket, outcome } => guest.mints.told(ticket, Told::Minted(outcome)),
            ToGuest::Login { ticket, answer } => guest.mints.told(ticket, Told::Login(answer)),
            ToGuest::Complete => guest.world.complete(epoch),
            // What came before is in the world already: the next request sees it.
            ToGuest::Mark(number) => {
                if out.send(FromGuest::Applied(number)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

async fn send(mut waiting: mpsc::Receiver<FromGuest>, mut writer: OwnedWriteHalf) -> io::Result<()> {
    while let Some(message) = waiting.recv().await {
        write_async(&mut writer, &message).await?;
    }
    Ok(())
}
