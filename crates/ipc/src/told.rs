//! A process that was started again knows nothing until its teller has said everything once. Whoever asks it something in
//! between waits, for a bounded time, instead of being told that nothing is there.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

#[derive(Debug)]
pub struct Told {
    everything: watch::Sender<bool>,
    until: Instant,
}

impl Told {
    /// From now on everything is expected within `time`; after that nobody waits any more.
    pub fn within(time: Duration) -> Told {
        Told { everything: watch::Sender::new(false), until: Instant::now() + time }
    }

    /// Everything has been said once. What was said stays said while the teller is away.
    pub fn everything(&self) {
        self.everything.send_replace(true);
    }

    pub fn knows(&self) -> bool {
        *self.everything.borrow()
    }

    /// Waits until everything has been said, or until the time for it is over. False when it was not said.
    pub async fn wait(&self) -> bool {
        let mut everything = self.everything.subscribe();
        self.knows() || timeout_at(self.until, everything.wait_for(|said| *said)).await.is_ok_and(|said| said.is_ok())
    }
}
