//! Asking control, by ticket: for tokens, and who may log in. Control knows only the seat; what it says, it says for
//! whoever sits there.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::{
    limits::{MINT_WAIT_MAX, MINTS_MAX},
    planned::guest::{FromGuest, LoginAnswer, LoginQuestion, MintRefusal, Minted, Seat, Want},
};
use tokio::sync::{mpsc, oneshot};

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoToken {
    Refused(MintRefusal),
    /// Control is away, too slow, or asked for too much at once. Trying again helps.
    Unavailable,
}

type Outcome = Result<Minted, MintRefusal>;

/// What control says to a ticket.
pub enum Told {
    Minted(Outcome),
    Login(LoginAnswer),
}

/// The open tickets. Locks are held for look-ups only.
#[derive(Default)]
pub struct Mints(Mutex<Open>);

#[derive(Default)]
struct Open {
    /// None while control is away.
    control: Option<mpsc::Sender<FromGuest>>,
    tickets: HashMap<u64, oneshot::Sender<Told>>,
    last: u64,
}

/// While it lives, control is there.
pub struct Connected<'a>(&'a Mints);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        let mut open = self.0.lock();
        open.control = None;
        // Whoever waits learns at once that nobody will answer.
        open.tickets.clear();
    }
}

impl Mints {
    pub fn connect(&self, control: mpsc::Sender<FromGuest>) -> Connected<'_> {
        self.lock().control = Some(control);
        Connected(self)
    }

    /// Asks control and waits for its answer.
    pub async fn mint(&self, seat: Seat, want: Want) -> Result<Minted, NoToken> {
        match self.ask(|ticket| FromGuest::Mint { ticket, seat, want }).await {
            Some(Told::Minted(outcome)) => outcome.map_err(NoToken::Refused),
            Some(Told::Login(_)) | None => Err(NoToken::Unavailable),
        }
    }

    /// None: control is away, too slow, or asked for too much at once.
    pub async fn login(&self, seat: Seat, question: LoginQuestion) -> Option<LoginAnswer> {
        match self.ask(|ticket| FromGuest::Login { ticket, seat, question }).await {
            Some(Told::Login(answer)) => Some(answer),
            Some(Told::Minted(_)) | None => None,
        }
    }

    async fn ask(&self, message: impl FnOnce(u64) -> FromGuest) -> Option<Told> {
        let (ticket, answer) = self.open(message)?;
        let told = tokio::time::timeout(MINT_WAIT_MAX, answer).await;
        drop(ticket);
        told.ok()?.ok()
    }

    fn open(&self, message: impl FnOnce(u64) -> FromGuest) -> Option<(Ticket<'_>, oneshot::Receiver<Told>)> {
        let mut open = self.lock();
        if open.tickets.len() >= MINTS_MAX {
            return None;
        }
        open.last += 1;
        let ticket = open.last;
        open.control.as_ref()?.try_send(message(ticket)).ok()?;
        let (sender, receiver) = oneshot::channel();
        open.tickets.insert(ticket, sender);
        Some((Ticket(self, ticket), receiver))
    }

    pub fn told(&self, ticket: u64, told: Told) {
        // Nobody waits for it any more: then it is dropped.
        if let Some(waiting) = self.lock().tickets.remove(&ticket) {
            let _ = waiting.send(told);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes itself when the client hangs up first.
struct Ticket<'a>(&'a Mints, u64);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.lock().tickets.remove(&self.1);
    }
}
